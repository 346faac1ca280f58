"""Points crafted on one model and tried on another."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import APGD, PGD, Attack, AttackError
from robustly.attacks.ddn import DDN
from robustly.attacks.mim import MIM, InputDiversity
from robustly.attacks.square import Square
from robustly.attacks.transfer import LogitEnsemble, Transfer
from robustly.objectives import ClassificationGoal, cross_entropy, margin
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack, small_network
from robustly.threats.lp import ThreatModel

LINF = ThreatModel("linf", 0.1)
SHAPE, COUNT = (3, 5, 4), 40


def keys(count: int = COUNT) -> KeyedGenerator:
    return KeyedGenerator(0, torch.arange(count))


@pytest.fixture(scope="module")
def victim() -> nn.Module:
    return small_network(SHAPE, seed=0).eval()


@pytest.fixture(scope="module")
def sibling(victim: nn.Module) -> nn.Module:
    """The victim with some noise on its weights: what breaks it often breaks the victim."""
    net = small_network(SHAPE, seed=0).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.add_(0.1 * parameter.std().nan_to_num(1.0) * noise)
    return net


@pytest.fixture(scope="module")
def batch(victim: nn.Module) -> tuple[Tensor, Tensor]:
    x = KeyedGenerator(5, torch.arange(COUNT)).uniform(*SHAPE) * 0.8 + 0.1
    y = victim(x).argmax(1)
    y[-1] = (y[-1] + 1) % 4
    return x, y


class AnyShape(nn.Module):
    """A surrogate for inputs of any shape, of four classes."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(60, 4, generator=torch.Generator().manual_seed(2))
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        logits: Tensor = flat @ self.weight[: flat.shape[1]].to(flat)
        return logits


@pytest.mark.slow
@pytest.mark.parametrize("attack", [PGD(3), MIM(steps=3)])
def test_it_keeps_the_contract(attack: Attack) -> None:
    threats = (ThreatModel("linf", 0.1), ThreatModel("l2", 0.5))
    check_attack(Transfer(attack, (AnyShape(),)), threats, targeted=True)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(8, restarts=2),
        PGD(8, margin),
        MIM(steps=8),
        APGD(steps=8),
        Square(queries=40),
        MIM(steps=4, diversity=InputDiversity(0.5, 0.5)),
    ],
    ids=lambda attack: type(attack).__name__,
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_victim_as_its_own_surrogate_is_the_white_box(
    attack: Attack, norm: str, victim: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    threat = ThreatModel(norm, 0.05 if norm == "linf" else 0.3)
    x, y = batch
    white = attack(victim, x, y, threat=threat, generator=keys())
    moved = Transfer(attack, (victim,))(victim, x, y, threat=threat, generator=keys())
    assert torch.equal(white.broken, moved.broken)
    assert torch.equal(white.x_adv[white.broken], moved.x_adv[white.broken])
    assert 1 < int(white.broken.sum()) < COUNT


def test_a_sibling_transfers_and_every_success_is_one_of_the_victim(
    victim: nn.Module, sibling: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    found = Transfer(MIM(), (sibling,))(victim, x, y, threat=LINF, generator=keys())
    assert (victim(found.x_adv).argmax(1) != y)[found.broken].all()
    assert LINF.contains(found.x_adv, x).all()
    assert int(found.broken.sum()) > 5
    assert torch.equal(found.x_adv[~found.broken], x[~found.broken])


def test_points_of_highest_objective_break_more_than_first_successes(
    victim: nn.Module, sibling: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    attack = MIM(steps=10)
    first = attack(sibling, x, y, threat=LINF, generator=keys())
    behind = victim(first.x_adv).argmax(1) != y
    found = Transfer(attack, (sibling,))(victim, x, y, threat=LINF, generator=keys())
    assert found.broken[behind].all()
    assert int(found.broken.sum()) > int(behind.sum())


def test_the_last_iterate_is_tried_alone_if_the_attack_keeps_it(
    victim: nn.Module, sibling: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    correct = victim(x).argmax(1) == y
    attack = MIM(keep="last")
    last = attack(sibling, x[correct], y[correct], threat=LINF, generator=keys().select(correct))
    found = Transfer(attack, (sibling,))(victim, x, y, threat=LINF, generator=keys())
    assert torch.equal(found.broken[correct], victim(last.x_adv).argmax(1) != y[correct])


def test_passes_of_victim_and_surrogates_are_counted(victim: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    seen = {"victim": 0, "first": 0, "second": 0}
    models = {"victim": victim, "first": AnyShape(), "second": AnyShape()}
    hooks = []
    for name, model in models.items():

        def count(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            seen[name] += len(inputs[0])

        hooks.append(model.register_forward_pre_hook(count))
    attack = Transfer(PGD(4, start="none"), (models["first"], models["second"]))
    found = attack(victim, x, y, threat=LINF, generator=keys())
    for hook in hooks:
        hook.remove()
    assert seen["first"] == seen["second"] > 0
    assert int(found.forwards.sum()) == sum(seen.values())
    assert seen["victim"] <= 3 * COUNT
    assert int(found.forwards[-1]) == 1  # wrong from the outset: neither crafted nor tried
    assert int(found.backwards[-1]) == 0


def test_a_target_is_reached_on_the_victim(
    victim: nn.Module, sibling: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    goal = ClassificationGoal(y, target=(y + 1) % 4)
    found = Transfer(MIM(), (sibling,))(victim, x, goal, threat=ThreatModel("linf", 0.3), generator=keys())
    assert found.broken.any()
    assert torch.equal(victim(found.x_adv).argmax(1)[found.broken], goal.target[found.broken])  # type: ignore[index]


def test_per_example_radii(victim: nn.Module, sibling: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    epsilon = torch.full((COUNT,), 0.1)
    epsilon[::2] = 0.0
    mixed = Transfer(MIM(), (sibling,))(victim, x, y, threat=LINF.with_epsilon(epsilon), generator=keys())
    same = Transfer(MIM(), (sibling,))(victim, x, y, threat=LINF, generator=keys())
    assert torch.equal(mixed.broken[1::2], same.broken[1::2])
    assert torch.equal(mixed.x_adv[::2], x[::2])


def test_ensembles_fuse_as_they_say(sibling: nn.Module, victim: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    members, weights = (sibling, victim), (0.25, 0.75)
    logits = LogitEnsemble(members, weights)(x)
    assert torch.allclose(logits, 0.25 * sibling(x) + 0.75 * victim(x), atol=1e-6)
    fused = LogitEnsemble(members, weights, "probabilities")(x)
    mean = 0.25 * sibling(x).softmax(1) + 0.75 * victim(x).softmax(1)
    assert torch.allclose(
        cross_entropy(fused, ClassificationGoal(y)), -mean[torch.arange(len(y)), y].log(), atol=1e-5
    )
    alone = LogitEnsemble(members, (0.0, 1.0), "probabilities")(x)
    assert torch.allclose(alone.softmax(1), victim(x).softmax(1), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"surrogates": ()}, "at least one surrogate"),
        ({"attack": DDN()}, "such as MIM"),
        ({"weights": (0.5,)}, "with sum 1"),
        ({"weights": (0.5, 0.5)}, "one per surrogate"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AttackError, match=sentence):
        Transfer(**({"attack": PGD(), "surrogates": (AnyShape(),)} | given))


def test_norms_are_those_of_the_attack(victim: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    assert Transfer(MIM(), (victim,)).needs == MIM.needs
    with pytest.raises(AttackError, match="any threat but l0"):
        Transfer(MIM(), (victim,))(victim, *batch, threat=ThreatModel("l0", 2), generator=keys())
