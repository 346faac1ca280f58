"""The 15 corruptions of MNIST-C for digits of 28 x 28 pixels (Mu and Gilmer, arXiv 1906.02337).

Constants are those of the released generator (google-research/mnist-c, `corruptions.py`), which fixes one severity
for each corruption. Implemented here with PyTorch. Motion blur has a computed kernel in place of ImageMagick's, so
its accuracies are not comparable with those of the released files.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from robustly.corruptions import CorruptionError, noise, weather
from robustly.corruptions.blur import motion_blur
from robustly.corruptions.edges import canny_edges
from robustly.corruptions.fractal import clouds
from robustly.corruptions.sampling import gathered, gaussian_blurred, interpolated
from robustly.corruptions.strokes import dotted_line, zigzag
from robustly.randomness import KeyedGenerator, derive_seed

Values = Float64[Tensor, "n 1 28 28"]
Change = Callable[[Values, KeyedGenerator], Values]
SIDE = 28
_ANGLE = 0.4  # radians of shears and rotations
_SHRUNK, _MOVED = 0.7, 3  # share of the size; pixels
_FOG_MAP = 256  # side of the map of clouds, whose corner is used
_CHUNK = 64


def _shot_noise(images: Values, draws: KeyedGenerator) -> Values:
    return noise.shot_noise(images, (3,), draws)


def _impulse_noise(images: Values, draws: KeyedGenerator) -> Values:
    return noise.impulse_noise(images, (0.17,), draws)


def _glass_blur(images: Values, draws: KeyedGenerator) -> Values:
    """Blur, exchange half of the pixels with one at a random offset of -1 or 0 along both axes, twice, and blur."""
    blurred = (gaussian_blurred(images, 0.7) * 255 + 1e-3).floor() / 255
    origin = np.tile(np.arange(SIDE * SIDE).reshape(1, SIDE, SIDE), (len(images), 1, 1))
    every = np.arange(len(images))
    for turn in range(2):
        own = draws.fold("turn", turn)
        offsets = own.fold("offsets").integers(2, SIDE, SIDE, 2).numpy() - 1
        offsets *= (own.fold("exchange").uniform(SIDE, SIDE) < 0.5).numpy()[..., None]
        for row in range(SIDE - 1, 1, -1):
            for column in range(SIDE - 1, 1, -1):
                down, right = row + offsets[:, row, column, 0], column + offsets[:, row, column, 1]
                here, there = origin[:, row, column].copy(), origin[every, down, right]
                origin[:, row, column], origin[every, down, right] = there, here
    place = torch.from_numpy(origin)
    return gaussian_blurred(gathered(blurred, place // SIDE, place % SIDE), 0.7)


def _motion_blur(images: Values, draws: KeyedGenerator) -> Values:
    return motion_blur(images, (10, 3), draws)


def _shear(images: Values, draws: KeyedGenerator) -> Values:
    angle = _sides(draws, 1)[:, 0] * _ANGLE
    return _mapped(images, torch.ones_like(angle), -angle.sin(), torch.zeros_like(angle), angle.cos())


def _scale(images: Values, draws: KeyedGenerator) -> Values:
    factor = images.new_full((len(images),), 1 / _SHRUNK)
    return _mapped(images, factor, torch.zeros_like(factor), torch.zeros_like(factor), factor)


def _rotate(images: Values, draws: KeyedGenerator) -> Values:
    angle = _sides(draws, 1)[:, 0] * _ANGLE
    return _mapped(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _brightness(images: Values, draws: KeyedGenerator) -> Values:
    return weather.brightness(images, (0.5,), draws)


def _translate(images: Values, draws: KeyedGenerator) -> Values:
    right, down = (_sides(draws, 2) * _MOVED)[:, :, None, None].unbind(1)
    columns, rows = _places()
    return _sampled(images, rows + down, columns + right)


def _stripe(images: Values, draws: KeyedGenerator) -> Values:
    """Invert the left and the right quarter."""
    columns = torch.arange(SIDE)
    return torch.where((columns < SIDE // 4) | (columns >= SIDE - SIDE // 4), 1 - images, images)


def _fog(images: Values, draws: KeyedGenerator) -> Values:
    amount, decay = 3.0, 1.4
    mist = [
        clouds(_FOG_MAP, _FOG_MAP, decay, KeyedGenerator(draws.seed, ids))[:, None, :SIDE, :SIDE]
        for ids in torch.split(draws.ids, _CHUNK)
    ]
    largest = images.amax((1, 2, 3), keepdim=True)
    return (images + amount * torch.cat(mist)) * (largest / (largest + amount))


def _spatter(images: Values, draws: KeyedGenerator) -> Values:
    """Cover parts of the image with mud of value 63/255."""
    layer = gaussian_blurred(0.65 + 0.3 * draws.normal(1, SIDE, SIDE).double(), 1.0)
    mud = gaussian_blurred((layer > 0.65).double(), 1.5)
    mud = torch.where(mud < 0.8, 0.0, mud)
    return images * (1 - mud) + 63 / 255 * mud


def _canny_edges(images: Values, draws: KeyedGenerator) -> Values:
    return canny_edges(images).double()


CHANGES: dict[str, Change] = {
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "shear": _shear,
    "scale": _scale,
    "rotate": _rotate,
    "brightness": _brightness,
    "translate": _translate,
    "stripe": _stripe,
    "fog": _fog,
    "spatter": _spatter,
    "dotted_line": dotted_line,
    "zigzag": zigzag,
    "canny_edges": _canny_edges,
}
MNIST_C: tuple[str, ...] = tuple(CHANGES)
"""Names of the 15 corruptions, in the order of the paper."""
_GROUPS = {
    "noise": ("shot_noise", "impulse_noise"),
    "blur": ("glass_blur", "motion_blur"),
    "geometry": ("shear", "scale", "rotate", "translate"),
    "weather": ("brightness", "fog", "spatter"),
    "strokes": ("stripe", "dotted_line", "zigzag", "canny_edges"),
}
FAMILIES: dict[str, str] = {name: family for family, names in _GROUPS.items() for name in names}
"""Family of each of the 15 corruptions, in the order of tables."""
PROCEDURAL = frozenset(["motion_blur"])
"""Corruptions that differ from the released generator."""


def check_digits(shape: Sequence[int]) -> None:
    """Refuse images that MNIST-C is not defined for.

    Args:
        shape: channels, height and width.

    Raises:
        CorruptionError: colour, or another size than 28 x 28 pixels.
    """
    if tuple(shape) != (1, SIDE, SIDE):
        raise CorruptionError(
            f"MNIST-C is defined for grey images of {SIDE} x {SIDE} pixels, got {' x '.join(map(str, shape))}"
        )


def corrupt_digits(
    images: UInt8[Tensor, "n 1 28 28"], name: str, *, seed: int = 0, ids: Int64[Tensor, " n"] | None = None
) -> UInt8[Tensor, "n 1 28 28"]:
    """Corrupt digits as in MNIST-C.

    The result for an image depends only on the image, the corruption, the seed and the image's id. It is computed
    on the CPU in double precision, then cut off to 8 bits as in the released generator.

    Args:
        images: 8-bit grey images of 28 x 28 pixels.
        name: one of `MNIST_C`.
        seed: seed of the random numbers.
        ids: the examples' ids, `(N,)`; None numbers them from 0.

    Raises:
        CorruptionError: an unknown corruption, or images of another type or shape.
    """
    if name not in CHANGES:
        raise CorruptionError(f"MNIST-C has no corruption {name!r}: it has {', '.join(MNIST_C)}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (1, SIDE, SIDE):
        raise CorruptionError(
            f"MNIST-C is defined for uint8 images (N, 1, {SIDE}, {SIDE}), got {images.dtype} {tuple(images.shape)}"
        )
    ids = torch.arange(len(images)) if ids is None else ids.cpu()
    if len(ids) != len(images):
        raise CorruptionError(f"there are {len(images)} images but {len(ids)} ids")
    if len(images) == 0:
        return images.clone()
    draws = KeyedGenerator(derive_seed(seed, "mnist_c", name), ids)
    changed = CHANGES[name](images.cpu().double() / 255, draws)
    # unchanged values are multiples of 1/255 up to rounding, which must not lower them by one level
    return (changed.clamp(0, 1) * 255 + 1e-3).floor().to(torch.uint8).to(images.device)


def _sides(draws: KeyedGenerator, count: int) -> Float64[Tensor, "n count"]:
    """-1 or 1, each with probability 1/2."""
    return 2 * draws.integers(2, count).double() - 1


def _places() -> tuple[Float64[Tensor, "1 28 28"], Float64[Tensor, "1 28 28"]]:
    """Column and row of each pixel."""
    places = torch.arange(SIDE, dtype=torch.float64)
    return places[None, None, :].expand(1, SIDE, SIDE), places[None, :, None].expand(1, SIDE, SIDE)


def _mapped(images: Values, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Values:
    """Images whose pixel at (x, y) from the centre is that at (a x + b y, c x + d y); entries `(N,)`."""
    columns, rows = _places()
    centre = (SIDE - 1) / 2
    x, y = columns - centre, rows - centre
    a, b, c, d = (one[:, None, None] for one in (a, b, c, d))
    return _sampled(images, c * x + d * y + centre, a * x + b * y + centre)


def _sampled(images: Values, rows: Float64[Tensor, "n 28 28"], columns: Float64[Tensor, "n 28 28"]) -> Values:
    """Values between pixels (bilinear), zero outside."""
    return interpolated(F.pad(images, (1, 1, 1, 1)), rows + 1, columns + 1, "nearest")
