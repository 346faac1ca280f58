"""Searches address a whole batch without an index: the results are those of the same rows with one."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import APGD, PGD, Attack, AttackResult
from robustly.attacks.core.search import Search
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator
from robustly.threats import Threat, parse_threat
from robustly.threats.lp import ThreatModel

LINF = ThreatModel("linf", 0.1)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def attacked(attack: Attack, threat: Threat, x: Tensor, y: Tensor) -> AttackResult:
    return attack(small_net(), x, y, threat=threat, generator=KeyedGenerator(0, torch.arange(len(x))))


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.3", "rotation:20"])
@pytest.mark.parametrize(
    "attack", [PGD(4), PGD(4, early_stop=False, restarts=2), PGD(4, early_stop=False, keep="last"), APGD(4)]
)
def test_another_example_that_is_not_attacked_changes_nothing(attack: Attack, threat: str) -> None:
    x = torch.rand(5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = small_net()(x).argmax(1)
    whole = attacked(attack, parse_threat(threat), x[:4], y[:4])
    y[4] = (y[4] + 1) % 3  # misclassified: the rows of the others are now a part of the batch
    part = attacked(attack, parse_threat(threat), x, y)
    for name in [item.name for item in fields(AttackResult)]:
        one, other = getattr(whole, name), getattr(part, name)
        if one is None:
            assert other is None
        else:
            assert torch.equal(one, other[:4]), name


def test_the_images_of_the_caller_are_not_written_to() -> None:
    x = torch.full((3, 1, 4, 4), 0.5, dtype=torch.float64)
    y = small_net()(x).argmax(1)
    for start in ("none", "random", "gaussian"):
        attacked(PGD(3, start=start, early_stop=False), LINF, x, y)
        assert bool((x == 0.5).all())


def search_of(count: int) -> Search:
    x = torch.rand(count, 1, 4, 4, dtype=torch.float64)
    return Search(small_net(), x, ClassificationGoal(torch.zeros(count, dtype=torch.int64)), LINF)


def test_all_rows_select_nothing_and_others_once() -> None:
    search = search_of(4)
    everyone = search.unbroken
    assert everyone.tolist() == [0, 1, 2, 3]
    assert search.goal_of(everyone) is search.goal
    assert search.set_of(everyone) is search.threat_set
    assert search.taken(search.theta, everyone) is search.theta
    some = torch.tensor([3, 1])
    assert search.goal_of(some) is search.goal_of(some)
    assert search.set_of(some).x.tolist() == search.x[[3, 1]].tolist()
    # a permutation of all rows is not all rows in their order
    turned = torch.tensor([3, 2, 1, 0])
    search.put(search.distance, turned, torch.arange(4.0))
    assert search.distance.tolist() == [3, 2, 1, 0]
    search.broken[2] = True
    assert search.unbroken.tolist() == [0, 1, 3]


def test_counts_and_values_are_set_in_place() -> None:
    search = search_of(3)
    forwards, everyone = search.forwards, search.unbroken
    search.add(search.forwards, everyone, torch.tensor([True, False, True]))
    search.add(search.forwards, torch.tensor([2, 0]), 1)
    assert forwards.tolist() == [2, 0, 2]
    search.put(search.highest, everyone, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float32))
    assert search.highest.dtype == torch.float64
    assert search.highest.tolist() == [1, 2, 3]


@pytest.mark.parametrize("count", [0, 1])
def test_small_batches(count: int) -> None:
    x = torch.rand(count, 1, 4, 4, dtype=torch.float64)
    found = attacked(PGD(2, early_stop=False), LINF, x, small_net()(x).argmax(1))
    assert found.forwards.tolist() == [4] * count
    assert found.x_adv.shape == x.shape
