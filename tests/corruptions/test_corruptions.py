"""Common corruptions: closed forms, SciPy's filters, determinism, severity, shapes, and refusals."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robustly.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, STANDARD, CorruptionError, corrupt, table_for
from robustly.corruptions.blur import disk, motion_blurred
from robustly.corruptions.constants import CIFAR, IMAGENET
from robustly.corruptions.digital import affine_sources
from robustly.corruptions.fractal import clouds
from robustly.corruptions.sampling import folded, gaussian_blurred, interpolated, zoomed
from robustly.randomness import KeyedGenerator

GREY, SMALL, COLOUR = (1, 28, 28), (3, 8, 8), (3, 32, 32)


def smooth_images(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Waves of other phases, with values in 20..230 and other levels in the channels."""
    channels, height, width = shape
    rows, columns = torch.linspace(0, 6, height)[:, None], torch.linspace(0, 5, width)[None]
    phases = torch.arange(count * channels).reshape(count, channels, 1, 1) * 0.7
    return (125 + 105 * (rows + phases).sin() * columns.cos()).to(torch.uint8)


def flat_images(count: int, shape: tuple[int, int, int], level: int = 128) -> Tensor:
    return torch.full((count, *shape), level, dtype=torch.uint8)


def mean_change(name: str, images: Tensor) -> list[float]:
    return [float((corrupt(images, name, severity).float() - images).abs().mean()) for severity in SEVERITIES]


def test_there_are_fifteen_and_four_with_constants_for_both_sizes() -> None:
    assert (len(STANDARD), len(EXTRA)) == (15, 4)
    assert set(CIFAR) == set(IMAGENET) == set(CORRUPTIONS)
    assert {name for name, one in CORRUPTIONS.items() if one.procedural} == {
        "snow", "frost", "motion_blur", "spatter",
    }  # fmt: skip
    assert table_for(127, 300) == "cifar"
    assert table_for(224, 224) == "imagenet"


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [GREY, SMALL, COLOUR, (3, 9, 14)])
def test_an_image_does_not_depend_on_the_batch_its_order_or_an_earlier_call(
    name: str, shape: tuple[int, int, int]
) -> None:
    if CORRUPTIONS[name].colour and shape[0] == 1:
        return
    images, ids = smooth_images(4, shape), torch.tensor([7, 3, 11, 2])
    whole = corrupt(images, name, 3, seed=5, ids=ids)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    assert not torch.equal(whole, images)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(corrupt(images[order], name, 3, seed=5, ids=ids[order]), whole[order])
    assert torch.equal(corrupt(images[1:2], name, 3, seed=5, ids=ids[1:2]), whole[1:2])


def test_many_images_in_parts_are_those_of_one_call() -> None:
    images = smooth_images(3, (3, 700, 640))  # more values than one part holds
    together = corrupt(images, "gaussian_noise", 2)
    assert torch.equal(corrupt(images[2:], "gaussian_noise", 2, ids=torch.tensor([2])), together[2:])


def test_seed_severity_and_id_give_other_noise() -> None:
    images = flat_images(2, SMALL)
    first = corrupt(images, "gaussian_noise", 4)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(corrupt(images, "gaussian_noise", 4, seed=1), first)
    same = corrupt(images, "gaussian_noise", 4, ids=torch.tensor([5, 5]))
    assert torch.equal(same[0], same[1])


@pytest.mark.parametrize(
    "name",
    [
        *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
        *("contrast", "brightness", "jpeg_compression", "gaussian_blur", "zoom_blur", "pixelate"),
    ],
)
@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_the_change_grows_with_severity(name: str, shape: tuple[int, int, int]) -> None:
    change = mean_change(name, smooth_images(8, shape))
    assert change == sorted(change)
    assert len(set(change)) == len(change)


def test_gaussian_noise_has_the_deviation_of_its_severity() -> None:
    for severity in SEVERITIES:
        noisy = corrupt(flat_images(20, COLOUR), "gaussian_noise", severity).double()
        expected = 255 * CIFAR["gaussian_noise"][severity - 1][0]
        assert float(noisy.std()) == pytest.approx(expected, rel=0.02)
        assert float(noisy.mean()) == pytest.approx(127.5, abs=0.4)  # values are cut off, not rounded


def test_shot_noise_is_poisson() -> None:
    level = 102  # 0.4
    noisy = corrupt(flat_images(20, COLOUR, level), "shot_noise", 5).double() / 255
    assert float(noisy.mean()) == pytest.approx(0.4 - 0.5 / 255, abs=0.002)
    assert float(noisy.std()) == pytest.approx((0.4 / 50) ** 0.5, rel=0.02)
    assert corrupt(flat_images(1, SMALL, 0), "shot_noise", 5).max() == 0


def test_impulse_noise_sets_its_share_of_values_half_to_each_end() -> None:
    noisy = corrupt(flat_images(40, COLOUR), "impulse_noise", 5)
    assert float((noisy != 128).float().mean()) == pytest.approx(0.07, abs=0.004)
    assert float((noisy == 255).float().mean()) == pytest.approx(0.035, abs=0.003)
    assert float((noisy == 0).float().mean()) == pytest.approx(0.035, abs=0.003)


def test_brightness_adds_a_constant_to_grey_and_keeps_ratios_of_colours() -> None:
    assert corrupt(flat_images(1, GREY, 100), "brightness", 4).unique().tolist() == [151]  # 100 + 0.2 * 255
    assert corrupt(flat_images(1, GREY, 250), "brightness", 5).unique().tolist() == [255]
    assert corrupt(flat_images(1, COLOUR, 0), "brightness", 4).unique().tolist() == [51]
    colour = torch.tensor([100, 50, 25], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, *COLOUR)
    assert corrupt(colour, "brightness", 4)[0, :, 0, 0].tolist() == [151, 75, 37]


def test_contrast_scales_deviations_from_the_mean_of_each_channel() -> None:
    images = flat_images(1, SMALL, 50)
    images[:, :, :4] = 150
    images[:, 2] = 77
    faded = corrupt(images, "contrast", 2)  # factor 0.5 around 100
    assert faded[0, :2, :4].unique().tolist() == [125]
    assert faded[0, :2, 4:].unique().tolist() == [75]
    assert faded[0, 2].unique().tolist() == [77]


def test_saturation_follows_the_formula_of_hsv() -> None:
    colour = torch.tensor([200, 100, 150], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, *SMALL)
    # s = 0.5 becomes 0.15: the least channel is 200 * 0.85, the middle one stays halfway
    assert corrupt(colour, "saturate", 1)[0, :, 0, 0].tolist() == [200, 170, 185]
    assert corrupt(flat_images(1, SMALL, 90), "saturate", 3).unique().tolist() == [90]


@pytest.mark.parametrize(
    "name",
    [
        *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
        *("pixelate", "elastic_transform", "contrast", "jpeg_compression"),
    ],
)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_constant_images_stay(name: str, severity: int) -> None:
    images = flat_images(2, SMALL, 128)
    assert torch.equal(corrupt(images, name, severity), images)


def test_jpeg_and_pixelate_are_those_of_pillow() -> None:
    image = smooth_images(1, COLOUR)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=40)
    expected = torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1)
    assert torch.equal(corrupt(image, "jpeg_compression", 5)[0], expected)
    small = picture.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    assert torch.equal(corrupt(image, "pixelate", 5)[0], torch.from_numpy(np.array(small)).permute(2, 0, 1))


def test_fog_darkens_by_its_formula() -> None:
    images = smooth_images(2, COLOUR)
    foggy = corrupt(images, "fog", 4).double() / 255
    low, high = (images.double() / 255 + rise for rise in (0, 1))  # the clouds are in [0, 1]
    largest = (images.double() / 255).amax((1, 2, 3), keepdim=True)
    factor = largest / (largest + 1)
    assert bool((foggy >= low * factor - 1 / 255).all())
    assert bool((foggy <= high * factor).all())
    assert bool((foggy.amax((1, 2, 3)) < 1).all())


def test_clouds_fill_the_unit_interval_and_are_smoother_for_a_larger_decay() -> None:
    draws = KeyedGenerator(0, torch.arange(6))
    rough, smooth = clouds(32, 32, 1.5, draws), clouds(32, 32, 3.0, draws)
    for one in (rough, smooth):
        assert one.amin((1, 2)).tolist() == [0] * 6
        assert one.amax((1, 2)).tolist() == [1] * 6
    assert float(smooth.diff(dim=2).abs().mean()) < 0.7 * float(rough.diff(dim=2).abs().mean())
    assert clouds(9, 14, 3.0, draws).shape == (6, 9, 14)


def test_glass_blur_takes_pixels_from_nearby() -> None:
    rows = torch.arange(32, dtype=torch.uint8).reshape(1, 1, 32, 1).expand(1, 3, 32, 32) * 8
    glass = corrupt(rows, "glass_blur", 1)  # no blur, one round, offsets of -1 and 0
    steps = (rows.int() - glass.int()).unique().tolist()
    assert steps == [0, 8]
    assert torch.equal(glass[:, :, :2], rows[:, :, :2])


def test_motion_blur_of_a_point_is_half_a_gaussian_along_the_line() -> None:
    point = torch.zeros(2, 1, 21, 21, dtype=torch.float64)
    point[:, :, 10, 10] = 1
    across, down = motion_blurred(point, 3, 2.0, torch.tensor([0.0, 90.0], dtype=torch.float64))
    weights = torch.exp(-(torch.arange(7, dtype=torch.float64) ** 2) / 8)
    expected = (weights / weights.sum()).flip(0)
    assert torch.allclose(across[0, 10, 4:11], expected)
    assert torch.allclose(down[0, 4:11, 10], expected)
    assert float(across.sum()) == pytest.approx(1)


def test_frost_and_snow_lighten_dark_images() -> None:
    dark = flat_images(3, COLOUR, 10)
    for name in ("frost", "snow"):
        assert float(corrupt(dark, name, 5).float().mean()) > 30


def test_filters_are_those_of_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    image = smooth_images(1, (1, 11, 14)).double() / 255
    array = image[0, 0].numpy()
    for border, mode, truncate in (
        ("nearest", "nearest", 4.0),
        ("symmetric", "reflect", 3.0),
        ("mirror", "mirror", 2),
    ):
        blurred = gaussian_blurred(image, 1.7, truncate, border)[0, 0].numpy()
        assert np.allclose(blurred, ndimage.gaussian_filter(array, 1.7, mode=mode, truncate=truncate))
    wide = gaussian_blurred(image, 9.0, 3.0, "symmetric")[0, 0].numpy()  # wider than the image
    assert np.allclose(wide, ndimage.gaussian_filter(array, 9.0, mode="reflect", truncate=3.0))
    rows, columns = (
        torch.rand(2, 1, 11, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 40 - 15
    )
    found = interpolated(image, rows, columns, "symmetric")[0, 0].numpy()
    expected = ndimage.map_coordinates(array, [rows[0].numpy(), columns[0].numpy()], order=1, mode="reflect")
    assert np.allclose(found, expected)


@pytest.mark.parametrize("factor", [1.0, 1.05, 1.11, 1.25, 2.25])
def test_zooms_are_those_of_the_released_code(factor: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    image = smooth_images(1, (1, 32, 32)).double() / 255
    size = 32
    cut = int(np.ceil(size / factor))
    first = (size - cut) // 2
    enlarged = ndimage.zoom(image[0, 0].numpy()[first : first + cut, first : first + cut], factor, order=1)
    trim = (len(enlarged) - size) // 2
    expected = enlarged[trim : trim + size, trim : trim + size]
    assert np.allclose(zoomed(image, factor)[0, 0].numpy(), expected)


def test_borders_continue_as_named() -> None:
    places = torch.arange(-4, 8)
    assert folded(places, 4, "nearest").tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 3, 3, 3, 3]
    assert folded(places, 4, "symmetric").tolist() == [3, 2, 1, 0, 0, 1, 2, 3, 3, 2, 1, 0]
    assert folded(places, 4, "mirror").tolist() == [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]


def test_the_disk_has_sum_one_and_its_radius() -> None:
    for radius, sigma in CIFAR["defocus_blur"] + IMAGENET["defocus_blur"]:
        kernel = disk(radius, sigma)
        # a disk that reaches the edge of its grid loses or gains a little in smoothing, as in OpenCV
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-6 if radius < 8 else 0.02)
        assert torch.allclose(kernel, kernel.T)
    assert int((disk(3, 0.1) > 1e-3).sum()) == 29  # whole points within 3 of the centre


def test_affine_maps_move_their_three_points() -> None:
    rows = torch.arange(9.0, dtype=torch.float64)[None, :, None].expand(1, 9, 12)
    columns = torch.arange(12.0, dtype=torch.float64)[None, None].expand(1, 9, 12)
    shift = torch.tensor([2.0, -1.0], dtype=torch.float64).expand(1, 3, 2)  # 2 to the right, 1 up
    source_rows, source_columns = affine_sources(rows, columns, shift, (9, 12))
    assert torch.allclose(source_rows, rows + 1)
    assert torch.allclose(source_columns, columns - 2)
    points = torch.tensor([[9.0, 7.0], [9.0, 1.0], [3.0, 1.0]], dtype=torch.float64)  # around (6, 4), s is 3
    moves = torch.tensor([[0.5, -0.3], [-0.2, 0.4], [0.1, 0.6]], dtype=torch.float64)
    ends = (points + moves)[None, :, :, None]
    source_rows, source_columns = affine_sources(ends[:, :, 1], ends[:, :, 0], moves[None], (9, 12))
    assert torch.allclose(source_rows[0, :, 0], points[:, 1])
    assert torch.allclose(source_columns[0, :, 0], points[:, 0])


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_other_severities_are_refused(severity: int) -> None:
    with pytest.raises(
        CorruptionError, match=re.escape(f"severity is {severity}: it is a whole number from 1 to 5")
    ):
        corrupt(flat_images(1, SMALL), "fog", severity)


def test_what_is_not_defined_is_refused_by_name() -> None:
    with pytest.raises(CorruptionError, match="no corruption 'rain': there are gaussian_noise"):
        corrupt(flat_images(1, SMALL), "rain", 1)
    with pytest.raises(CorruptionError, match=r"saturate needs colour images \(3 channels\), got 1 x 28 x 28"):
        corrupt(flat_images(1, GREY), "saturate", 1)
    with pytest.raises(CorruptionError, match="at least 8 x 8 pixels, got 3 x 7 x 9"):
        corrupt(flat_images(1, (3, 7, 9)), "fog", 1)
    with pytest.raises(CorruptionError, match="1 or 3 channels"):
        corrupt(flat_images(1, (2, 9, 9)), "fog", 1)
    with pytest.raises(CorruptionError, match=r"float32 of shape \(1, 3, 8, 8\): use uint8"):
        corrupt(flat_images(1, SMALL).float(), "fog", 1)
    with pytest.raises(CorruptionError, match="1 images but 2 ids"):
        corrupt(flat_images(1, SMALL), "fog", 1, ids=torch.arange(2))


def test_an_empty_batch_stays_empty() -> None:
    assert corrupt(flat_images(0, COLOUR), "snow", 1).shape == (0, 3, 32, 32)
