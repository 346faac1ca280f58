"""Every registered attack and objective under the common contract, and broken ones that it has to catch."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import ATTACKS, PGD, AttackResult
from robustly.attacks.contract import frozen
from robustly.objectives import OBJECTIVES, Goal
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack, check_objective
from robustly.threat import ThreatModel

THREATS = (ThreatModel("linf", 0.15), ThreatModel("l2", 0.5), ThreatModel("l1", 1.2), ThreatModel("l0", 3))


@pytest.mark.parametrize("name", ATTACKS)
def test_presets_keep_the_contract(name: str) -> None:
    check_attack(ATTACKS[name], THREATS, targeted=True)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(5, restarts=3),
        PGD(5, early_stop=False),
        PGD(5, start="gaussian"),
        PGD(5, start="halfway"),
        PGD(5, start="none", step_size=0.05),
        PGD(5, OBJECTIVES["probability_margin"]),
        PGD(0),
    ],
    ids=lambda attack: f"{attack.steps}-{attack.restarts}-{attack.start}-{attack.objective.__name__}",
)
def test_variants_of_pgd_keep_the_contract(attack: PGD) -> None:
    check_attack(attack, THREATS, targeted=True)


def test_an_epsilon_that_covers_the_box() -> None:
    check_attack(
        PGD(3), (ThreatModel("linf", 1), ThreatModel("l2", 50), ThreatModel("l1", 500), ThreatModel("l0", 400))
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_keep_the_contract(name: str) -> None:
    check_objective(OBJECTIVES[name], reference=name == "kl")


@dataclass(frozen=True)
class Spoilt:
    """PGD whose call is tampered with."""

    spoil: Callable[..., AttackResult]

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor | Goal, *, threat: ThreatModel, generator: KeyedGenerator
    ) -> AttackResult:
        def honest(x: Tensor = x, generator: KeyedGenerator = generator, **changes: object) -> AttackResult:
            return replace(PGD(4), **changes)(model, x, y, threat=threat, generator=generator)

        return self.spoil(honest, model, x, y, generator)


def leaves_the_ball(honest, model, x, y, generator):
    result = honest()
    return replace(result, x_adv=(x + 3 * (result.x_adv - x)).clamp(0, 1))


def leaves_the_box(honest, model, x, y, generator):
    result = honest()
    return replace(result, x_adv=result.x_adv - 0.1 * (result.x_adv == result.x_adv.amin()))


def boasts(honest, model, x, y, generator):
    result = honest()
    return replace(result, broken=torch.ones_like(result.broken), distance=torch.zeros_like(result.distance))


def gives_other_distances(honest, model, x, y, generator):
    result = honest()
    return replace(result, distance=result.distance * 2)


def attacks_what_is_wrong_already(honest, model, x, y, generator):
    result = honest()
    return replace(
        result, x_adv=torch.where((result.distance == 0)[(..., *[None] * (x.ndim - 1))], x * 0.99, result.x_adv)
    )


def depends_on_the_batch(honest, model, x, y, generator):
    return honest(generator=KeyedGenerator(generator.seed, torch.arange(len(x))))


def has_no_seed(honest, model, x, y, generator):
    return honest(generator=KeyedGenerator(int(torch.randint(2**30, (1,))), generator.ids))


def writes_gradients(honest, model, x, y, generator):
    with torch.inference_mode(False), torch.enable_grad():
        if len(x) > 1:
            nn.functional.cross_entropy(model(x.clone()), y if isinstance(y, Tensor) else y.y).backward()
    return honest()


def leaves_eval_mode(honest, model, x, y, generator):
    result = honest()
    model.eval()
    return result


def freezes_parameters(honest, model, x, y, generator):
    result = honest()
    model.requires_grad_(False)
    return result


def moves_running_statistics(honest, model, x, y, generator):
    with torch.no_grad():
        if len(x) > 1:
            model(x)
    return honest()


def forgets_the_model_after_an_error(honest, model, x, y, generator):
    model.eval()
    result = honest()
    model.train()
    return result


def changes_the_dtype(honest, model, x, y, generator):
    result = honest()
    return replace(result, x_adv=result.x_adv.double())


def swallows_nan(honest, model, x, y, generator):
    result = honest()
    return replace(result, broken=result.broken & ~result.invalid, invalid=torch.zeros_like(result.invalid))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "spoil",
    [
        leaves_the_ball,
        leaves_the_box,
        boasts,
        gives_other_distances,
        attacks_what_is_wrong_already,
        depends_on_the_batch,
        has_no_seed,
        writes_gradients,
        leaves_eval_mode,
        freezes_parameters,
        moves_running_statistics,
        forgets_the_model_after_an_error,
        changes_the_dtype,
        swallows_nan,
    ],
)
def test_the_contract_catches_an_attack_that(spoil: Callable[..., AttackResult]) -> None:
    torch.manual_seed(0)
    check_attack(Spoilt(lambda honest, *rest: honest()), THREATS[:2])
    with pytest.raises(AssertionError):
        check_attack(Spoilt(spoil), THREATS[:2])


def test_the_contract_catches_objectives_that_are_wrong() -> None:
    with pytest.raises(AssertionError, match="lowers the objective"):
        check_objective(lambda logits, goal: logits.gather(1, goal.y[:, None])[:, 0])
    with pytest.raises(AssertionError, match="other examples"):
        check_objective(lambda logits, goal: logits.amax(1) - logits.mean())
    with pytest.raises(AssertionError, match="no usable gradient"):
        check_objective(lambda logits, goal: 0 * logits.sum(1))


def test_frozen_restores_after_an_exception() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    net[0].weight.requires_grad_(False)

    def fail_inside() -> None:
        with frozen(net, "train_nostat"):
            assert not any(parameter.requires_grad for parameter in net.parameters())
            raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        fail_inside()
    assert net.training
    assert net[1].training
    assert net[1].track_running_stats
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]


@pytest.mark.parametrize("mode", ["eval", "train", "train_nostat"])
def test_modes_of_batch_normalisation(mode: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    x = KeyedGenerator(0, torch.arange(16)).uniform(1, 2, 2)
    before = {name: value.clone() for name, value in net.named_buffers()}
    attack = PGD(3, keep="last", mode=mode)
    attack(
        net, x, torch.zeros(16, dtype=torch.int64), threat=THREATS[0], generator=KeyedGenerator(0, torch.arange(16))
    )
    moved = any(not torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert moved == (mode == "train")
    batch_statistics = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        batch_statistics.append(bool(output.mean(0).abs().max() < 1e-4))

    net[2].register_forward_hook(note)
    attack(
        net, x, torch.zeros(16, dtype=torch.int64), threat=THREATS[0], generator=KeyedGenerator(0, torch.arange(16))
    )
    assert all(batch_statistics) == (mode != "eval")
