"""Colour curves follow their closed form, and each threat moves its own coordinates."""

import math

import pytest
import torch

from robustly.randomness import KeyedGenerator
from robustly.threats import parse_threat
from robustly.threats.colour.cie import cube_root, decoded, relative_xyz
from robustly.threats.colour.curve import PIECES, curved

IDS = torch.arange(3)
IMAGES = KeyedGenerator(0, IDS).uniform(3, 6, 5)
CURVES = ("ace", "hsv_curve", "lightness")


def test_the_closed_form_of_two_pieces() -> None:
    values = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).reshape(1, 1, 5, 1)
    found = curved(values, torch.tensor([[[1.0, 3.0]]]))
    assert found.flatten().tolist() == pytest.approx([0.0, 0.125, 0.25, 0.625, 1.0])


def test_a_curve_equals_the_sum_over_its_pieces() -> None:
    theta = 1 + 15 * KeyedGenerator(1, IDS).uniform(3, PIECES).double()
    starts = torch.arange(PIECES) / PIECES
    rises = (IMAGES.double()[..., None] - starts).clamp(0, 1 / PIECES)
    expected = PIECES * (rises * (theta / theta.sum(-1, keepdim=True))[:, :, None, None]).sum(-1)
    assert torch.allclose(curved(IMAGES.double(), theta), expected)


@pytest.mark.parametrize("kind", CURVES)
def test_equal_slopes_are_the_exact_identity(kind: str) -> None:
    allowed = parse_threat(f"{kind}:16").around(IMAGES)
    equal = allowed.identity() * torch.tensor([1.0, 3.3, 16.0])[:, None, None]
    assert torch.equal(allowed.apply(equal), IMAGES)
    assert allowed.size(equal).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", CURVES)
def test_a_bound_of_1_allows_the_identity_only(kind: str) -> None:
    allowed = parse_threat(f"{kind}:1").around(IMAGES)
    assert torch.equal(allowed.random_start(KeyedGenerator(0, IDS)), allowed.identity())
    assert str(parse_threat(f"{kind}:16").scaled(0.25)) == f"{kind}:4"
    assert str(parse_threat(f"{kind}:16").scaled(0.0)) == f"{kind}:1"


def test_a_step_is_along_the_gradient_over_its_norm() -> None:
    """Step length 1 on theta in [1/64, 16/64], as in the public code of ACE, is a size of 8 / sqrt(3)."""
    allowed = parse_threat("ace:16").around(IMAGES)
    gradient = KeyedGenerator(2, IDS).normal(3, PIECES) * torch.tensor([1.0, 1e-30, 0.0])[:, None, None]
    start = torch.full_like(gradient, 8.0)
    moved = (allowed.step(start, gradient, torch.full((3,), 8 / math.sqrt(3) / 100)) - start) / PIECES
    assert moved.flatten(1).norm(dim=1).tolist() == pytest.approx([0.01, 0.01, 0.0], rel=1e-3)
    direction = gradient[0].flatten() / gradient[0].norm()
    assert torch.allclose(moved[0].flatten() * 100, direction, atol=1e-3)


def test_ace_curves_each_channel_on_its_own() -> None:
    allowed = parse_threat("ace:16").around(IMAGES)
    theta = allowed.identity()
    theta[:, 1, :32] = 4.0  # green rises early
    found = allowed.apply(theta)
    assert torch.allclose(found[:, [0, 2]], IMAGES[:, [0, 2]], atol=1e-6)
    assert (found[:, 1] > IMAGES[:, 1]).all()


def test_a_curve_of_value_alone_keeps_hue_and_saturation() -> None:
    allowed = parse_threat("hsv_curve:16").around(IMAGES)
    theta = allowed.identity()
    theta[:, 2, 32:] = 4.0  # value stays low for long
    found = allowed.apply(theta)
    factor = found.amax(1) / IMAGES.amax(1)
    assert (factor < 1).any()
    assert torch.allclose(found, IMAGES * factor[:, None], atol=1e-5)


def test_lightness_follows_its_curve_and_colour_stays() -> None:
    images = IMAGES * 0.2 + 0.4  # the gamut does not clip
    allowed = parse_threat("lightness:16").around(images)
    theta = allowed.identity()
    theta[:, :, 32:48] = 2.0
    before, after = (cube_root(relative_xyz(decoded(one))) for one in (images, allowed.apply(theta)))
    lightness = 1.16 * before[:, 1:2] - 0.16
    assert torch.allclose(1.16 * after[:, 1:2] - 0.16, curved(lightness, theta), atol=1e-5)
    assert torch.allclose(after.diff(dim=1), before.diff(dim=1), atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-2)


def test_lightness_of_a_grey_image_equals_that_of_its_three_channels() -> None:
    grey = IMAGES[:, :1]
    theta = 1 + 15 * KeyedGenerator(1, IDS).uniform(1, PIECES)
    one = parse_threat("lightness:16").around(grey).apply(theta)
    three = parse_threat("lightness:16").around(grey.expand(-1, 3, -1, -1)).apply(theta)
    assert torch.allclose(three, one.expand_as(three), atol=1e-5)
