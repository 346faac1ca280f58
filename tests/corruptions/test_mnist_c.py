"""MNIST-C: closed forms of its corruptions, determinism, and refusals."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from robustly.corruptions import CorruptionError
from robustly.corruptions.edges import canny_edges
from robustly.corruptions.mnist_c import MNIST_C, corrupt_digits
from robustly.corruptions.strokes import stroke


def digits(count: int) -> Tensor:
    """Bright discs of other places and sizes on black."""
    places = torch.arange(28.0)
    discs = [
        ((places[:, None] - 12 - n) ** 2 + (places[None] - 15 + n) ** 2 < (5 + n) ** 2) * (200.0 + 10 * n)
        for n in range(count)
    ]
    return torch.stack(discs)[:, None].to(torch.uint8)


@pytest.mark.parametrize("name", MNIST_C)
def test_a_digit_depends_on_its_id_and_seed_alone(name: str) -> None:
    images, ids = digits(3), torch.tensor([7, 3, 11])
    whole = corrupt_digits(images, name, seed=5, ids=ids)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    assert not torch.equal(whole, images)
    assert torch.equal(corrupt_digits(images[1:2], name, seed=5, ids=ids[1:2]), whole[1:2])
    assert corrupt_digits(images[:0], name).shape == (0, 1, 28, 28)
    fixed = ("scale", "brightness", "stripe", "canny_edges")
    others = [
        corrupt_digits(images[:1].repeat(8, 1, 1, 1), name, ids=torch.arange(8) + 8 * turn) for turn in (0, 1)
    ]
    assert torch.equal(*others) == (name in fixed)


def test_there_are_the_fifteen_of_the_paper() -> None:
    assert len(MNIST_C) == 15
    assert {"shear", "translate", "dotted_line", "zigzag", "canny_edges"} < set(MNIST_C)


def test_translations_move_by_three_pixels_along_both_axes() -> None:
    images = digits(1).repeat(16, 1, 1, 1)
    found = corrupt_digits(images, "translate")
    moves = {(down, right) for down in (-3, 3) for right in (-3, 3)}
    seen = {move for one in found for move in moves if torch.equal(one, images[0].roll(move, (1, 2)))}
    assert seen == moves


@pytest.mark.parametrize("name", ["shear", "rotate", "scale"])
def test_maps_of_the_plane_are_those_of_scipy(name: str) -> None:
    images = digits(1).repeat(8, 1, 1, 1)
    found = {bytes(one.numpy()) for one in corrupt_digits(images, name)}
    wanted = set()
    for angle in (-0.4, 0.4):
        # rows before columns
        matrices = {
            "shear": [[math.cos(angle), 0], [-math.sin(angle), 1]],
            "rotate": [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]],
            "scale": [[1 / 0.7, 0], [0, 1 / 0.7]],
        }
        matrix = np.array(matrices[name])
        offset = np.full(2, 13.5) - matrix @ np.full(2, 13.5)
        values = ndimage.affine_transform(
            images[0, 0].double().numpy() / 255, matrix, offset, order=1, mode="grid-constant"
        )
        wanted.add(bytes((np.clip(values, 0, 1) * 255 + 1e-3).astype(np.uint8)))
    assert found == wanted


def test_stripes_invert_both_outer_quarters() -> None:
    images = digits(2)
    found = corrupt_digits(images, "stripe")
    assert torch.equal(found[..., 7:21], images[..., 7:21])
    assert torch.equal(found[..., :7], 255 - images[..., :7])
    assert torch.equal(found[..., 21:], 255 - images[..., 21:])


def test_dotted_lines_only_brighten_every_other_pair_of_columns() -> None:
    black = torch.zeros(6, 1, 28, 28, dtype=torch.uint8)
    found = corrupt_digits(black, "dotted_line")
    columns = found.amax((0, 1, 2)) > 0
    assert columns.tolist() == [column // 2 % 2 == 1 and column < 27 for column in range(28)]
    assert (found.amax((1, 2, 3)) > 150).all()


def test_a_stroke_fades_with_the_vertical_distance() -> None:
    line = stroke((9, 9), (0, 4), (8, 4))
    assert line[4, :8].tolist() == [1.0] * 8
    assert float(line[5, 3]) == pytest.approx(1 + math.log(1 - 1 / 2.3))
    assert float(line[:, 8].max()) == float(line[7].max()) == 0.0
    assert not stroke((9, 9), (3, 0), (3, 8)).any()


def test_zigzags_run_between_two_columns_and_leave_the_rest() -> None:
    black = torch.zeros(6, 1, 28, 28, dtype=torch.uint8)
    found = corrupt_digits(black, "zigzag")
    assert not found[..., :1].any()
    assert not found[..., 27:].any()
    assert float((found[..., 3:24].amax((1, 2)) > 0).float().mean()) > 0.8  # some leave the image at the top


def test_canny_draws_one_line_along_a_step() -> None:
    step = torch.zeros(2, 1, 12, 12, dtype=torch.float64)
    step[0, ..., 7:], step[0, ..., 6] = 1, 0.5  # the steepest place is column 6
    step[1] = step[0].mT
    edges = canny_edges(step)[:, 0]
    assert torch.equal(edges[0].nonzero(), torch.stack([torch.arange(1, 11), torch.full((10,), 6)], 1))
    assert torch.equal(edges[1], edges[0].mT)
    assert not canny_edges(torch.full((1, 1, 9, 9), 0.5, dtype=torch.float64)).any()


def test_weak_edges_count_where_a_strong_one_continues_them() -> None:
    contrast = torch.linspace(1.0, 0.05, 24, dtype=torch.float64)  # of a step that becomes weaker from row to row
    image = torch.zeros(1, 1, 24, 12, dtype=torch.float64)
    image[..., 6:] = contrast[:, None]
    whole = canny_edges(image)[0, 0].any(1)
    weak = canny_edges(image[:, :, 22:] * torch.ones(1, 1, 1, 1).double())
    assert whole[1:20].all()
    assert not weak.any()


def test_glass_blur_keeps_the_sum_of_a_digit_away_from_the_border() -> None:
    images = digits(1)
    found = corrupt_digits(images, "glass_blur")
    assert float(found.float().sum()) == pytest.approx(float(images.float().sum()), rel=0.02)


def test_what_is_not_defined_is_refused_by_name() -> None:
    with pytest.raises(CorruptionError, match=r"no corruption 'frost': it has shot_noise"):
        corrupt_digits(digits(1), "frost")
    for images in (
        torch.zeros(1, 3, 28, 28, dtype=torch.uint8),
        torch.zeros(1, 1, 28, 28),
        torch.zeros(1, 1, 32, 32),
    ):
        with pytest.raises(CorruptionError, match=r"uint8 images \(N, 1, 28, 28\)"):
            corrupt_digits(images, "fog")
    with pytest.raises(CorruptionError, match="2 images but 1 ids"):
        corrupt_digits(digits(2), "fog", ids=torch.tensor([0]))
