"""A chain renders between its parts only where a later part moves by its inputs, and moves as if it always did."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats import parse_threat
from robustly.threats.any_order import AnyOrderSet
from robustly.threats.chain_set import ChainSet
from robustly.threats.parameter_box import ParameterBox

IDS = torch.arange(12)
IMAGES = KeyedGenerator(1, IDS).uniform(3, 6, 6).double()
PARTS = ("rotation:30", "linf:0.2", "flow:0.5", "patch:2")


def chain_of(text: str) -> ChainSet:
    chain = parse_threat(text).around(IMAGES)
    assert isinstance(chain, ChainSet)
    return chain


@pytest.mark.parametrize("names", list(permutations(PARTS)))
def test_moves_are_those_of_parts_around_the_inputs_that_they_act_on(names: tuple[str, ...]) -> None:
    chain = chain_of("+".join(names))
    start = chain.random_start(KeyedGenerator(2, IDS))
    gradient = KeyedGenerator(3, IDS).normal(start.shape[1]).double()
    size = chain.default_step_size(3)
    parts, along = chain.split(start), chain.split(gradient)
    images, stepped, projected = IMAGES, [], []
    for link, part, direction in zip(chain.links, parts, along, strict=True):
        here = link.moved_to(images)
        stepped.append(here.step(part, direction, size / chain.radius * link.radius))
        images = here.apply(stepped[-1])
    assert torch.equal(chain.step(start, gradient, size), chain.join(stepped))
    images = IMAGES
    for link, part in zip(chain.links, chain.split(3 * start), strict=True):
        here = link.moved_to(images)
        projected.append(here.project(part))
        images = here.apply(projected[-1])
    assert torch.equal(chain.project(3 * start), chain.join(projected))


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that each call of a rotation or a shift renders."""
    counts: list[int] = []
    apply = ParameterBox.apply

    def counted(own: ParameterBox, theta: Tensor) -> Tensor:
        counts.append(len(theta))
        return apply(own, theta)

    monkeypatch.setattr(ParameterBox, "apply", counted)
    return counts


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("rotation:30+shift:2", 0),
        ("linf:0.1+rotation:30+shift:2", 0),
        ("rotation:30+linf:0.1+shift:2", 1),
        ("rotation:30+shift:2+linf:0.1", 2),
    ],
)
def test_a_step_renders_the_parts_before_the_last_ball(text: str, count: int, rendered: list[int]) -> None:
    chain = chain_of(text)
    start = chain.identity()
    rendered.clear()
    chain.step(start, torch.ones_like(start), chain.default_step_size(3))
    assert rendered == [len(IDS)] * count


def test_in_any_order_each_image_is_rendered_before_its_own_ball(rendered: list[int]) -> None:
    free = parse_threat("rotation:30&shift:2&linf:0.1").around(IMAGES)
    assert isinstance(free, AnyOrderSet)
    start = free.random_start(KeyedGenerator(2, IDS))
    rendered.clear()
    free.step(start, torch.ones_like(start), free.default_step_size(3))
    place_of_ball = start[:, -3:].long().eq(2).long().argmax(1)
    assert set(place_of_ball.tolist()) == {0, 1, 2}
    assert sum(rendered) == int(place_of_ball.sum())
    rendered.clear()
    free.apply(start)
    assert sum(rendered) == 2 * len(IDS)
