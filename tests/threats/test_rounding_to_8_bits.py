"""Images of 8 bits in every threat set: on the grid, in the set, near the point that they stand for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats import NORMS, ThreatModel, parse_threat
from robustly.threats.eight_bit import in_8_bits

SHAPE = (2, 4, 5)
RADII = {"linf": (0.001, 0.6), "l2": (0.01, 3.0), "l1": (0.01, 9.0), "l0": (1, 12)}
REGION = torch.tensor([False, True, True, True]).view(4, 1).expand(4, 5).clone()
SHARES = torch.linspace(0, 1, 20).view(4, 5)


def clean(seed: int, count: int = 6) -> Tensor:
    """Images of 8 bits, with values at both ends of the box."""
    levels = KeyedGenerator(seed, torch.arange(count)).fold("levels").integers(356, *SHAPE) - 50
    return levels.clamp(0, 255).float() / 255


def threats(norm: str, share: float, mask: str) -> ThreatModel:
    least, largest = RADII[norm]
    epsilon = least + share * (largest - least)
    masks = {"none": None, "region": REGION, "shares": SHARES if norm == "linf" else REGION}
    return ThreatModel(norm, math.floor(epsilon) if norm == "l0" else epsilon, mask=masks[mask])


@given(
    norm=st.sampled_from(NORMS),
    share=st.floats(0, 1),
    mask=st.sampled_from(["none", "region", "shares"]),
    reach=st.floats(0.01, 2),
    seed=st.integers(0, 500),
)
def test_rounded_images_are_on_the_grid_and_in_the_set(
    norm: str, share: float, mask: str, reach: float, seed: int
) -> None:
    threat, x = threats(norm, share, mask), clean(seed)
    allowed = threat.around(x)
    theta = allowed.project(x + reach * KeyedGenerator(seed, torch.arange(len(x))).normal(*SHAPE))
    found = in_8_bits(allowed, theta)
    assert found.levels.dtype == torch.uint8
    images = found.images()
    assert torch.equal(images, found.levels.float() / 255)
    assert found.inside.all()
    assert allowed.contains(images).all()
    assert ((images >= 0) & (images <= 1)).all()
    assert ((images - theta).abs() <= 1 / 255 + 1e-5).all()
    if threat.mask is not None:
        fixed = (threat.mask == 0).expand(SHAPE)
        assert torch.equal(images[:, fixed], x[:, fixed])
    # the nearest image of 8 bits is taken if it is allowed
    nearest = (theta * 255).round() / 255
    apart = ((theta * 255 - (theta * 255).floor() - 0.5).abs() > 1e-3).flatten(1).all(1)  # no value between two
    taken = allowed.resized(allowed.radius * (1 - 1e-4)).contains(nearest) & apart
    assert torch.equal(images[taken], nearest[taken])


@given(norm=st.sampled_from(["l1", "l2"]), share=st.floats(0.05, 1), seed=st.integers(0, 500))
def test_the_radius_is_used_up_to_one_level(norm: str, share: float, seed: int) -> None:
    """Where the nearest image is outside, the next value rounded away from the clean image would leave the ball."""
    threat, x = threats(norm, share, "none"), clean(seed)
    allowed = threat.around(x)
    theta = allowed.project(x + KeyedGenerator(seed, torch.arange(len(x))).normal(*SHAPE))
    images = in_8_bits(allowed, theta).images()
    nearest = (theta * 255).round() / 255
    size = threat.distance(images, x)
    for row in (~allowed.contains(nearest)).nonzero()[:, 0].tolist():
        lost = ((theta - images)[row] * ((images - nearest)[row].abs() > 1e-4)).abs().flatten()
        further = images.clone()
        further[row].view(-1)[lost.argmax()] = nearest[row].view(-1)[lost.argmax()]
        assert threat.distance(further, x)[row] > float(threat.epsilon) * (1 - 1e-5)
        assert size[row] <= float(threat.epsilon) * (1 + 1e-5)


def test_a_step_on_the_grid_is_kept() -> None:
    x = clean(3)
    for levels in (1, 8, 77):
        allowed = ThreatModel("linf", f"{levels}/255").around(x)
        moved = (x + levels / 255).clamp(0, 1)
        assert torch.equal(in_8_bits(allowed, moved).levels, (x * 255).round().add(levels).clamp(0, 255).byte())


def test_a_radius_between_two_levels_leaves_the_smaller_one() -> None:
    x = torch.full((1, 1, 2, 2), 100 / 255)
    allowed = ThreatModel("linf", 0.1).around(x)  # 25.5 levels
    assert in_8_bits(allowed, x + 0.1).levels.unique().tolist() == [125]
    assert in_8_bits(allowed, x - 0.1).levels.unique().tolist() == [75]


def test_a_small_l2_change_is_rounded_where_it_is_largest() -> None:
    """A radius of 2.2 levels on four pixels: 1.3 and 0.9 round to 1 levels, 0.6 and 0.55 do, as far as they fit."""
    x = torch.full((1, 1, 2, 2), 10 / 255)
    change = torch.tensor([[[[1.3, 0.9], [0.6, 0.55]]]])
    wide = ThreatModel("l2", 2.2 / 255).around(x)
    assert in_8_bits(wide, x + change / 255).levels.flatten().tolist() == [11, 11, 11, 11]
    narrow = ThreatModel("l2", 1.8 / 255).around(x)
    assert in_8_bits(narrow, x + change / 255).levels.flatten().tolist() == [11, 11, 11, 10]


@pytest.mark.parametrize(
    ("norm", "epsilon", "inside"), [("linf", 0.01, True), ("linf", 0.001, False), ("l0", 3, False)]
)
def test_a_clean_image_between_the_levels_need_not_have_a_neighbour(
    norm: str, epsilon: float, inside: bool
) -> None:
    x = torch.full((1, 1, 2, 2), 100.5 / 255)
    found = in_8_bits(ThreatModel(norm, epsilon).around(x), x)
    assert found.inside.tolist() == [inside]


def test_a_box_that_ends_between_the_levels() -> None:
    x = torch.full((1, 1, 2, 2), 100 / 255)
    allowed = ThreatModel("l2", 2.0, box=(0.3, 0.7)).around(x)  # 76.5 and 178.5 levels
    for goal, level in ((0.0, 77), (1.0, 178)):
        found = in_8_bits(allowed, allowed.project(torch.full_like(x, goal)))
        assert found.inside.all()
        assert found.levels.unique().tolist() == [level]


@pytest.mark.parametrize("text", ["rotation:30", "rotation:20+linf:0.05"])
def test_other_threats_round_the_rendered_image(text: str) -> None:
    x = clean(1)
    allowed = parse_threat(text).around(x)
    theta = allowed.random_start(KeyedGenerator(0, torch.arange(len(x))))
    found = in_8_bits(allowed, theta)
    assert found.inside.all()
    assert ((found.images() - allowed.apply(theta)).abs() <= 0.5 / 255 + 1e-6).all()
    assert not in_8_bits(allowed, theta.abs() + 50).inside.any()
