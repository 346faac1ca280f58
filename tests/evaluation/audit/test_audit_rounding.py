"""No verdict counts as a tie because of the size of logits: forgeries that use rounding as an excuse fail."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forging import edit_images, edit_table, hide, problems, reseal, without
from torch import Tensor, nn

from robustly.attacks import ATTACKS
from robustly.data import ImageData, Splits
from robustly.evaluation import EvaluationTarget, Suite, audit, evaluate
from robustly.evaluation.audit.rounding import Rounding, too_many_ties
from robustly.evidence import EvidenceTable, write_evidence
from robustly.threats.lp import ThreatModel

THREAT, SUITE = ThreatModel("linf", 0.08), Suite("small", {"pgd_10": ATTACKS["pgd_10"]})


class Changed(nn.Module):
    """A network with changed logits."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x))


def tiny(logits: Tensor) -> Tensor:
    return logits * 1e-6


def raised(logits: Tensor) -> Tensor:
    """Every margin is as before, the largest logit is not."""
    return logits + 1e5


def raised_further(logits: Tensor) -> Tensor:
    """The last digit of a logit is 0.06 here."""
    return logits + 1e6


def with_a_class_that_is_never_predicted(logits: Tensor) -> Tensor:
    return torch.cat([logits[:, :9], torch.full_like(logits[:, :1], -1e9)], dim=1)


CHANGES = [tiny, raised, raised_further, with_a_class_that_is_never_predicted]


@pytest.fixture(scope="module")
def images(digits: Splits) -> ImageData:
    return digits.test.select(torch.arange(40))


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_hidden_rows_fail_whatever_the_logits(
    digit_net: nn.Module, images: ImageData, tmp_path: Path, change: Callable[[Tensor], Tensor]
) -> None:
    net, hidden = Changed(digit_net, change).eval(), []
    write_evidence(evaluate(net, images, THREAT, SUITE, batch_size=40), tmp_path)
    honest = audit(tmp_path, EvaluationTarget(net, images, THREAT), SUITE)
    assert honest.passed, problems(honest)

    def hide_all(table: EvidenceTable) -> None:
        rows = np.flatnonzero(table.worst_case.broken & table.correct)
        hide(table, rows)
        hidden.extend(table.examples.id[rows].tolist())

    edit_table(tmp_path, hide_all)
    edit_images(tmp_path, without(hidden))
    reseal(tmp_path)
    assert "broke" in problems(audit(tmp_path, EvaluationTarget(net, images, THREAT), SUITE))


@pytest.mark.slow
def test_predictions_of_a_network_with_large_logits_cannot_be_chosen(
    digit_net: nn.Module, images: ImageData, tmp_path: Path
) -> None:
    def all_correct(table: EvidenceTable) -> None:
        table.examples.clean_prediction[:] = table.examples.label

    net = Changed(digit_net, raised_further).eval()
    write_evidence(evaluate(net, images, THREAT, SUITE, batch_size=40), tmp_path)
    edit_table(tmp_path, all_correct)
    reseal(tmp_path)
    found = problems(audit(tmp_path, EvaluationTarget(net, images, THREAT), SUITE))
    assert "clean predictions and margins" in found


def test_the_tolerance_follows_the_margins_and_the_last_digits() -> None:
    logits = torch.tensor([[3.0, 1.0, -5.0], [0.0, 4.0, 1.0], [7.0, 1.0, 1.0]])
    labels = torch.tensor([0, 1, 0])
    rounding = Rounding.of(logits, labels)
    assert rounding.scale == 3  # the margins are 2, 3 and 6
    assert torch.allclose(rounding.tolerance(logits), torch.full((3,), 3e-4), rtol=0.1)
    raised = Rounding.of(logits + 1e6, labels).tolerance(logits + 1e6)
    assert bool((raised < 2).all())
    lowered = logits.clone()
    lowered[:, 2] = -1e9
    assert bool((Rounding.of(lowered, labels).tolerance(lowered) < 1e-3).all())


def test_a_tie_is_a_difference_within_the_tolerance() -> None:
    rounding = Rounding(1.0)
    logits = torch.tensor([[1.0, 1.00005], [1.0, 1.001]])
    assert rounding.tied(logits).tolist() == [True, False]
    assert rounding.disagree(logits, np.array([0, 0])).tolist() == [False, True]
    assert rounding.disagree(logits, np.array([1, 2])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("count", "total", "expected"), [(1, 5, False), (2, 5, True), (3, 300, False), (4, 300, True)]
)
def test_one_tie_or_one_per_cent_is_allowed(count: int, total: int, expected: bool) -> None:
    assert too_many_ties(count, total) is expected
