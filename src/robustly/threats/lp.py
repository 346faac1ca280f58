"""Lp threats: all images within a radius of the original, measured in a norm, inside a box and a mask."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.files import is_irregular
from robustly.memory import check_npy
from robustly.threats.array_digest import array_digest
from robustly.threats.balls import L0Ball, L1Ball, L2Ball, LinfBall, LpBall, Mask
from robustly.threats.contract import ThreatError, checked_box
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.precision import at_least_float32

Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[str, ...] = get_args(Norm)
_BALLS: dict[str, type[LpBall]] = {ball.norm: ball for ball in (LinfBall, L2Ball, L1Ball, L0Ball)}


@dataclass(frozen=True, eq=False)
class ThreatModel:
    """All images within `epsilon` of the original in `norm`, inside `box`, changed only where `mask` allows.

    Args:
        norm: "linf" (largest change of a value), "l2", "l1", or "l0" (number of changed pixels; all channels of a
            pixel count once).
        epsilon: radius in the units of the images, at least 0: a number, a text such as "8/255", an exact
            `Fraction`, one value per example `(N,)`, or under linf one value per pixel, as a tensor of an image's
            shape (or `(H, W)`). Numbers are kept exactly: 8/255 stays 8/255.
        box: least and largest valid value of an image.
        mask: values of an image that may change: a tensor of booleans of an image's shape `(C, H, W)`, or `(H, W)`
            for all channels, or `(C, 1, 1)` for whole channels. None allows all. Under linf it may hold shares of
            epsilon in [0, 1].

    Raises:
        ThreatError: unknown norm; negative, NaN or infinite epsilon; an l-inf epsilon wider than the box; a box
            that is empty; an l0 epsilon that is not a whole number; a mask that allows nothing or has other values.
    """

    norm: Norm
    epsilon: Fraction | Tensor
    box: tuple[float, float]
    mask: Mask | None

    def __init__(
        self,
        norm: str,
        epsilon: float | str | Fraction | Tensor,
        box: Sequence[float] = (0.0, 1.0),
        mask: Tensor | None = None,
    ) -> None:
        if norm not in NORMS:
            raise ThreatError(f"unknown norm {norm!r}: allowed are {', '.join(NORMS)}")
        box = checked_box(box)
        if isinstance(epsilon, Tensor) and epsilon.ndim > 1:
            epsilon, mask = _split_per_pixel(norm, epsilon, mask)
        exact = epsilon if isinstance(epsilon, Tensor) else parse_epsilon(epsilon)
        object.__setattr__(self, "norm", norm)
        object.__setattr__(self, "epsilon", exact)
        object.__setattr__(self, "box", box)
        object.__setattr__(self, "mask", None if mask is None else _checked_mask(norm, mask))
        self._check_epsilon()

    def _check_epsilon(self) -> None:
        if isinstance(self.epsilon, Tensor):
            if self.epsilon.ndim != 1:
                raise ThreatError(f"per-example epsilon must be (N,), got {tuple(self.epsilon.shape)}")
            if self.epsilon.numel() == 0:
                return
            least, largest = float(self.epsilon.min()), float(self.epsilon.max())
        else:
            least = largest = float(self.epsilon)
        if not (least >= 0 and math.isfinite(largest)):
            wrong = largest if least >= 0 else least
            raise ThreatError(f"epsilon must be a finite number of at least 0, got {wrong:g}")
        low, high = self.box
        if self.norm == "linf" and largest > high - low:
            meant = f": did you mean {largest:g}/255?" if largest <= 255 * (high - low) else "."
            raise ThreatError(f"epsilon {largest:g} is wider than the box [{low:g}, {high:g}] of the images{meant}")
        if self.norm == "l0" and not _is_whole(self.epsilon):
            raise ThreatError(f"l0 counts pixels: epsilon must be a whole number, got {self.epsilon_text}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ThreatModel) or (self.norm, self.box) != (other.norm, other.box):
            return False
        return _equal(self.epsilon, other.epsilon) and _equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash((self.norm, self.box, self.epsilon_text, self.mask_digest))

    def __str__(self) -> str:
        masked = "" if self.mask is None else f"@{self.mask_digest}"
        return f"{self.norm}:{self.epsilon_text}{masked}"

    @property
    def kind(self) -> str:
        """Norm."""
        return self.norm

    @property
    def extent(self) -> Fraction | Tensor:
        """Epsilon."""
        return self.epsilon

    @property
    def extent_text(self) -> str:
        """Text of epsilon."""
        return self.epsilon_text

    @property
    def unit(self) -> str:
        """Unit of epsilon."""
        return "pixels" if self.norm == "l0" else "input units"

    @property
    def arrays(self) -> Mapping[str, Tensor]:
        """The mask, if there is one, by its digest."""
        return {} if self.mask is None else {self.mask_digest: self.mask}

    @property
    def set_type(self) -> type[LpBall]:
        """Class of the balls."""
        return _BALLS[self.norm]

    @property
    def epsilon_text(self) -> str:
        """Text of epsilon: "8/255", "0.3", "12"."""
        if isinstance(self.epsilon, Tensor):
            return "per-example"
        return fraction_text(self.epsilon)

    @property
    def mask_digest(self) -> str:
        """First 12 hexadecimal digits of the mask's SHA-256; empty without a mask."""
        return "" if self.mask is None else array_digest(self.mask)

    def with_epsilon(self, epsilon: float | str | Fraction | Tensor) -> "ThreatModel":
        """The same threat with another radius."""
        return ThreatModel(self.norm, epsilon, self.box, self.mask)

    def with_extent(self, extent: float | str | Fraction) -> "ThreatModel":
        """Same as `with_epsilon`."""
        return self.with_epsilon(extent)

    def scaled(self, factor: float) -> "ThreatModel":
        """The same threat with `factor` times the radius.

        Under linf it is at most the width of the box; under l0 it is rounded up to whole pixels.
        """
        radius = self.epsilon * factor if isinstance(self.epsilon, Tensor) else float(self.epsilon) * factor
        width = self.box[1] - self.box[0]
        if isinstance(radius, Tensor):
            return self.with_epsilon(radius.clamp_max(width) if self.norm == "linf" else radius)
        if self.norm == "linf":
            radius = min(radius, width)
        return self.with_epsilon(math.ceil(radius) if self.norm == "l0" else radius)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Radii at multiples of epsilon: whole pixels under l0, at most the width of the box under linf."""
        if isinstance(self.epsilon, Tensor) or self.epsilon == 0:
            return []
        radii = [self.epsilon * Fraction(factor).limit_denominator(1000) for factor in factors]
        if self.norm == "l0":
            radii = [Fraction(round(radius)) for radius in radii]
        width = Fraction(self.box[1]) - Fraction(self.box[0])
        return sorted({radius for radius in radii if radius > 0 and (self.norm != "linf" or radius <= width)})

    def select(self, index: Tensor) -> "ThreatModel":
        """The threat for some of the examples. It differs only if epsilon is per example."""
        return self.with_epsilon(self.epsilon[index]) if isinstance(self.epsilon, Tensor) else self

    def around(self, x: Float[Tensor, "n ..."]) -> LpBall:
        """Set of allowed images around each image of a batch.

        Raises:
            ThreatError: the numbers of images and radii differ; the mask does not fit the images.
        """
        x = at_least_float32(x)
        return _BALLS[self.norm](x, self._radii(x), self.box, self._mask_for(x))

    def offsets_around(self, x: Float[Tensor, "n ..."]) -> LpBall:
        """Allowed perturbations as a ball around zero, without regard to the images' distance to the box."""
        x, width = at_least_float32(x), self.box[1] - self.box[0]
        return _BALLS[self.norm](torch.zeros_like(x), self._radii(x), (-width, width), self._mask_for(x))

    def project(self, x_adv: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Allowed image nearest to `x_adv` (Euclidean, exact for ball and box together)."""
        return self.around(x).project(x_adv)

    def distance(self, x_adv: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """Length of each perturbation in the threat's norm (l0: pixels)."""
        return self.around(x).size(x_adv)

    def contains(self, x_adv: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."]) -> Bool[Tensor, " n"]:
        """True where the image is allowed, up to float32 rounding (1e-6 absolute + 1e-6 relative; l1, l2: 1e-5)."""
        return self.around(x).contains(x_adv)

    def words(self) -> str:
        """Description of the threat in a sentence."""
        low, high = self.box
        scale = f"on a scale from {low:g} to {high:g}"
        size = self.epsilon_text
        where = "" if self.mask is None else f" Only {self._masked_share()} may change."
        if self.norm == "linf":
            return f"Every value of every pixel may change by at most {size} ({scale}), all of them at once.{where}"
        if self.norm == "l2":
            return f"The change as a whole may have a Euclidean length of at most {size} ({scale}).{where}"
        if self.norm == "l1":
            return f"The changes of all values may add up to at most {size} ({scale}).{where}"
        return f"At most {size} pixels may change, each to any colour.{where}"

    def _masked_share(self) -> str:
        assert self.mask is not None
        free, full = float((self.mask > 0).double().mean()), bool(((self.mask == 0) | (self.mask == 1)).all())
        region = f"the region of a mask ({100 * free:.3g} % of the values)"
        return region if full else f"{region}, each by its share of epsilon,"

    def _radii(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        if not isinstance(self.epsilon, Tensor):
            return torch.full((len(x),), float(self.epsilon), device=x.device, dtype=x.dtype)
        if len(self.epsilon) != len(x):
            raise ThreatError(f"epsilon has {len(self.epsilon)} entries for {len(x)} images")
        return self.epsilon.to(device=x.device, dtype=x.dtype)

    def _mask_for(self, x: Float[Tensor, "n ..."]) -> Tensor | None:
        if self.mask is None:
            return None
        shape, image = tuple(self.mask.shape), tuple(x.shape[1:])
        fits = len(shape) <= len(image) and all(
            mine in (1, theirs) for mine, theirs in zip(reversed(shape), reversed(image), strict=False)
        )
        if not fits:
            raise ThreatError(f"the mask has shape {shape}, which does not fit images of shape {image}")
        return self.mask.to(device=x.device, dtype=x.dtype)


def _is_whole(epsilon: Fraction | Tensor) -> bool:
    if isinstance(epsilon, Tensor):
        return bool((epsilon == epsilon.round()).all())
    return epsilon.denominator == 1


def read_mask(path: str) -> Tensor:
    """A mask from a NumPy file (`.npy`): booleans, or shares of epsilon in [0, 1].

    Raises:
        ThreatError: a file that is missing or not a NumPy array of numbers.
    """
    try:
        if is_irregular(path):
            raise ValueError("it is not a regular file")
        check_npy(Path(path))
        values = np.load(path, allow_pickle=False)
        if np.iscomplexobj(values):
            raise ValueError("its numbers are complex")
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    except (OSError, ValueError, TypeError, EOFError) as error:
        reason = " ".join(str(error).removeprefix(f"{path}: ").split())[:120]
        raise ThreatError(f"the mask {path!r} is not a readable NumPy file (.npy) of numbers ({reason})") from None


def _split_per_pixel(norm: str, epsilon: Tensor, mask: Tensor | None) -> tuple[Fraction, Tensor]:
    """Split per-pixel epsilons into the largest of them and shares of it."""
    if norm != "linf":
        raise ThreatError(f"per-pixel epsilons are possible under linf only, the norm is {norm}")
    if not (
        epsilon.numel() and bool(epsilon.isfinite().all()) and float(epsilon.min()) >= 0 < float(epsilon.max())
    ):
        raise ThreatError("per-pixel epsilons must be finite numbers of at least 0, not all 0")
    epsilon = epsilon if epsilon.dtype == torch.float64 else epsilon.float()
    largest = epsilon.max()
    share = epsilon / largest
    if mask is not None:
        try:
            share = share * _checked_mask(norm, mask)
        except RuntimeError:
            shapes = f"{tuple(mask.shape)} and {tuple(epsilon.shape)}"
            raise ThreatError(
                f"mask and per-pixel epsilons do not fit together: their shapes are {shapes}"
            ) from None
    return parse_epsilon(str(largest.cpu().numpy())), share


def _checked_mask(norm: str, mask: Tensor) -> Tensor:
    wrong = ThreatError(
        "a mask must be a tensor of booleans, or of shares of epsilon in [0, 1], per value of an image"
    )
    if not isinstance(mask, Tensor) or mask.is_complex():
        raise wrong
    share = mask.detach().to(torch.float32 if mask.dtype != torch.float64 else torch.float64)
    if share.ndim == 0 or not bool(((share >= 0) & (share <= 1)).all()):
        raise wrong
    if not bool((share > 0).any()):
        raise ThreatError("the mask allows no value to change")
    if norm != "linf" and not bool(((share == 0) | (share == 1)).all()):
        raise ThreatError(f"under {norm} a mask must be 0 or 1: shares of epsilon are possible under linf only")
    return share


def _equal(one: Fraction | Tensor | None, other: Fraction | Tensor | None) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return one == other
