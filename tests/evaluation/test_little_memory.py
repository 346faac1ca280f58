"""Evaluations of a model that fits the memory with few images only: the same evidence, in halves of batches."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import ATTACKS, FAB, PGD, Attack, Square
from robustly.data import Splits
from robustly.evaluation import EvaluationTarget, Suite, evaluate
from robustly.evaluation.batch_size import measure
from robustly.evaluation.confirmation import attack_rows
from robustly.evaluation.target import no_progress
from robustly.evidence.schema import AttackColumns, column_fields
from robustly.memory import in_halves
from robustly.threats.lp import ThreatModel

pytestmark = pytest.mark.slow

THREAT = ThreatModel("linf", 0.1)
SOME: dict[str, Attack] = {"pgd": PGD(steps=4), "fab": FAB(steps=3), "square": Square(queries=30)}


class Small(nn.Module):
    """A network that has memory for some images.

    Args:
        net: the network.
        most: images that fit.
    """

    def __init__(self, net: nn.Module, most: int) -> None:
        super().__init__()
        self.net, self.most, self.failed = net, most, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.net(x)
        return logits


@pytest.mark.parametrize("name", ["pgd", "fab", "square"])
@pytest.mark.parametrize("most", [1, 3, 11])
def test_an_attack_finds_the_same_with_little_memory(
    name: str, most: int, digit_net: nn.Module, digits: Splits
) -> None:
    net = digit_net.double()  # rounding does not depend on the batch
    try:
        rows = torch.arange(12)
        found = []
        for model in (net, small := Small(net, most)):
            target = EvaluationTarget(model.eval(), digits.test, THREAT, batch_size=12)
            found.append(attack_rows(target, SOME[name], rows, name, no_progress))
        one, other = found
        assert small.failed
        for column in column_fields(AttackColumns):
            assert np.allclose(getattr(one.columns, column), getattr(other.columns, column), equal_nan=True), column
        assert np.array_equal(one.images.ids, other.images.ids)
        assert np.allclose(one.images.images, other.images.images, atol=1e-6)
        assert one.unconfirmed == other.unconfirmed
    finally:
        digit_net.float()


def test_no_attack_fails_for_want_of_memory(digit_net: nn.Module, digits: Splits) -> None:
    suite = Suite("small", {"pgd_20": ATTACKS["pgd_20"]}, curve=None)
    data = digits.test.select(torch.arange(120))
    plain = evaluate(digit_net, data, THREAT, suite, batch_size=100)
    model = Small(digit_net, 60).eval()
    found = evaluate(model, data, THREAT, suite, batch_size=100)
    assert model.failed
    assert found.summary.failures == {}
    assert np.array_equal(found.table.worst_case.broken, plain.table.worst_case.broken)


def test_batch_sizes_that_do_not_fit_are_not_chosen(digit_net: nn.Module, digits: Splits) -> None:
    model = Small(digit_net, 20).eval()
    found = measure(EvaluationTarget(model, digits.test, THREAT), sizes=(8, 16, 32, 64))
    assert found.batch_size in (8, 16)
    assert found.seconds < float("inf")


@pytest.mark.parametrize("count", [1, 2, 5, 64])
def test_halves_come_in_their_order(count: int) -> None:
    tried: list[int] = []

    def work(rows: Tensor) -> list[int]:
        tried.append(len(rows))
        if len(rows) > 3:
            raise MemoryError
        return list(map(int, rows))

    found = in_halves(work, torch.arange(count))
    assert [value for part in found for value in part] == list(range(count))
    assert tried[0] == count


@pytest.mark.parametrize("error", [MemoryError(), ValueError("of its own")])
def test_errors_of_a_single_row_and_other_errors_are_raised(error: Exception) -> None:
    def work(rows: Any) -> None:
        if len(rows) == 1 or isinstance(error, ValueError):
            raise error
        raise MemoryError

    with pytest.raises(type(error)):
        in_halves(work, np.arange(6))
