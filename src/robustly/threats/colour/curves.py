"""Colour curves as threats: ACE on RGB, curves of hue, saturation and value, and ALA on lightness.

All three search rising piecewise-linear curves whose slopes differ by at most a factor, the bound (Zhao, Liu and
Larson, "Adversarial Color Enhancement", BMVC 2020). The parameters of a curve are the relative slopes of its S = 64
pieces in [1, bound], S times the papers' theta; equal slopes change nothing. A search moves them along the gradient
divided by its norm.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.balls import unit_length
from robustly.threats.colour.cie import cube_root, cubed, decoded, encoded, linear_rgb, relative_xyz
from robustly.threats.colour.curve import PIECES, curved, piece_of
from robustly.threats.colour.hsv import hue_of, rgb_of, saturation_of, value_and_chroma
from robustly.threats.colour.unit_range import from_unit, to_unit
from robustly.threats.contract import Box, Images, PerExample, per_example
from robustly.threats.known_slopes import clipped
from robustly.threats.parameter_box import exact_at_neutral
from robustly.threats.transformation import BoundedTransformation, check_channels

Slopes = Float[Tensor, "n k s"]


@dataclass(frozen=True)
class Prepared:
    """Values of images that do not depend on the curves.

    Args:
        values: the values that pass through the curves, in [0, 1].
        piece: their pieces.
        rest: whatever else of the images the change needs.
    """

    values: Float[Tensor, "n k h w"]
    piece: Int64[Tensor, "n k p"]
    rest: Images | None = None

    def curved(self, theta: Slopes) -> Float[Tensor, "n k h w"]:
        """The values after the curves."""
        return curved(self.values, theta, self.piece)


@dataclass(frozen=True)
class CurveSet:
    """Images after k curves of `PIECES` pieces each; theta holds their relative slopes in [1, bound], `(N, k, S)`.

    The size of a change is its largest relative slope; 0 where all slopes of every curve are equal.

    Args:
        x: original images.
        radius: the bound `(N,)`, at least 1.
        curves: number of curves, k.
        prepare: what is computed of the images alone, once for all slopes.
        transform: from the result of `prepare` and theta to images in the box; differentiable.
    """

    x: Images
    radius: PerExample
    curves: int
    prepare: Callable[[Images], "Prepared"]
    transform: Callable[["Prepared", Slopes], Images]

    def apply(self, theta: Slopes) -> Images:
        """Images after the curves, exactly the originals where the slopes of each curve are equal."""
        given = self.prepare(self.x) if self.x.requires_grad else self._prepared
        return exact_at_neutral(self.transform(given, theta), self.x, self._is_identity(theta))

    @cached_property
    def _prepared(self) -> "Prepared":
        """The prepared images, which every step of an ascent needs."""
        return self.prepare(self.x)

    def moved_to(self, images: Images) -> "CurveSet":
        """The same curves of other images."""
        return replace(self, x=images)

    def identity(self) -> Slopes:
        """All slopes 1."""
        return self.x.new_ones(len(self.x), self.curves, PIECES)

    def random_start(self, generator: KeyedGenerator) -> Slopes:
        """Independent uniform slopes."""
        share = generator.uniform(self.curves, PIECES).to(self.x)
        return self.project(1 + share * (per_example(self.radius, share) - 1))

    def project(self, theta: Slopes) -> Slopes:
        """Slopes clipped to [1, bound]."""
        return torch.minimum(theta.clamp_min(1.0), per_example(self.radius, theta))

    def step(self, theta: Slopes, gradient: Slopes, step_size: PerExample) -> Slopes:
        """Step along the gradient over its Euclidean norm, by `step_size` in root mean square over all slopes.

        The papers' steps of length 1 on slopes over S are of size sqrt(S / k): 4.6 for three curves, 8 for one.
        """
        length = step_size * math.sqrt(self.curves * PIECES)
        return self.project(theta + unit_length(gradient, 2) * per_example(length, theta))

    def default_step_size(self, steps: int) -> PerExample:
        """2.5 bounds over the number of steps."""
        return 2.5 * self.radius / max(steps, 1)

    def size(self, theta: Slopes) -> PerExample:
        """Largest relative slope; 0 for the identity."""
        return torch.where(self._is_identity(theta), 0.0, theta.flatten(1).amax(1))

    def contains(self, theta: Slopes) -> Bool[Tensor, " n"]:
        """True where all slopes are in their range, up to rounding."""
        slopes = theta.flatten(1)
        return (slopes >= 1 - 1e-6).all(1) & (slopes <= self.radius[:, None] * (1 + 1e-6)).all(1)

    def select(self, index: Tensor) -> "CurveSet":
        """Sets of some of the examples."""
        return replace(self, x=self.x[index], radius=self.radius[index])

    def describe(self, theta: Slopes) -> list[str]:
        """Each change in words: "curves with slopes of 0.2 to 3.1"."""
        slopes = (theta * PIECES / theta.sum(-1, keepdim=True)).flatten(1)
        return [
            "unchanged" if same else f"curves with slopes of {low:.2g} to {high:.2g}"
            for same, low, high in zip(
                self._is_identity(theta).tolist(), slopes.amin(1).tolist(), slopes.amax(1).tolist(), strict=True
            )
        ]

    @staticmethod
    def _is_identity(theta: Slopes) -> Bool[Tensor, " n"]:
        return (theta == theta[..., :1]).flatten(1).all(1)


@dataclass(frozen=True)
class Curves:
    """Family of curves of a colour space.

    Args:
        kind: word in front of the colon of the text form.
        curves: number of curves.
        prepare: what the curves need of images in [0, 1].
        change: images in [0, 1] after the curves.
        channels: numbers of channels that the images may have.
        sentence: description of the threat, with `{limit}` in the place of the bound.
    """

    kind: str
    curves: int
    prepare: Callable[[Images], Prepared] = field(repr=False)
    change: Callable[[Prepared, Slopes], Images] = field(repr=False)
    channels: tuple[int, ...]
    sentence: str = field(repr=False)

    unit = "times the least slope"
    least = Fraction(1)
    most = None
    set_type = CurveSet

    def within(self, bound: float | str | Fraction, box: Sequence[float] = (0.0, 1.0)) -> BoundedTransformation:
        """Threat that allows curves whose steepest slope is at most `bound` times the least.

        Raises:
            ThreatError: a bound below 1; an empty box.
        """
        return BoundedTransformation(self, bound, box)

    def advice(self, limit: Fraction) -> str:
        """Meaning of a bound."""
        return " (1 allows the identity only)"

    def around(self, x: Images, limit: Fraction, box: Box) -> CurveSet:
        """Images around each image, for a bound and a box."""
        check_channels(self.kind, self.channels, x.shape)

        def prepare(images: Images) -> Prepared:
            return self.prepare(to_unit(images, box))

        def transform(prepared: Prepared, theta: Slopes) -> Images:
            return from_unit(self.change(prepared, theta), box)

        bound = torch.full((len(x),), float(limit), device=x.device, dtype=x.dtype)
        return CurveSet(x, bound, self.curves, prepare, transform)


def _own_values(images: Images) -> Prepared:
    """The values of each channel."""
    return Prepared(images, piece_of(images))


def _curved_values(prepared: Prepared, theta: Slopes) -> Images:
    """Images after a curve of each channel."""
    return clipped(prepared.curved(theta), 0.0, 1.0)


def _hsv(images: Images) -> Prepared:
    """Hue (over a full turn from red to red), saturation and value."""
    value, chroma = value_and_chroma(images)
    space = torch.stack([hue_of(images, value, chroma).remainder(6.0) / 6, saturation_of(value, chroma), value], 1)
    return Prepared(space, piece_of(space))


def hsv_curved(prepared: Prepared, theta: Float[Tensor, "n 3 s"]) -> Images:
    """RGB images in [0, 1] after curves of hue, saturation and value."""
    hue, saturation, value = prepared.curved(theta).unbind(1)
    return clipped(rgb_of(hue * 6, value, value * saturation), 0.0, 1.0)


def _lightness(images: Images) -> Prepared:
    """L* of CIELAB over 100; the rest are f(X), f(Y) and f(Z)."""
    roots = cube_root(relative_xyz(decoded(images)))
    lightness = 1.16 * (roots if roots.shape[1] == 1 else roots[:, 1:2]) - 0.16
    return Prepared(lightness, piece_of(lightness), roots)


def lightness_curved(prepared: Prepared, theta: Float[Tensor, "n 1 s"]) -> Images:
    """Images in [0, 1] after a curve of L* of CIELAB; a* and b* do not change, and the gamut clips.

    L* is 116 f(Y) - 16, and a* and b* are differences of f(X), f(Y) and f(Z): one addition to the three moves L*
    alone.
    """
    assert prepared.rest is not None
    change = (prepared.curved(theta) - prepared.values) / 1.16
    return encoded(linear_rgb(cubed(prepared.rest + change)))


_PIECES_IN_WORDS = (
    f"rising curve of {PIECES} straight pieces, whose steepest slope is at most {{limit}} times the least"
)

ACE = Curves(
    "ace",
    3,
    _own_values,
    _curved_values,
    (3,),
    f"Each colour channel of an image may pass through its own {_PIECES_IN_WORDS} (ACE).",
)
"""Adversarial colour enhancement: one curve per channel of RGB. The paper's bound is 16."""
HSV_CURVE = Curves(
    "hsv_curve",
    3,
    _hsv,
    hsv_curved,
    (3,),
    f"Hue, saturation and value (HSV) of an image may each pass through a {_PIECES_IN_WORDS}.",
)
"""Curves of hue, saturation and value, as in the public code of TaFD."""
LIGHTNESS = Curves(
    "lightness",
    1,
    _lightness,
    lightness_curved,
    (1, 3),
    f"The lightness (L* of CIELAB) of an image may pass through a {_PIECES_IN_WORDS} (ALA).",
)
"""Adversarial lightness (Huang et al., 2023). Slopes stay positive, so that light and dark are not exchanged."""
