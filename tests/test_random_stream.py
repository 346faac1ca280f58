"""The stream of random numbers, written out again with Python's integers, so that it never changes by accident."""

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.randomness import KeyedGenerator, derive_seed, shuffled

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def finalise(word: int) -> int:
    """SplitMix64's output function, as in Steele, Lea and Flood (2014), variant 13 of Stafford."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


def seed_of(*parts: int | str) -> int:
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % 2**63


def words(seed: int, identity: int, count: int) -> list[int]:
    key = finalise((identity * GOLDEN + seed_of(seed, "bits")) & WORD)
    return [finalise((key + place * GOLDEN) & WORD) for place in range(1, count + 1)]


def test_the_finaliser_is_the_published_one() -> None:
    """The first outputs of SplitMix64 from state 1234567, as published with its reference code."""
    outputs = [finalise((1234567 + place * GOLDEN) & WORD) for place in (1, 2, 3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(max_examples=30, deadline=None)
@given(st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62), st.integers(1, 9))
def test_bits_and_what_is_made_of_them(seed: int, identity: int, count: int) -> None:
    generator = KeyedGenerator(seed, torch.tensor([identity]))
    expected = words(seed, identity, count)
    assert [word & WORD for word in generator.bits(count)[0].tolist()] == expected
    assert generator.integers(10, count)[0].tolist() == [(word >> 1) % 10 for word in expected]
    half = (count + 1) // 2
    uniform = [word >> 40 for word in expected[:half]] + [word & 0xFFFFFF for word in expected[:half]]
    assert generator.uniform(count)[0].tolist() == [part / 2**24 for part in uniform[:count]]


def test_normal_numbers_are_those_of_box_and_muller() -> None:
    generator = KeyedGenerator(5, torch.tensor([17]))
    uniform = KeyedGenerator(5, torch.tensor([17])).uniform(6)[0].tolist()
    expected = [
        math.sqrt(-2 * math.log(first + 2**-24)) * turn(2 * math.pi * second)
        for turn in (math.cos, math.sin)
        for first, second in zip(uniform[:3], uniform[3:], strict=True)
    ]
    assert generator.normal(6)[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert generator.normal(5)[0].tolist() == pytest.approx(expected[:5], abs=1e-5)


def test_seeds_and_folds() -> None:
    assert derive_seed(3, "attack", 7) == seed_of(3, "attack", 7)
    ids = torch.arange(3)
    assert KeyedGenerator(3, ids).fold("attack", 7) == KeyedGenerator(seed_of(3, "attack", 7), ids)
    order = sorted(range(9), key=lambda i: words(seed_of("epoch", 1), i, 1)[0] ^ (1 << 63))
    assert shuffled(9, "epoch", 1).tolist() == order


def test_pairs_of_neighbours_fill_the_square() -> None:
    """Chi-square of neighbouring ids, seeds and places on a 16 x 16 grid: 255 degrees of freedom, fixed seed."""
    ids = torch.arange(40_000)
    here = KeyedGenerator(1, ids)
    pairs = {
        "ids": (here.uniform(1)[:, 0], KeyedGenerator(1, ids + 1).uniform(1)[:, 0]),
        "seeds": (here.uniform(1)[:, 0], KeyedGenerator(2, ids).uniform(1)[:, 0]),
        "places": tuple(here.uniform(2).unbind(1)),
        "folds": (here.fold("restart", 0).uniform(1)[:, 0], here.fold("restart", 1).uniform(1)[:, 0]),
        "words": (here.uniform(4)[:, 0], here.uniform(4)[:, 1]),
    }
    for name, (first, second) in pairs.items():
        cell = (first * 16).long() * 16 + (second * 16).long()
        counts = torch.bincount(cell, minlength=256).double()
        expected = len(ids) / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert 170 < chi_square < 350, name  # 1e-4 on either side
