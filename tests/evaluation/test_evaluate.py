"""Evaluation: verdicts, modes, independence of batch size, the security curve, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import ATTACKS, PGD
from robustly.data import ImageData, Splits
from robustly.evaluation import EvaluationError, Suite, evaluate
from robustly.evidence import Evidence
from robustly.threats.lp import ThreatModel

THREAT = ThreatModel("linf", 0.1)
SUITE = Suite("test", {"pgd_10": ATTACKS["pgd_10"], "cw_20": ATTACKS["cw_20"]}, curve="pgd_10")


@pytest.fixture(scope="module")
def evidence(digit_net: nn.Module, digits: Splits) -> Evidence:
    return evaluate(digit_net, digits.test, THREAT, SUITE, batch_size=64, curve_count=100)


@pytest.mark.slow
def test_the_numbers_are_those_of_an_independent_count(
    evidence: Evidence, digit_net: nn.Module, digits: Splits
) -> None:
    with torch.no_grad():
        correct = digit_net(digits.test.floats()).argmax(1) == digits.test.labels
    assert evidence.summary.metrics.clean.hits == int(correct.sum())
    fallen = set()
    for name in SUITE.attacks:
        stored = evidence.images.attacks[name]
        ids, images = stored.ids, torch.from_numpy(stored.images)
        place = {int(i): row for row, i in enumerate(digits.test.ids)}
        rows = torch.tensor([place[int(i)] for i in ids])
        with torch.no_grad():
            wrong = digit_net(images).argmax(1) != digits.test.labels[rows]
        assert wrong.all()
        assert (images - digits.test.floats(rows)).abs().max() <= 0.1 + 1e-6
        assert evidence.summary.metrics.attacks[name].robust.hits == int(correct.sum()) - len(ids)
        fallen |= set(ids.tolist())
    assert evidence.summary.metrics.worst_case.robust.hits == int(correct.sum()) - len(fallen)
    assert 0 < len(fallen) < len(digits.test)


@pytest.mark.slow
def test_verdicts_do_not_depend_on_batch_size_or_order(
    evidence: Evidence, digit_net: nn.Module, digits: Splits
) -> None:
    flipped = digits.test.select(torch.arange(len(digits.test)).flip(0))
    other = evaluate(digit_net, flipped, THREAT, SUITE, batch_size=7, curve_count=None)
    for name in SUITE.attacks:
        mine, theirs = other.table.attacks[name], evidence.table.attacks[name]
        assert np.array_equal(mine.broken[::-1], theirs.broken)
        assert np.array_equal(mine.broken_8bit[::-1], theirs.broken_8bit)


@pytest.mark.slow
def test_worst_case_mode_has_the_same_worst_case_for_fewer_passes(
    evidence: Evidence, digit_net: nn.Module, digits: Splits
) -> None:
    spared = evaluate(digit_net, digits.test, THREAT, SUITE, mode="worst_case", batch_size=64)
    assert np.array_equal(spared.table.worst_case.broken, evidence.table.worst_case.broken)
    assert spared.table.attacks["cw_20"].forwards.sum() < evidence.table.attacks["cw_20"].forwards.sum()
    assert spared.summary.metrics.attacks["cw_20"].robust == spared.summary.metrics.worst_case.robust


@pytest.mark.slow
def test_the_security_curve_starts_clean_and_never_rises(evidence: Evidence) -> None:
    curve = evidence.summary.metrics.security_curve
    assert curve is not None
    assert (curve.epsilon[0], curve.epsilon_text[0], curve.count) == (0, "0", 100)
    assert list(curve.accuracy) == sorted(curve.accuracy, reverse=True)
    assert curve.accuracy[0] == pytest.approx(evidence.table.correct[:100].mean())


@pytest.mark.slow
def test_l0_and_l2_evaluations_run(digit_net: nn.Module, digits: Splits) -> None:
    few = digits.test.select(torch.arange(40))
    suite = Suite("short", {"pgd": PGD(steps=10)}, curve="pgd")
    for threat in (ThreatModel("l2", 1.5), ThreatModel("l1", 8), ThreatModel("l0", 12)):
        found = evaluate(digit_net, few, threat, suite)
        assert found.summary.metrics.worst_case.robust.hits < found.summary.metrics.clean.hits


class _Answering(nn.Module):
    """A network whose logits are spoilt in some way."""

    def __init__(self, net: nn.Module, spoil: object) -> None:
        super().__init__()
        self.net, self.spoil = net, spoil

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(self.net(x), x)  # type: ignore[operator]


def test_nan_on_clean_images_is_refused(digit_net: nn.Module, digits: Splits) -> None:
    net = _Answering(
        digit_net, lambda z, x: z.masked_fill(x.mean((1, 2, 3), keepdim=False)[:, None] > 0.1, float("nan"))
    )
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        evaluate(net, digits.test, THREAT, SUITE)


def test_nan_under_attack_counts_as_broken_and_is_said(digit_net: nn.Module, digits: Splits) -> None:
    few = digits.test.select(torch.arange(60))
    clean = few.floats()
    # answers NaN as soon as an image is no longer a multiple of 1/255
    net = _Answering(
        digit_net,
        lambda z, x: z.masked_fill(
            ((x * 255 - (x * 255).round()).abs() > 1e-3).flatten(1).any(1)[:, None], float("nan")
        ),
    )
    assert net(clean).isfinite().all()
    with pytest.warns(UserWarning, match="NaN"):
        found = evaluate(net, few, THREAT, SUITE)
    assert found.summary.metrics.worst_case.robust.hits == 0
    assert found.summary.metrics.invalid == found.summary.metrics.clean.hits
    assert found.summary.metrics.worst_case.robust_8bit.hits == 0
    assert len(found.images.attacks["pgd_10"]) == len(found.images.eight_bit["pgd_10"]) == 0


@pytest.mark.slow
def test_probabilities_are_warned_of(digit_net: nn.Module, digits: Splits) -> None:
    net = _Answering(digit_net, lambda z, x: z.softmax(1))
    with pytest.warns(UserWarning, match="probabilities, not logits"):
        found = evaluate(net, digits.test.select(torch.arange(20)), THREAT, SUITE)
    assert "probabilities" in found.summary.warnings[0]


def test_another_number_of_outputs_is_refused(digit_net: nn.Module, digits: Splits) -> None:
    wider = replace(digits.test, classes=(*digits.test.classes, "eleven"))
    with pytest.raises(EvaluationError, match=r"\b10 outputs.*\b11 classes"):
        evaluate(digit_net, wider, THREAT, SUITE)


def test_per_example_epsilon_is_refused(digit_net: nn.Module, digits: Splits) -> None:
    threat = ThreatModel("linf", torch.full((len(digits.test),), 0.1))
    with pytest.raises(EvaluationError, match="one epsilon"):
        evaluate(digit_net, digits.test, threat, SUITE)


def test_an_empty_or_misnamed_suite_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Suite("none", {})
    with pytest.raises(ValueError, match="plain words"):
        Suite("dots", {"a.b": PGD()})
    with pytest.raises(ValueError, match="curve"):
        Suite("curve", {"a": PGD()}, curve="b")


def test_a_model_without_a_right_answer_is_evaluated(digits: Splits) -> None:
    data: ImageData = digits.test.select(digits.test.labels != 0)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nn.init.zeros_(constant[1].weight)
    nn.init.zeros_(constant[1].bias)
    found = evaluate(constant, data, THREAT, SUITE)
    assert found.summary.metrics.clean.hits == 0
    assert found.summary.metrics.worst_case.robust.share == 0
