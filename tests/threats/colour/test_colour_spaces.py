"""Conversions between colour spaces agree with the standard library and published values, and can be undone."""

import colorsys

import pytest
import torch

from robustly.randomness import KeyedGenerator
from robustly.threats.colour.cie import cube_root, cubed, decoded, encoded, luv_of, relative_xyz, rgb_of_luv
from robustly.threats.colour.hsv import (
    hue_of,
    rgb_of,
    saturation_of,
    value_and_chroma,
    with_hue_shift,
    with_saturation_factor,
)

COLOURS = torch.cat([torch.cartesian_prod(*[torch.linspace(0, 1, 5)] * 3), torch.full((1, 3), 0.3)]).double()
PALETTE = COLOURS.T.reshape(1, 3, -1, 1)  # one image with a row per colour


def test_hue_saturation_and_value_are_those_of_the_standard_library() -> None:
    value, chroma = value_and_chroma(PALETTE)
    found = torch.stack([hue_of(PALETTE, value, chroma) / 6 % 1, saturation_of(value, chroma), value], -1).flatten(
        0, 2
    )
    expected = torch.tensor([colorsys.rgb_to_hsv(*colour) for colour in COLOURS.tolist()], dtype=torch.float64)
    assert torch.allclose(found, expected, atol=1e-9)
    assert torch.allclose(rgb_of(hue_of(PALETTE, value, chroma) % 6, value, chroma), PALETTE, atol=1e-9)


@pytest.mark.parametrize("turn", [-0.4, 0.1, 0.5])
def test_a_hue_shift_turns_the_hue_alone(turn: float) -> None:
    found = with_hue_shift(PALETTE, torch.tensor([6 * turn]))
    hsv = [colorsys.rgb_to_hsv(*colour) for colour in COLOURS.tolist()]
    expected = torch.tensor([colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in hsv], dtype=torch.float64)
    assert torch.allclose(found[0, :, :, 0].T, expected, atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.3, 2.0])
def test_a_saturation_factor_ends_at_full_saturation(factor: float) -> None:
    found = with_saturation_factor(PALETTE, torch.tensor([factor]))
    hsv = [colorsys.rgb_to_hsv(*colour) for colour in COLOURS.tolist()]
    expected = torch.tensor([colorsys.hsv_to_rgb(h, min(s * factor, 1), v) for h, s, v in hsv], dtype=torch.float64)
    assert torch.allclose(found[0, :, :, 0].T, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("colour", "luv"),
    [
        ((1.0, 0.0, 0.0), (53.24, 175.01, 37.75)),
        ((0.0, 1.0, 0.0), (87.73, -83.08, 107.40)),
        ((0.0, 0.0, 1.0), (32.30, -9.40, -130.34)),
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ],
)
def test_luv_of_the_primaries(colour: tuple[float, ...], luv: tuple[float, ...]) -> None:
    found = luv_of(torch.tensor(colour).double().reshape(1, 3, 1, 1)).flatten() * 200 - 100
    found[0] = found[0] / 2 + 50
    assert found.tolist() == pytest.approx(luv, abs=0.1)


def test_conversions_are_undone() -> None:
    images = KeyedGenerator(0, torch.arange(2)).uniform(3, 16, 16)
    images[0, :, 0] = images[0, :1, 0] * 1e-3  # nearly black and grey
    images[0, :, 1], images[0, :, 2] = 0.0, 1.0
    assert torch.allclose(rgb_of_luv(luv_of(images)), images, atol=2e-4)
    assert torch.allclose(encoded(decoded(images)), images, atol=1e-5)
    roots = cube_root(relative_xyz(decoded(images)))
    assert torch.allclose(cubed(roots), relative_xyz(decoded(images)), atol=1e-5)
