"""Square finds about as much as another implementation with as many queries."""

import pytest
import torch
from torch import nn

from robustly.attacks.square import Square
from robustly.data import Splits
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(("norm", "epsilon", "queries"), [("linf", 0.12, 100), ("l2", 1.5, 100)])
def test_square_breaks_as_many_digits_as_torchattacks(
    digits: Splits, digit_net: nn.Module, norm: str, epsilon: float, queries: int
) -> None:
    """McNemar's test on the digits that only one of the two breaks: at most three standard deviations apart."""
    torchattacks = pytest.importorskip("torchattacks")
    x, y = digits.test.floats()[:150], digits.test.labels[:150]
    peer = torchattacks.Square(
        digit_net, norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, n_queries=queries, loss="margin",
        resc_schedule=False, seed=0,
    )  # fmt: skip
    with torch.no_grad():
        theirs = digit_net(peer(x, y)).argmax(1) != y
    generator = KeyedGenerator(0, torch.arange(len(x)))
    ours = Square(queries)(digit_net, x, y, threat=ThreatModel(norm, epsilon), generator=generator).broken
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    assert 20 < int(ours.sum()) < 130, "the budget tells the two apart only where some digits fall and some stand"
    assert abs(only_ours - only_theirs) <= 3 * max(only_ours + only_theirs, 1) ** 0.5
