"""Every registered attack and objective under the common contract, and broken ones that it has to catch."""

import copy
import inspect
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import ATTACKS, PGD, AttackResult, fgsm, r_fgsm
from robustly.attacks.core.contract import Needs, frozen
from robustly.certification import CertificateResult, Verdict, verdicts_of_radii
from robustly.objectives import OBJECTIVES, ClassificationGoal, margin
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack, check_certificate, check_objective
from robustly.threats.lp import ThreatModel

THREATS = (ThreatModel("linf", 0.15), ThreatModel("l2", 0.5), ThreatModel("l1", 1.2), ThreatModel("l0", 3))


CLOCK = itertools.count()
FULL_LENGTH = """
from dataclasses import replace
from robustly.attacks import ATTACKS
from robustly.testing import check_attack
from robustly.threats.lp import ThreatModel
threats = (ThreatModel("linf", 0.15), ThreatModel("l2", 0.5), ThreatModel("l1", 1.2), ThreatModel("l0", 3))
for name, attack in ATTACKS.items():
    if name in ("nes", "spsa"):  # their steps cost a hundred of the others'
        attack = replace(attack, steps=3)
    check_attack(attack, threats, targeted=True)
print(len(ATTACKS))
"""


@pytest.mark.slow
def test_presets_keep_the_contract() -> None:
    """As authors of parts run it: without pytest, and without the shape checker, which costs minutes."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_LENGTH],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(len(ATTACKS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        fgsm(),
        r_fgsm(),
        PGD(2, margin, relative_step_size=0.25),
        PGD(2, restarts=2),
        PGD(2, early_stop=False),
        PGD(2, start="gaussian"),
        PGD(2, OBJECTIVES["probability_margin"], start="none", step_size=0.05),
        PGD(0),
    ],
    ids=["fgsm", "r_fgsm", "cw", "restarts", "no-active-set", "gaussian", "probability-margin", "no-steps"],
)
def test_variants_of_pgd_keep_the_contract_and_their_shapes(attack: PGD) -> None:
    check_attack(attack, THREATS, targeted=True)


@pytest.mark.slow
def test_an_epsilon_that_covers_the_box() -> None:
    check_attack(
        PGD(2), (ThreatModel("linf", 1), ThreatModel("l2", 50), ThreatModel("l1", 500), ThreatModel("l0", 400))
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_keep_the_contract(name: str) -> None:
    check_objective(OBJECTIVES[name], reference=name == "kl")


@dataclass(frozen=True)
class Spoilt:
    """PGD whose call is tampered with."""

    needs: ClassVar[Needs] = PGD.needs
    minimum_norm: ClassVar[bool] = PGD.minimum_norm

    spoil: Callable[..., AttackResult]

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | ClassificationGoal,
        *,
        threat: ThreatModel,
        generator: KeyedGenerator,
    ) -> AttackResult:
        def honest(
            y: Tensor | ClassificationGoal = y,
            threat: ThreatModel = threat,
            generator: KeyedGenerator = generator,
            **changes: object,
        ) -> AttackResult:
            return replace(PGD(2), **changes)(model, x, y, threat=threat, generator=generator)

        return self.spoil(honest, model, x, y, generator)


def unchecked(result, **changes):
    """A result whose wrong shapes the shape checker of these tests would refuse before the contract does."""
    changed = copy.copy(result)
    vars(changed).update(changes)
    return changed


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
    return honest(generator=KeyedGenerator(next(CLOCK), generator.ids))


def writes_gradients(honest, model, x, y, generator):
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.inference_mode(False), torch.enable_grad():
        model(x.clone()).sum().backward()
    for module, training in modes:
        module.training = training
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
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.num_batches_tracked += 1
    return honest()


def forgets_the_model_after_an_error(honest, model, x, y, generator):
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    result = honest()
    for module, training in modes:
        module.training = training
    return result


def changes_the_dtype(honest, model, x, y, generator):
    result = honest()
    return replace(result, x_adv=result.x_adv.double())


def drops_failures(honest, model, x, y, generator):
    result = honest()
    return unchecked(result, x_adv=result.x_adv[result.broken])


def swallows_nan(honest, model, x, y, generator):
    result = honest()
    return replace(result, broken=result.broken & ~result.invalid, invalid=torch.zeros_like(result.invalid))


def counts_nan_as_robust(honest, model, x, y, generator):
    result = honest()
    return replace(result, broken=result.broken & ~result.invalid)


def changes_what_it_is_given(honest, model, x, y, generator):
    result = honest()
    x += 0.0001
    return result


def moves_the_global_random_state(honest, model, x, y, generator):
    torch.rand(1)
    return honest()


def returns_doubles(honest, model, x, y, generator):
    result = honest()
    return replace(result, x_adv=result.x_adv.double())


def returns_singles(honest, model, x, y, generator):
    result = honest()
    return replace(result, x_adv=result.x_adv.float())


def returns_a_gradient(honest, model, x, y, generator):
    result = honest()
    with torch.inference_mode(False):
        return replace(result, x_adv=result.x_adv.clone().requires_grad_())


def loses_the_memory_format(honest, model, x, y, generator):
    result = honest()
    return replace(result, x_adv=result.x_adv.contiguous())


def swallows_errors(honest, model, x, y, generator):
    try:
        return honest()
    except Exception:
        modes = [(module, module.training) for module in model.modules()]
        result = replace(PGD(0, start="none"))(model, x, y, threat=ThreatModel("linf", 0), generator=generator)
        for module, training in modes:
            module.training = training
        return result


def hides_its_cost(honest, model, x, y, generator):
    result = honest()
    return replace(result, forwards=result.forwards.clamp(max=1))


def calls_a_constant_broken(honest, model, x, y, generator):
    result = honest()
    flat = not list(model.parameters()) and not list(model.children())
    return replace(result, broken=torch.ones_like(result.broken)) if flat else result


def moves_without_a_radius(honest, model, x, y, generator):
    return honest(threat=ThreatModel("linf", 0.15))


def says_too_near(honest, model, x, y, generator):
    result = honest()
    return replace(result, distance=torch.where(result.broken, result.distance, 1e-3), beyond=result.x_adv)


def finds_beyond_without_showing(honest, model, x, y, generator):
    result = honest()
    return replace(result, distance=torch.where(result.broken, result.distance, 9.0))


def shows_beyond_what_is_right(honest, model, x, y, generator):
    result = honest()
    beyond = (x - 0.3).clamp(0, 1)
    distance = ThreatModel("linf", 1).distance(beyond, x)
    return replace(result, distance=torch.where(result.broken, result.distance, distance), beyond=beyond)


def misses_the_target(honest, model, x, y, generator):
    if isinstance(y, ClassificationGoal):
        result = honest(y=y.y)
        return replace(result, broken=torch.ones_like(result.broken))
    return honest()


def works_in_the_precision_around_it(honest, model, x, y, generator):
    if torch.is_autocast_enabled("cpu"):
        result = honest()
        return replace(result, broken=~result.broken)
    return honest()


def has_no_room_for_nobody(honest, model, x, y, generator):
    result = honest()
    return unchecked(result, broken=result.broken[:, None]) if len(x) == 0 else result


def returns_one_margin_for_all(honest, model, x, y, generator):
    result = honest()
    return unchecked(result, margin=result.margin[:1])


def test_the_frame_of_the_broken_attacks_is_honest() -> None:
    check_attack(Spoilt(lambda honest, *rest: honest()), THREATS[:1], targeted=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (leaves_the_ball, "leaves the ball"),
        (leaves_the_box, "leaves the ball or the box"),
        (boasts, "called broken that the model classifies correctly"),
        (gives_other_distances, "distance is not that of the returned image"),
        (attacks_what_is_wrong_already, "misclassified without attack are changed"),
        (depends_on_the_batch, "depend on the other images"),
        (has_no_seed, "same seed gives other images"),
        (writes_gradients, r"\.grad of a parameter is written"),
        (leaves_eval_mode, "train or eval mode is changed"),
        (freezes_parameters, "requires_grad is changed"),
        (moves_running_statistics, "buffers of the model are changed"),
        (forgets_the_model_after_an_error, "mode is changed when the model raises"),
        (drops_failures, "changes the shape"),
        (swallows_nan, "not reported as invalid"),
        (counts_nan_as_robust, "counts as robust"),
        (changes_what_it_is_given, "caller's images or labels"),
        (moves_the_global_random_state, "global random state"),
        (returns_doubles, "changes the dtype"),
        (returns_singles, "changes the dtype"),
        (returns_a_gradient, "carry a gradient"),
        (loses_the_memory_format, "memory format"),
        (swallows_errors, "swallowed"),
        (hides_its_cost, "forward passes, the attack reports"),
        (calls_a_constant_broken, "constant model is called broken"),
        (moves_without_a_radius, "epsilon 0 changes an image"),
        (says_too_near, "within epsilon is not broken"),
        (finds_beyond_without_showing, "without an image in `beyond`"),
        (shows_beyond_what_is_right, "in `beyond` is classified correctly"),
        (misses_the_target, "target is called reached"),
        (works_in_the_precision_around_it, "differ inside autocast"),
        (returns_one_margin_for_all, "not .N,."),
        (has_no_room_for_nobody, r"not \(N,\)"),
    ],
)
def test_the_contract_catches_an_attack_that(spoil: Callable[..., AttackResult], sentence: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=sentence):
        check_attack(Spoilt(spoil), THREATS[:1], targeted=True)


@dataclass(frozen=True)
class Margin:
    """Exact for a linear model: the distance to the nearest plane between two classes (Hoelder's inequality)."""

    stretch: float = 1.0
    spoil: Callable[[nn.Module, Tensor, CertificateResult], CertificateResult] = lambda net, x, result: result
    certifies: str = "model"
    settled: bool = True

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, generator: KeyedGenerator
    ) -> CertificateResult:
        weight = next(model.parameters()).detach()
        dual = {"linf": 1, "l2": 2, "l1": float("inf")}[threat.norm]
        with torch.no_grad():
            logits = model(x)
        prediction = logits.argmax(1)
        gap = logits.gather(1, prediction[:, None]) - logits
        gradient = (weight[prediction][:, None] - weight[None]).norm(p=dual, dim=2)
        radius = self.stretch * (gap / gradient).scatter(1, prediction[:, None], torch.inf).amin(1)
        verdict = verdicts_of_radii(radius, prediction, y, threat)
        verdict = verdict if self.settled else torch.full_like(verdict, Verdict.UNKNOWN)
        return self.spoil(model, x, CertificateResult(verdict, radius, prediction, self.certifies))


def linear_problem() -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Sequential(nn.Linear(5, 3))
    net[0].weight.data = KeyedGenerator(1, torch.arange(3)).normal(5)
    x = KeyedGenerator(2, torch.arange(12)).uniform(5) * 0.2 + 0.4
    net[0].bias.data = -net[0].weight.data.sum(1) / 2
    return net, x, torch.zeros(12, dtype=torch.int64)


@pytest.mark.parametrize("threat", THREATS[:3], ids=str)
def test_a_true_certificate_passes_and_one_that_is_a_tenth_too_long_does_not(threat: ThreatModel) -> None:
    net, x, y = linear_problem()
    check_certificate(Margin(), net, x, y, threat)
    with pytest.raises(AssertionError, match=r"PGD finds an adversarial example|random image"):
        check_certificate(Margin(stretch=1.1), net, x, y, threat)
    check_certificate(Margin(stretch=1.1, certifies="another model"), net, x, y, threat)  # nobody can tell


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda net, x, found: replace(found, radius=found.radius - 1), "negative"),
        (lambda net, x, found: replace(found, prediction=2 - found.prediction), "another class than the model"),
        (lambda net, x, found: replace(found, radius=found.radius / len(x)), "depends on the other examples"),
        (lambda net, x, found: replace(found, radius=found.radius * torch.rand(1)), "same seed gives another"),
        (lambda net, x, found: (net.eval(), found)[1], "train or eval mode"),
        (lambda net, x, found: (net[0].bias.data.add_(0.01), found)[1], "changes parameters"),
        (lambda net, x, found: unchecked(found, radius=found.radius[:, None]), "radius and class per example"),
        (lambda net, x, found: unchecked(found, verdict=found.verdict.long()), "int8"),
        (lambda net, x, found: replace(found, verdict=found.verdict + 9), "not one of Verdict"),
        (lambda net, x, found: replace(found, certifies="another"), "another classifier than the certificate"),
        (lambda net, x, found: replace(found, failure_probability=1.5), r"not in \[0, 1\)"),
        (lambda net, x, found: unchecked(found, lower_bound=torch.zeros(2)), "one lower bound per example"),
    ],
)
def test_the_contract_catches_certificates_that_are_wrong(spoil: Callable[..., object], sentence: str) -> None:
    net, x, y = linear_problem()
    with pytest.raises(AssertionError, match=sentence):
        inspect.unwrap(check_certificate)(Margin(spoil=spoil, settled=False), net, x, y, THREATS[1])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda net, x, found: replace(found, stage=("<b>",) * len(x)), "name of a stage"),
        (lambda net, x, found: replace(found, work=torch.full((len(x),), -1)), "non-negative work"),
    ],
)
def test_the_contract_catches_records_that_are_wrong(spoil: Callable[..., object], sentence: str) -> None:
    net, x, y = linear_problem()
    with pytest.raises(AssertionError, match=sentence):
        check_certificate(Margin(spoil=spoil), net, x, y, THREATS[1])


@dataclass(frozen=True)
class Repeated(Margin):
    """A certificate whose repetition proves `share` of the radius."""

    share: float = 1.0

    def again(self, work_factor: int) -> Margin:
        return Margin(stretch=self.share)


def test_more_work_must_prove_at_least_as_much() -> None:
    net, x, y = linear_problem()
    y = net(x).argmax(1)
    threat = THREATS[1].with_epsilon(0.001)
    check_certificate(Repeated(), net, x, y, threat)
    with pytest.raises(AssertionError, match="with more work a certified radius is shorter"):
        check_certificate(Repeated(share=0.9), net, x, y, threat)
    with pytest.raises(AssertionError, match="with more work it does not verify"):
        check_certificate(Repeated(share=1e-6), net, x, y, threat)


def falsified(found: CertificateResult, counterexample: Tensor | None, **changes: object) -> CertificateResult:
    """All examples falsified."""
    verdict = torch.full_like(found.verdict, Verdict.FALSIFIED)
    return replace(found, verdict=verdict, counterexample=counterexample, **changes)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda net, x, found: replace(found, radius=found.radius * 0), "radius below epsilon"),
        (lambda net, x, found: replace(found, prediction=found.prediction + 1), "another class than its label"),
        (lambda net, x, found: falsified(found, None), "has no counterexample"),
        (lambda net, x, found: falsified(found, x[:, :1]), "has no counterexample"),
        (lambda net, x, found: falsified(found, x), "counterexample is classified correctly"),
        (lambda net, x, found: falsified(found, x + 1), "outside the threat set"),
        (lambda net, x, found: falsified(found, x, certifies="another"), "another classifier than the certificate"),
    ],
)
def test_the_contract_catches_verdicts_that_are_wrong(spoil: Callable[..., object], sentence: str) -> None:
    net, x, _ = linear_problem()
    y = net(x).argmax(1)
    with pytest.raises(AssertionError, match=sentence):
        check_certificate(Margin(spoil=spoil), net, x, y, THREATS[1].with_epsilon(0.001))


def test_only_a_certificate_of_the_model_can_falsify() -> None:
    net, x, y = linear_problem()
    liar = Margin(spoil=lambda net, x, found: falsified(found, x), certifies="another model")
    with pytest.raises(AssertionError, match="only a certificate of the model itself"):
        check_certificate(liar, net, x, y, THREATS[1])


def test_true_counterexamples_pass() -> None:
    net, x, _ = linear_problem()
    wrong = (net(x).argmax(1) + 1) % 3  # with these labels the images themselves are counterexamples
    honest = Margin(spoil=lambda net, x, found: falsified(found, x))
    check_certificate(honest, net, x, wrong, THREATS[1])


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
