"""A map of colours changes equal colours equally, as its grid says, within the gamut."""

import pytest
import torch
import torch.nn.functional as F

from robustly.randomness import KeyedGenerator
from robustly.threats import ThreatSet, parse_threat
from robustly.threats.colour.cie import luv_of
from robustly.threats.colour.recolour import RESOLUTION, cells_of
from robustly.threats.contract import Smooth, StepsInPlace
from robustly.threats.parameter_box import all_zero

IDS = torch.arange(2)
IMAGES = KeyedGenerator(0, IDS).uniform(3, 4, 5) * 0.4 + 0.3


def around(images: torch.Tensor = IMAGES) -> ThreatSet:
    return parse_threat("recolor:0.06").around(images)


def test_equal_colours_stay_equal() -> None:
    mirrored = torch.cat([IMAGES, IMAGES.flip(3)], 3)
    found = around(mirrored).apply(around().random_start(KeyedGenerator(1, IDS)))
    assert torch.allclose(found, found.flip(3), atol=1e-6)
    assert not torch.allclose(found, mirrored, atol=1e-2)


def test_the_grid_is_interpolated_at_the_colours() -> None:
    axes = [torch.linspace(0, 1, count) for count in RESOLUTION]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # every grid point holds its own colour
    luv = luv_of(IMAGES)
    assert torch.allclose(cells_of(luv).interpolated(grid.expand(2, -1, -1, -1, -1)), luv, atol=1e-5)


def test_changes_and_gradients_are_those_of_the_sampler_of_pytorch() -> None:
    luv = (KeyedGenerator(2, IDS).uniform(3, 6, 5) * 1.4 - 0.2).requires_grad_()  # some colours beyond the grid
    theta = around().random_start(KeyedGenerator(1, IDS)).requires_grad_()
    places = (luv.flip(1) * 2 - 1).movedim(1, -1)[:, None]
    sampled = F.grid_sample(theta, places, mode="bilinear", padding_mode="border", align_corners=True)[:, :, 0]
    found = cells_of(luv).interpolated(theta)
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    assert torch.allclose(found, sampled, atol=1e-6)
    pairs = [torch.autograd.grad((one * weights).sum(), (theta, luv)) for one in (found, sampled)]
    for ours, theirs in zip(*pairs, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_step_in_the_memory_of_the_gradient_is_the_step() -> None:
    allowed = around()
    theta = allowed.random_start(KeyedGenerator(1, IDS))
    gradient = KeyedGenerator(2, IDS).normal(3, *RESOLUTION)
    gradient[:, 1] = 0
    before, length = (theta.clone(), gradient.clone()), torch.tensor([0.02, 0.05])
    stepped = allowed.step(theta, gradient, length)
    assert torch.equal(theta, before[0])
    assert torch.equal(gradient, before[1])
    expected = (theta + gradient.sign() * length[:, None, None, None, None]).clamp(-0.06, 0.06)
    assert torch.allclose(stepped, expected, atol=1e-7)
    assert torch.equal(stepped[:, 1], theta[:, 1])
    assert isinstance(allowed, StepsInPlace)
    found = allowed.step_in_place(theta, gradient, length)
    assert torch.equal(found, stepped)
    assert found.data_ptr() == gradient.data_ptr()
    assert torch.equal(theta, before[0])


def test_one_change_among_many_zeros_is_found() -> None:
    theta = around().identity()
    assert all_zero(theta).tolist() == [True, True]
    theta[1, 2, 7, 11, 13] = -1e-9
    assert all_zero(theta).tolist() == [True, False]
    theta[0, 0, 3] = float("nan")
    assert all_zero(theta).tolist() == [False, False]


def test_an_empty_batch_has_no_images() -> None:
    assert around(IMAGES[:0]).apply(around(IMAGES[:0]).identity()).shape == (0, 3, 4, 5)


def test_a_constant_change_shifts_lightness() -> None:
    theta = around().identity()
    theta[:, 0] = -0.05
    change = luv_of(around().apply(theta)) - luv_of(IMAGES)
    assert torch.allclose(change[:, 0], torch.full_like(change[:, 0], -0.05), atol=1e-4)
    assert float(change[:, 1:].abs().max()) < 1e-4


def test_colours_out_of_the_gamut_are_clipped() -> None:
    images = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    theta = around(images).identity()
    theta[:, 1] = 0.06  # redder than red
    found = around(images).apply(theta)
    assert float(found[0, 0]) == pytest.approx(1.0)
    assert float(found.min()) >= 0.0


def test_roughness_sums_the_distances_between_neighbours() -> None:
    allowed = around()
    assert isinstance(allowed, Smooth)
    theta = allowed.identity()
    assert allowed.roughness(theta).tolist() == [0.0, 0.0]
    theta[0] = 0.04
    theta[1, 1, 5, 6, 7], theta[1, 2, 5, 6, 7] = 0.03, 0.04  # an inner point, 0.05 from its six neighbours
    assert allowed.roughness(theta).tolist() == pytest.approx([0.0, 0.3], abs=1e-4)
    flat = torch.zeros_like(theta, requires_grad=True)
    assert torch.autograd.grad(allowed.roughness(flat).sum(), flat)[0].isfinite().all()
