"""Every flag and test fires on the toy model that it is meant for, and none on an honest network."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import APGD, BPDA, PGD, ExpectationOverTransformation
from robustly.data import ImageData, Splits
from robustly.evaluation import EvaluationTarget
from robustly.evaluation.diagnostics import (
    ALL,
    CHEAP,
    MASKING,
    Budget,
    cheap_findings,
    diagnose,
    masking_suspected,
)
from robustly.evidence import Finding
from robustly.randomness import KeyedGenerator
from robustly.threats import parse_threat
from robustly.threats.lp import ThreatModel

GREY = 128 / 255  # the 8-bit value next to the centre of the box, on which the closed forms are moved
WEIGHT = torch.tensor([[0.0, 0, 0, 0], [2, 2, 2, 2], [6, 0, 0, 0], [3, 3, 0, 0]])
AT_CENTRE = torch.tensor([0.0, -0.8, -0.9, -0.606])
LINF = ThreatModel("linf", 0.11)
SMALL = Budget(steps=20, unbounded_steps=30, restarts=10, queries=200, few=20, points=10_000, directions=32)


class Toy(nn.Module):
    """A function of images as a model."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x)


def r1(x: Tensor) -> Tensor:
    """Linear, with radii 0.1 (linf), 0.142836 (l2), 0.15 (l1) and one pixel (l0) around the centre."""
    return (x.flatten(1) - GREY) @ WEIGHT.T + AT_CENTRE


def r5(x: Tensor) -> Tensor:
    """R1 with saturated logits."""
    return 1e4 * r1(x)


def r6(x: Tensor) -> Tensor:
    """Dead units: exactly zero gradient in the middle, radii 0.1 (linf) and 0.141421 (l2)."""
    moved = x.flatten(1) - GREY + 0.5
    first, second = (moved.sum(1) - 1.1).relu(), (0.4 - moved[:, 0]).relu()
    zero = torch.zeros_like(first)
    return torch.stack([0.2 - 2 * first - second, zero, zero - 10, zero - 20], dim=1)


def centres(count: int = 40, shape: tuple[int, int, int] = (1, 2, 2)) -> ImageData:
    pixels = torch.full((count, *shape), 128, dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.int64)
    return ImageData(pixels, labels, torch.arange(count), ("a", "b", "c", "d"), "centres")


def subject_of(answer: Callable[[Tensor], Tensor] | nn.Module, threat: ThreatModel = LINF) -> EvaluationTarget:
    model = answer if isinstance(answer, nn.Module) else Toy(answer)
    return EvaluationTarget(model, centres(shape=(1, 1, 2) if answer is r6 else (1, 2, 2)), threat)


def by_id(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.id: finding for finding in findings}


def fired(findings: list[Finding]) -> set[str]:
    return {finding.id for finding in findings if finding.passed is False}


def cheaply(answer: Callable[[Tensor], Tensor] | nn.Module, threat: ThreatModel = LINF) -> set[str]:
    return fired(cheap_findings(subject_of(answer, threat)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "epsilon"), [("linf", 0.05), ("linf", 0.2), ("l2", 0.1), ("l1", 0.1), ("l0", 2)], ids=str
)
def test_an_honest_linear_model_passes_every_test_in_every_norm(norm: str, epsilon: float) -> None:
    found = diagnose(subject_of(r1, ThreatModel(norm, epsilon)), budget=SMALL)
    assert [finding.id for finding in found] == list(ALL)
    assert masking_suspected(found) == []
    assert fired(found) <= {"D8", "D9"}
    assert all(finding.value is None or math.isfinite(finding.value) for finding in found)
    assert by_id(found)["D7"].value == pytest.approx(1.0, abs=1e-3)
    if norm == "linf" and epsilon == 0.05:
        assert by_id(found)["D12"].value == pytest.approx(1.0, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_cheap_tests_are_silent_on_a_trained_network(norm: str, digit_net: nn.Module, digits: Splits) -> None:
    threat = ThreatModel(norm, {"linf": 0.1, "l2": 1.0, "l1": 8, "l0": 10}[norm])
    found = cheap_findings(EvaluationTarget(digit_net, digits.test, threat))
    assert [finding.id for finding in found] == list(CHEAP)
    assert fired(found) == set()
    assert by_id(found)["catastrophic_overfitting"].passed is (True if norm in ("linf", "l2") else None)


def test_saturated_logits_fire_d6_and_d10() -> None:
    """R5: cross-entropy and the probability margin have no gradient, DLR and the margin have."""
    found = diagnose(subject_of(r5), tests=("D6", "D10", "zero_gradient", "D12"), budget=SMALL)
    assert fired(found) == {"D6", "D10"}
    assert by_id(found)["D6"].value == 1.0
    assert (by_id(found)["D10"].value or 0) > 0.8
    assert "margin" in by_id(found)["D6"].words
    assert len(masking_suspected(found)) == 2


@pytest.mark.slow
def test_dead_units_have_no_gradient_but_random_starts_break_them() -> None:
    """R6 at linf 0.12: one random start of PGD 0.17, of APGD 0.29, from x never.

    The reference has eight starts, which break 19 of 20 images: its verdict is right, so that D2 and D5 pass.
    """
    tests = ("zero_gradient", "D2", "D5", "D6", "D9", "D7", "D12", "quantised_input")
    found = diagnose(subject_of(r6, ThreatModel("linf", 0.12)), tests=tests, budget=SMALL)
    assert {"zero_gradient", "D6", "D9"} == fired(found)
    assert by_id(found)["D7"].passed is None, "around x, model and gradient agree that nothing changes"
    assert by_id(found)["D12"].passed is None
    assert "No objective has a gradient" in by_id(found)["D6"].words


def test_queries_and_random_points_beat_gradients_that_are_blocked() -> None:
    """R1 without a gradient at linf 0.13: a random point is adversarial with probability 0.0019 (0.46^4 / 24)."""
    target = subject_of(lambda x: r1(x.detach()), ThreatModel("linf", 0.13))
    found = diagnose(target, tests=("D2", "D5"), budget=SMALL)
    assert fired(found) == {"D2", "D5"}
    assert by_id(found)["D5"].value == 20
    assert (by_id(found)["D2"].value or 0) > 0.3


@pytest.mark.slow
def test_below_its_radius_nothing_breaks_the_dead_units() -> None:
    found = diagnose(subject_of(r6, ThreatModel("linf", 0.095)), tests=("D1", "D2", "D5", "D9"), budget=SMALL)
    assert fired(found) == set()


def test_noise_on_the_logits_is_randomness() -> None:
    """R12: N(0, 0.05); tests that attack cannot be decided and say so, the average over draws is attacked."""
    noisy = Toy(lambda x: r1(x) + 0.05 * torch.randn(len(x), 4))
    found = diagnose(subject_of(noisy), budget=SMALL)
    assert {"randomized", "D11"} <= fired(found)
    assert all(by_id(found)[f"D{number}"].passed is None for number in (1, 2, 3, 4, 5, 7, 8, 9, 10))
    assert "ExpectationOverTransformation" in by_id(found)["D1"].words
    averaged = ExpectationOverTransformation(noisy)
    assert "randomized" not in cheaply(averaged)
    data = centres()
    attack = APGD(40, start="sphere")
    result = attack(
        averaged,
        data.floats(),
        data.labels,
        threat=ThreatModel("linf", 0.12),
        generator=KeyedGenerator(0, data.ids),
    )
    assert result.broken.all()


def test_probabilities_are_no_logits() -> None:
    assert cheaply(lambda x: r1(x).softmax(1)) == {"softmax_output"}
    assert masking_suspected(cheap_findings(subject_of(lambda x: r1(x).softmax(1)))) == []


def test_rounding_the_input_hides_it_and_bpda_finds_it() -> None:
    """R12: round(255 x) / 255 before R1; the attack at 0.11 through the identity succeeds."""

    def rounded(x: Tensor) -> Tensor:
        return (255 * x).round() / 255

    found = cheap_findings(subject_of(lambda x: r1(rounded(x))))
    assert {"quantised_input", "zero_gradient", "D6", "D11"} == fired(found)
    data = centres()
    for net, share in ((Toy(lambda x: r1(rounded(x))), 0.0), (nn.Sequential(BPDA(rounded), Toy(r1)), 1.0)):
        result = PGD(20, start="none")(
            net, data.floats(), data.labels, threat=LINF, generator=KeyedGenerator(0, data.ids)
        )
        assert float(result.broken.float().mean()) == share


def functional(x: Tensor) -> Tensor:
    return torch.func.grad(lambda here: r1(here)[:, 0].sum())(x)


def aliased(x: Tensor) -> Tensor:
    from torch.autograd import grad

    with torch.enable_grad():
        here = x.detach().requires_grad_()
        return grad(r1(here).square().sum(), here)[0]


def backward(x: Tensor) -> Tensor:
    with torch.enable_grad():
        here = x.detach().requires_grad_()
        r1(here).square().sum().backward()
    assert here.grad is not None
    return here.grad


@pytest.mark.parametrize("gradient", [functional, aliased, backward], ids=["torch.func", "grad", "backward"])
def test_gradients_taken_inside_the_model_are_seen(gradient: Callable[[Tensor], Tensor]) -> None:
    assert {"dynamic", "D11"} <= cheaply(lambda x: r1((x + 1e-3 * gradient(x)).clamp(0, 1)))


def test_the_trace_is_taken_off_again() -> None:
    import sys

    def mine(frame: object, event: str, argument: object) -> None: ...

    before = sys.getprofile()
    sys.setprofile(mine)
    try:
        diagnose(subject_of(r1), tests=("dynamic",))
        assert sys.getprofile() is mine
    finally:
        sys.setprofile(before)


def with_dropout() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Toy(lambda x: torch.cat([r1(x)] * 4, 1)), nn.Dropout(0.5), nn.Linear(16, 4))


def test_training_mode_is_noticed_only_where_it_matters() -> None:
    """R12: dropout in training mode; the headline does not change, since evaluations switch it off."""
    net = with_dropout()
    with torch.no_grad():
        net[2].weight.copy_(torch.cat([torch.eye(4)] * 4, 1) / 4)
        net[2].bias.zero_()
    subject = subject_of(net.train())
    found = cheap_findings(subject)
    assert {"eval_mode", "randomized"} <= fired(found)
    assert masking_suspected(found) == []
    assert net.training
    assert {"eval_mode", "randomized"}.isdisjoint(cheaply(net.eval()))
    assert "eval_mode" not in cheaply(nn.Sequential(Toy(r1), nn.Identity()).train())


def test_batch_statistics_are_noticed_and_left_as_they_were() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), Toy(lambda x: r1(x + GREY)))
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    noise = KeyedGenerator(3, torch.arange(40)).integers(256, 1, 2, 2).to(torch.uint8)
    data = ImageData(noise, torch.zeros(40, dtype=torch.int64), torch.arange(40), ("a", "b", "c", "d"), "noise")
    found = diagnose(EvaluationTarget(net.train(), data, LINF), tests=("eval_mode", "randomized"))
    assert fired(found) == {"eval_mode"}
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())


class Stubborn(nn.Dropout):
    """Monte-Carlo dropout: it will not be switched off."""

    def train(self, mode: bool = True) -> "Stubborn":
        self.training = True
        return self


def test_dropout_that_will_not_be_switched_off_is_randomness() -> None:
    net = nn.Sequential(Toy(r1), Stubborn(0.5))
    found = cheap_findings(subject_of(net))
    assert {"eval_mode", "randomized"} <= fired(found)


@torch.no_grad()
def without_graph(x: Tensor) -> Tensor:
    return r1(x)


@pytest.mark.parametrize(
    "answer", [lambda x: r1(x.detach()), without_graph, lambda x: torch.from_numpy(r1(x.detach()).numpy())]
)
def test_blocked_gradients_are_seen(answer: Callable[[Tensor], Tensor]) -> None:
    found = cheap_findings(subject_of(answer))
    assert {"blocked_gradient", "zero_gradient", "quantised_input", "D6"} <= fired(found)
    assert masking_suspected(found)


@pytest.mark.parametrize(
    ("threat", "search"),
    [("linf:0.1", "run Square."), ("l0:1", "run sparse-RS."), ("contrast:0.2", "(parameter_search).")],
)
def test_the_advice_names_a_search_that_the_threat_has(threat: str, search: str) -> None:
    subject = replace(subject_of(without_graph), threat=parse_threat(threat))
    (found,) = diagnose(subject, tests=("blocked_gradient",))
    assert found.words.endswith(search)


def test_a_backward_pass_that_lies_fires_d7() -> None:
    """The gradient of another function: it has the right size and points away."""

    def lying(x: Tensor) -> Tensor:
        wrong = r1(2 * GREY - x)
        return r1(x).detach() + wrong - wrong.detach()

    found = diagnose(subject_of(lying), tests=("D1", "D6", "D7", "D12", "zero_gradient"), budget=SMALL)
    assert fired(found) == {"D7", "D12"}
    assert by_id(found)["D7"].value == pytest.approx(-1.0, abs=1e-3)


def test_the_same_answer_to_every_image_is_no_robustness(digits: Splits) -> None:
    label = int(digits.test.labels.bincount().argmax())
    constant = Toy(lambda x: nn.functional.one_hot(torch.full((len(x),), label), 10) + 0.0 * x.flatten(1)[:, :1])
    half = digits.test.select((digits.test.labels == label) | (torch.arange(200) < 20))
    found = diagnose(EvaluationTarget(constant, half, LINF), tests=("constant_output", "D3"), budget=SMALL)
    assert fired(found) == {"constant_output", "D3"}
    alike = diagnose(subject_of(r1), tests=("constant_output",))
    assert alike[0].passed is None, "one image cannot tell"


def test_logits_that_are_no_numbers_are_counted() -> None:
    def sometimes(x: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None] < 3, torch.nan, r1(x))

    found = diagnose(subject_of(sometimes), tests=("nan_logits",))
    assert found[0].passed is False
    assert found[0].value == 3
    everywhere = diagnose(subject_of(lambda x: r1(x) / 0 * 0), budget=SMALL)
    assert "nan_logits" in fired(everywhere)
    assert all(finding.value is None or math.isfinite(finding.value) for finding in everywhere)


def test_one_step_that_beats_many_fires_d1() -> None:
    """A valley inside a ridge: cross-entropy leads PGD back, one long step jumps over."""

    def ridge(x: Tensor) -> Tensor:
        offset = (x.flatten(1) - GREY).sum(1) / 4
        height = torch.where(offset.abs() > 0.1, 1.0, 4 * (offset + 0.001) * (0.02 - offset).sign() - 0.2)
        return torch.stack([torch.zeros_like(height), height, height - 5, height - 5], 1)

    found = diagnose(subject_of(ridge), tests=("D1",), budget=SMALL)
    assert fired(found) == {"D1"}


@pytest.mark.parametrize(("count", "overfitted"), [(40, True), (6, False)])
def test_one_step_that_jumps_over_a_ridge_is_catastrophic_overfitting(count: int, overfitted: bool) -> None:
    """The margin rises until 0.07 and is negative beyond: half a step and PGD break all images, FGSM none."""

    def ridge(x: Tensor) -> Tensor:
        offset = (x.flatten(1) - GREY).sum(1) / 4
        height = torch.where(offset < 0.07, 4 * offset - 0.1, -0.1)
        return torch.stack([torch.zeros_like(height), height, height - 5, height - 5], 1)

    target = EvaluationTarget(Toy(ridge), centres(count), LINF)
    found = diagnose(target, tests=("catastrophic_overfitting",), budget=SMALL)[0]
    assert found.passed is not overfitted, "six images are too few for a verdict"
    assert found.value == 1.0
    assert bool(masking_suspected([found])) is overfitted
    honest = diagnose(subject_of(r1, ThreatModel("linf", 0.2)), tests=("catastrophic_overfitting",), budget=SMALL)
    assert (honest[0].passed, honest[0].value) == (True, 0.0)
    beyond = diagnose(subject_of(r1, ThreatModel("l1", 0.2)), tests=("catastrophic_overfitting",), budget=SMALL)
    assert beyond[0].passed is None


def test_nothing_right_or_nothing_allowed_is_open() -> None:
    wrong = diagnose(subject_of(lambda x: r1(x).flip(1)), budget=SMALL)
    assert all(finding.passed is None for finding in wrong if finding.id in ("D1", "D5", "D6", "D12"))
    assert fired(wrong) == set()
    still = diagnose(subject_of(r1, ThreatModel("linf", 0)), budget=SMALL)
    assert by_id(still)["D2"].passed is None
    assert fired(still) == set()


@pytest.mark.slow
def test_findings_depend_on_the_seed_and_on_nothing_else() -> None:
    least = Budget(steps=8, unbounded_steps=8, restarts=2, queries=20, few=4, points=300, directions=8)
    whole = diagnose(subject_of(r6), budget=least)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    subject = EvaluationTarget(Toy(r6), centres(shape=(1, 1, 2)), LINF, batch_size=7)
    alone = [finding for name in reversed(ALL) for finding in diagnose(subject, tests=(name,), budget=least)]
    assert torch.equal(torch.get_rng_state(), state)
    assert alone[::-1] == whole


def test_the_model_is_left_as_it_was() -> None:
    net = with_dropout().train()
    net[2].weight.grad = torch.ones_like(net[2].weight)
    diagnose(subject_of(net), budget=SMALL)
    assert all(part.training for part in net.modules())
    assert net[2].weight.requires_grad
    assert torch.equal(net[2].weight.grad, torch.ones_like(net[2].weight))


def test_only_signs_of_masking_change_the_headline() -> None:
    def failed(name: str) -> Finding:
        return Finding(name, "", False, None, "", name)

    assert masking_suspected([failed(name) for name in ALL if name != "eval_mode"]) == [
        name for name in ALL if name in MASKING
    ]
    assert masking_suspected([failed("randomized"), failed("eval_mode"), failed("D9")]) == []
    assert masking_suspected([Finding("D1", "", None, None, "", ""), Finding("D2", "", True, 0.0, "", "")]) == []


def test_a_start_that_is_adversarial_already_needs_no_gradient() -> None:
    """DLR is 1 and flat where the label has fallen to the third place: no sign of masking."""
    found = diagnose(subject_of(r1, ThreatModel("linf", 0.5)), tests=("zero_gradient",))
    assert found[0].passed


def test_wrong_words_are_refused() -> None:
    with pytest.raises(ValueError, match="no diagnostic 'D13'"):
        diagnose(subject_of(r1), tests=("D13",))
    with pytest.raises(ValueError, match="at least 1 image"):
        diagnose(subject_of(r1), count=0)
    with pytest.raises(ValueError, match="one epsilon"):
        diagnose(subject_of(r1, ThreatModel("linf", torch.full((40,), 0.1))))
