"""Keyed random numbers: a function of (seed, purpose, id, position) and of nothing else, and random."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustly.randomness import KeyedGenerator, derive_seed, interleaved, shuffled


@pytest.mark.slow
@given(st.integers(-(2**62), 2**62), st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True))
def test_an_example_draws_the_same_alone_and_in_any_company(seed: int, ids: list[int]) -> None:
    together = KeyedGenerator(seed, torch.tensor(ids))
    for row, identity in enumerate(ids):
        alone = KeyedGenerator(seed, torch.tensor([identity]))
        for draw in ("bits", "uniform", "normal"):
            assert torch.equal(getattr(together, draw)(5)[row], getattr(alone, draw)(5)[0])
    backwards = together.select(torch.arange(len(ids)).flip(0))
    assert torch.equal(backwards.uniform(3), together.uniform(3).flip(0))


def test_purposes_seeds_and_ids_are_unrelated() -> None:
    ids = torch.arange(200)
    streams = [
        KeyedGenerator(0, ids),
        KeyedGenerator(1, ids),
        KeyedGenerator(0, ids + 1),
        KeyedGenerator(0, ids).fold("a"),
        KeyedGenerator(0, ids).fold("b"),
        KeyedGenerator(0, ids).fold("a", 1),
        KeyedGenerator(0, ids).fold("a").fold(1),
    ]
    draws = torch.stack([stream.uniform(500).flatten().double() for stream in streams])
    correlation = torch.corrcoef(draws) - torch.eye(len(streams))
    assert correlation.abs().max() < 5 / 100_000**0.5
    rows = KeyedGenerator(0, ids).uniform(500).double()
    assert (torch.corrcoef(rows) - torch.eye(200)).abs().max() < 6 / 500**0.5


def test_uniform_is_uniform() -> None:
    draws = KeyedGenerator(3, torch.arange(1000)).uniform(101).flatten()
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, 100, 0, 1)
    chi_square = float(((counts - 1010) ** 2 / 1010).sum())
    assert 60 < chi_square < 150  # 99 degrees of freedom


def test_normal_is_normal() -> None:
    draws = KeyedGenerator(4, torch.arange(1000)).normal(7, 15).flatten().double()
    for power, moment, width in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs(float((draws**power).mean()) - moment) < 4.5 * width / len(draws) ** 0.5
    assert draws.isfinite().all()


def test_integers_and_shuffles() -> None:
    draws = KeyedGenerator(5, torch.arange(3000)).integers(7, 1)
    assert set(draws.flatten().tolist()) == set(range(7))
    assert torch.equal(shuffled(50, 1, "x").sort().values, torch.arange(50))
    assert torch.equal(shuffled(50, 1, "x"), shuffled(50, 1, "x"))
    assert not torch.equal(shuffled(50, 1, "x"), shuffled(50, 2, "x"))


def test_seeds_tell_types_and_boundaries_apart() -> None:
    seeds = {derive_seed(*parts) for parts in [(1,), ("1",), (1, 2), (12,), ("1", "2"), ("12",), ("1 2",), ()]}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("count", [2**18, 2**18 + 1])
def test_many_numbers_are_those_of_each_example_alone(count: int) -> None:
    """Above some number a CPU draws them example by example."""
    draws = KeyedGenerator(3, torch.tensor([5, 1, 9]))
    for draw in ("uniform", "normal"):
        whole = getattr(draws, draw)(count)
        assert whole.shape == (3, count)
        for row, one in enumerate((5, 1, 9)):
            assert torch.equal(whole[row], getattr(KeyedGenerator(3, torch.tensor([one])), draw)(count)[0])
    several = interleaved([draws, draws.fold("other")]).uniform(count)
    assert torch.equal(several[1::2], draws.fold("other").uniform(count))
