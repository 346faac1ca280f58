"""Batch sizes that are new to a process: their time, their expected number, and their part of a prediction."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustly.attacks import FAB, PGD
from robustly.evaluation import Suite
from robustly.performance import AttackTime, Floor, Meter, Survival, predict_suite
from robustly.performance.attack_times import _removes
from robustly.performance.new_sizes import TRIED, expected_new_sizes, seconds_of_new_size
from robustly.performance.timing import Spread, Work
from robustly.threats.lp import ThreatModel


class Counted(Meter):
    """A clock that reads the seconds that the works return."""

    def seconds(self, work: Work) -> float:
        return float(work())  # type: ignore[arg-type]


def first_costs(extra: float) -> tuple[Callable[[Tensor], Work], set[int]]:
    """Passes of 1 s for each image, and `extra` for the first of a batch size."""
    seen: set[int] = set()

    def pass_of(x: Tensor) -> Work:
        def work() -> float:
            new = len(x) not in seen
            seen.add(len(x))
            return len(x) + (extra if new else 0.0)

        return work

    return pass_of, seen


@pytest.mark.parametrize("count", [3, 4, 100])
def test_the_first_pass_of_a_size_is_compared_with_the_second(count: int) -> None:
    pass_of, seen = first_costs(7.0)
    assert seconds_of_new_size(pass_of, torch.zeros(count, 1), Counted()) == 7.0
    assert len(seen) == min(TRIED, count - 2)
    assert all(1 < size < count for size in seen)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_for_another_size(count: int) -> None:
    assert seconds_of_new_size(first_costs(7.0)[0], torch.zeros(count, 1), Counted()) == 0.0


def test_a_later_pass_that_happens_to_be_slower_costs_nothing() -> None:
    assert seconds_of_new_size(first_costs(-1.0)[0], torch.zeros(9, 1), Counted()) == 0.0


def test_expected_sizes_in_closed_form() -> None:
    # all images break at the first step: one new size for each batch
    assert expected_new_sizes(20, 1 / 20, 60, 3) == pytest.approx(3)
    # one image of each batch: one new size, but for those that are not broken within the steps
    assert expected_new_sizes(4, 0.5, 5, 5) == pytest.approx(5 * (1 - 0.5**4))
    # very many images: a size at every step
    assert expected_new_sizes(10, 0.3, 10**6, 1) == pytest.approx(10, rel=1e-3)
    assert expected_new_sizes(20, 0.3, 0, 3) == expected_new_sizes(20, 0.3, 5, 0) == 0


@pytest.mark.parametrize("images", [3.0, 40.0, 500.0])
def test_fewer_sizes_than_broken_images_and_steps(images: float) -> None:
    found = expected_new_sizes(20, 0.3, images, 4)
    assert 0 < found <= min(images, 4 * 20)


def test_new_sizes_are_part_of_the_expected_time_at_most_once_each() -> None:
    one = Spread(1.0, 1.0, 1.0, 3)
    suite = Suite("one", {"pgd": PGD(steps=20)})

    def expected(new_size: float, count: int) -> float:
        found = predict_suite(
            suite,
            ThreatModel("linf", 0.1),
            count=count,
            classes=10,
            size=784,
            floor=Floor(one, one),
            times={"pgd": AttackTime(one, one, "float32", 0.0, 0.0, 8, new_size=new_size)},
            survival=Survival(1.0, 0.5, 0.3, "", 10**6),
            batch_size=64,
        )
        assert found.expected is not None
        assert found.expected.median <= found.upper.median
        return found.expected.median

    alone = expected_new_sizes(20, 0.3, 32, 1) + 1  # and the size that it begins with
    assert expected(2.0, 64) - expected(0.0, 64) == pytest.approx(2 * alone, rel=1e-6)
    assert expected(2.0, 10_000) - expected(0.0, 10_000) == pytest.approx(2 * 64)


def test_attacks_that_keep_broken_images_meet_no_new_sizes() -> None:
    assert _removes(PGD())
    assert not _removes(PGD(early_stop=False))
    assert not _removes(FAB())
