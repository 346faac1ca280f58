"""Chains whose order the adversary chooses: each example has its own order, and all orders are in the set."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats import Chain, parse_threat

THREE = "rotation:30&shift:2&linf:0.1"


def images(count: int = 4) -> Tensor:
    return KeyedGenerator(1, torch.arange(count)).uniform(1, 6, 6).double()


def test_its_words_name_the_freedom() -> None:
    assert parse_threat(THREE).words().startswith("The following changes may be made in any order. Each image may")


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_an_order_is_the_chain_in_that_order(order: tuple[int, ...]) -> None:
    parts = THREE.split("&")
    x, free = images(), parse_threat(THREE).around(images())
    chain = parse_threat("+".join(parts[number] for number in order)).around(x)
    theta = free.random_start(KeyedGenerator(2, torch.arange(4)))
    theta[:, -3:] = torch.tensor(order).to(theta)
    own = free.chain.split(theta[:, :-3])
    assert torch.equal(free.apply(theta), chain.apply(chain.join([own[number] for number in order])))
    gradient = torch.ones_like(theta)
    size = free.default_step_size(3)
    stepped, along = free.step(theta, gradient, size), free.chain.split(gradient[:, :-3])
    moved = chain.step(
        chain.join([own[n] for n in order]), chain.join([along[n] for n in order]), chain.default_step_size(3)
    )
    assert torch.equal(stepped[:, -3:], theta[:, -3:])
    assert torch.equal(free.apply(stepped), chain.apply(moved))


def test_every_example_draws_its_own_order() -> None:
    free = parse_threat(THREE).around(images(60))
    theta = free.random_start(KeyedGenerator(2, torch.arange(60)))
    assert free.contains(theta).all()
    assert {tuple(row) for row in theta[:, -3:].long().tolist()} == set(permutations(range(3)))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(-3, 3), rows=st.permutations(range(4)))
def test_any_numbers_project_into_the_set_whatever_the_batch(seed: int, share: float, rows: list[int]) -> None:
    free = parse_threat(THREE).around(images())
    theta = share * KeyedGenerator(seed, torch.arange(4)).normal(free.identity().shape[1]).double()
    inside = free.project(theta)
    assert free.contains(inside).all()
    assert torch.equal(free.project(inside), inside)
    assert torch.allclose(free.select(torch.tensor(rows)).apply(inside[rows]), free.apply(inside)[rows], atol=1e-12)


def test_words_follow_the_order_and_leave_out_what_changes_nothing() -> None:
    free = parse_threat("rotation:30&shift:2&linf:0.1").around(images(2))
    theta = free.identity()
    theta[:, 0], theta[0, 1], theta[:, -3:] = 15.0, 2.0, torch.tensor([1, 2, 0]).to(theta)
    assert free.describe(theta) == [
        "moved 2 pixels right, then rotated by 15.0 degrees counter-clockwise",
        "rotated by 15.0 degrees counter-clockwise",
    ]


def test_what_is_no_order_is_outside() -> None:
    free = parse_threat(THREE).around(images(3))
    theta = free.identity()
    theta[:, -3:] = torch.tensor([[0, 1, 2], [0, 0, 2], [0.5, 1, 2]]).to(theta)
    assert free.contains(theta).tolist() == [True, False, False]
    half = parse_threat(THREE).scaled(0.5)
    assert isinstance(half, Chain)
    assert str(half) == "rotation:15&shift:1&linf:0.05"
