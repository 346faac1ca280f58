"""Slopes that are computed with the values: those of autograd, also where functions clip and channels are equal."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats import parse_threat
from robustly.threats.colour.cie import _CURVE_AT_ENCODED, _WHITE, cubed, encoded, linear_rgb, luv_of, rgb_of_luv
from robustly.threats.colour.hsv import value_and_chroma, with_hue_shift, with_saturation_factor
from robustly.threats.colour.recolour import Cells, cells_of
from robustly.threats.colour.retouch import _Smoothed, contrasted, powered
from robustly.threats.known_slopes import clipped, in_planes, with_slopes

IMAGES = KeyedGenerator(0, torch.arange(3)).uniform(3, 5, 4).double()
SATURATED = torch.cat([IMAGES[:, :2], torch.zeros(3, 1, 5, 4).double()], 1)
SHARE = torch.tensor([0.3, -0.7, 1.4], dtype=torch.float64).view(3, 1, 1, 1)


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    here = [one.clone().requires_grad_() for one in inputs]
    value = function(*here)
    return torch.autograd.grad((value * torch.sin(torch.arange(value.numel())).view_as(value)).sum(), here)


def encoded_plainly(linear: Tensor) -> Tensor:
    clipped = linear.clamp(0.0, 1.0)
    curve = clipped.clamp_min(0.0031308) ** (1 / 2.4)
    return 12.92 * clipped.clamp_max(0.0031308) + 1.055 * (curve - _CURVE_AT_ENCODED)


def cubed_plainly(root: Tensor) -> Tensor:
    return torch.where(root > 6 / 29, root**3, (root - 16 / 116) * 116 / (29 / 3) ** 3)


def hue_shifted_plainly(images: Tensor, sixths: Tensor) -> Tensor:
    value, least = images.amax(1), images.amin(1)
    red, green, blue = images.unbind(1)
    divisor = (value - least).clamp_min(1e-8)
    hue = torch.where(blue == value, (red - green) / divisor + 4, (blue - red) / divisor + 2)
    hue = torch.where(red == value, (green - blue) / divisor, hue) + sixths[:, None, None]
    away = torch.stack([hue - 3, hue - 5, hue - 1], 1).remainder(6)
    share = ((torch.minimum(away, 6 - away) - 3).abs() - 1).clamp(0, 1)
    return value[:, None] - (value - least)[:, None] * share


def saturated_plainly(images: Tensor, factor: Tensor) -> Tensor:
    value = images.amax(1)
    possible = torch.minimum(factor[:, None, None], value / (value - images.amin(1)).clamp_min(1e-8))
    return value[:, None] + (images - value[:, None]) * possible[:, None]


def rgb_of_luv_plainly(luv: Tensor) -> Tensor:
    lightness, u, v = (100 * luv[:, 0]).clamp_min(0), 200 * luv[:, 1] - 100, 200 * luv[:, 2] - 100
    x, y, z = _WHITE
    under = 13 * lightness.clamp_min(1e-3)
    u, v = u / under + 4 * x / (x + 15 * y + 3 * z), (v / under + 9 * y / (x + 15 * y + 3 * z)).clamp_min(0.05)
    y = cubed_plainly((lightness + 16) / 116)
    xyz = torch.stack([9 * u * y / (4 * v), y, (12 - 3 * u - 20 * v) * y / (4 * v)], 1)
    return encoded_plainly(linear_rgb(xyz / _WHITE[:, None, None]))


@pytest.mark.parametrize(
    ("ours", "plain", "inputs"),
    [
        (rgb_of_luv, rgb_of_luv_plainly, (luv_of(IMAGES),)),
        (rgb_of_luv, rgb_of_luv_plainly, (luv_of(IMAGES * 0.05) + IMAGES.flip(1) * 0.05,)),
        (rgb_of_luv, rgb_of_luv_plainly, (IMAGES.flip(2) * 1.2 - 0.1,)),  # of impossible colours, some below black
        (with_hue_shift, hue_shifted_plainly, (IMAGES, torch.tensor([0.4, -2.9, 3.0]).double())),
        (
            with_hue_shift,
            hue_shifted_plainly,
            (IMAGES * torch.tensor([1e-9, 1.0, 1e-7]).view(3, 1, 1, 1), torch.tensor([0.4, -2.9, 3.0]).double()),
        ),
        (with_saturation_factor, saturated_plainly, (IMAGES, torch.tensor([0.3, 1.2, 50.0]).double())),
        (with_saturation_factor, saturated_plainly, (SATURATED, torch.ones(3).double())),  # at their bound
        (lambda v: clipped(v, 0.0, 1.0), lambda v: v.clamp(0.0, 1.0), ((IMAGES * 8).round() / 4 - 0.5,)),
        (encoded, encoded_plainly, (IMAGES * 1.4 - 0.2,)),
        (encoded, encoded_plainly, (IMAGES * 0.01 - 0.002,)),
        (cubed, cubed_plainly, (IMAGES * 0.6,)),
        (powered, lambda v, g: v.clamp(1e-8, 1.0) ** g, (IMAGES * 1.2 - 0.1, SHARE + 1)),
        (
            contrasted,
            lambda v, c: torch.lerp(v.clamp(0, 1), 0.5 - 0.5 * (math.pi * v.clamp(0, 1)).cos(), c),
            (IMAGES * 1.4 - 0.2, SHARE),
        ),
        (lambda v: value_and_chroma(v)[0], lambda v: v.amax(1), (IMAGES,)),
        (lambda v: value_and_chroma(v)[1], lambda v: v.amax(1) - v.amin(1), (IMAGES,)),
        (
            lambda v: torch.cat(value_and_chroma(v)),
            lambda v: torch.cat([v.amax(1), v.amax(1) - v.amin(1)]),
            ((IMAGES * 2).round() / 2,),  # of many equal channels
        ),
    ],
)
def test_values_and_slopes_are_those_of_autograd(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> None:
    assert torch.allclose(ours(*inputs), plain(*inputs), atol=1e-9)
    with torch.no_grad():
        assert torch.equal(ours(*(one.requires_grad_(False) for one in inputs)), ours(*inputs))
    for found, expected in zip(gradients(ours, *inputs), gradients(plain, *inputs), strict=True):
        assert found.shape == expected.shape
        assert float(expected.abs().max()) > 1e-3
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_smoothing_is_its_own_backward_pass() -> None:
    assert torch.autograd.gradcheck(_Smoothed.apply, IMAGES.clone().requires_grad_())  # type: ignore[no-untyped-call]
    assert torch.autograd.gradcheck(_Smoothed.apply, IMAGES[:, :, :1, :2].clone().requires_grad_())  # type: ignore[no-untyped-call]
    assert torch.allclose(_Smoothed.apply(torch.ones(1, 1, 4, 3)), torch.ones(1, 1, 4, 3))  # type: ignore[no-untyped-call]


def test_a_slope_may_belong_to_a_number_of_many_places_and_has_no_slope_itself() -> None:
    one, many = SHARE.clone().requires_grad_(), IMAGES.clone().requires_grad_()
    found = with_slopes(IMAGES * 2, (many, torch.full_like(IMAGES, 2.0)), (one, IMAGES))
    by_many, by_one = torch.autograd.grad(found.sum(), [many, one], create_graph=True)
    assert torch.equal(by_many, torch.full_like(IMAGES, 2.0))
    assert torch.allclose(by_one, IMAGES.sum((1, 2, 3), keepdim=True))
    with pytest.raises(RuntimeError):
        torch.autograd.grad(by_one.sum(), many)


def test_a_gradient_comes_in_planes() -> None:
    images = IMAGES.clone().requires_grad_()
    above = IMAGES.cos().contiguous(memory_format=torch.channels_last)
    (found,) = torch.autograd.grad(in_planes(images), images, above)
    assert found.is_contiguous()
    assert torch.equal(found, above)
    assert in_planes(IMAGES) is IMAGES


def test_maps_of_colours_image_by_image_are_those_of_a_batch() -> None:
    luv = KeyedGenerator(4, torch.arange(3)).uniform(3, 5, 4) * 1.2 - 0.1
    theta = KeyedGenerator(5, torch.arange(3)).normal(3, 16, 32, 32)
    cells = cells_of(luv)
    other = Cells(cells.points, cells.weights.clone().requires_grad_())  # which takes the operations of a batch
    assert torch.allclose(cells.interpolated(theta), other.interpolated(theta), atol=1e-6)
    (found,), (expected,) = gradients(cells.interpolated, theta), gradients(other.interpolated, theta)
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.any()


@pytest.mark.parametrize("text", ["lightness:8", "retouch:0.5", "recolor:0.1", "hsv_curve:8"])
def test_what_is_prepared_of_images_follows_them(text: str) -> None:
    """Selected and moved sets, other boxes, and images with gradients have values of their own."""
    images, draws = IMAGES.float(), KeyedGenerator(1, torch.arange(3))
    allowed = parse_threat(text).around(images)
    theta = allowed.random_start(draws)
    whole = allowed.apply(theta)
    assert torch.equal(allowed.select(torch.tensor([2, 0])).apply(theta[[2, 0]]), whole[[2, 0]])
    moved = images.flip(0).requires_grad_()
    found = allowed.moved_to(moved).apply(theta)
    assert torch.equal(found.detach(), parse_threat(text).around(images.flip(0)).apply(theta))
    (slope,) = torch.autograd.grad(found.sum(), moved)
    assert slope.any()
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1
