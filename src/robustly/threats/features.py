"""Per-feature limits for inputs that are not images: tables, and any other vectors of measured features."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustly.files import is_irregular
from robustly.randomness import KeyedGenerator
from robustly.threats.array_digest import array_digest
from robustly.threats.contract import Box, Images, PerExample, ThreatError, checked_box, per_example
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.precision import at_least_float32

Limits = Float[Tensor, "2 d"]
COLUMNS = ("feature", "decrease", "increase")
"""Columns of a file of limits; the names of the features are for people."""
MOST_BYTES = 2**26


@dataclass(frozen=True, eq=False)
class Features:
    """Each feature may fall and rise by limits of its own, and some may not change at all.

    An adversary can change some features of a record more easily than others, and some in one direction only: code
    can be added to a malware file and not removed, an age is given by a document.

    Args:
        share: share of all limits that may be used, at least 0; 1 is the limits themselves.
        limits: largest decrease and largest increase of each of D features, at least 0, `(2, D)`, in the unit of
            the features. Both 0 is a frozen feature.
        box: least and largest valid value of every feature: scale the features to one range, or give a box that
            holds them all.

    Raises:
        ThreatError: a negative share; limits of another shape, negative, infinite or all 0; an empty box; at use,
            inputs that do not have D values.
    """

    share: Fraction
    limits: Limits
    box: Box

    def __init__(self, share: float | str | Fraction, limits: Tensor, box: Sequence[float] = (0.0, 1.0)) -> None:
        exact = parse_epsilon(share, "the share of the features' limits")
        if exact < 0:
            raise ThreatError(f"the share of the features' limits must be at least 0, got {fraction_text(exact)}")
        object.__setattr__(self, "share", exact)
        object.__setattr__(self, "limits", _checked_limits(limits))
        object.__setattr__(self, "box", checked_box(box))

    @staticmethod
    def read(share: str, box: Sequence[float], path: str) -> "Features":
        """Features whose limits are those of a file; see `read_limits`."""
        return Features(share, read_limits(path), box)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Features) and str(self) == str(other) and self.box == other.box

    def __hash__(self) -> int:
        return hash((str(self), self.box))

    def __str__(self) -> str:
        return f"{self.kind}:{self.extent_text}@{array_digest(self.limits)}"

    @property
    def kind(self) -> str:  # noqa: D102
        return "features"

    @property
    def extent(self) -> Fraction:
        """Share of the limits."""
        return self.share

    @property
    def extent_text(self) -> str:  # noqa: D102
        return fraction_text(self.share)

    @property
    def unit(self) -> str:  # noqa: D102
        return "times each feature's limit"

    @property
    def arrays(self) -> Mapping[str, Tensor]:
        """The limits, by their digest."""
        return {array_digest(self.limits): self.limits}

    @property
    def set_type(self) -> type["FeatureBox"]:  # noqa: D102
        return FeatureBox

    def words(self) -> str:
        """Description of the threat in a sentence."""
        count, frozen = self.limits.shape[1], int((self.limits == 0).all(0).sum())
        one_way = int(((self.limits == 0).sum(0) == 1).sum())
        return (
            f"Each of {count} features may change by {self.extent_text} times its own limits; {frozen} of them may "
            f"not change, and {one_way} in one direction only."
        )

    def scaled(self, factor: float) -> "Features":
        """The same limits and `factor` times the share."""
        return self.with_extent(float(self.share) * factor)

    def with_extent(self, extent: float | str | Fraction) -> "Features":
        """Another share of the same limits."""
        return Features(extent, self.limits, self.box)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Multiples of the share."""
        shares = {self.share * Fraction(factor).limit_denominator(1000) for factor in factors}
        return sorted(share for share in shares if share > 0)

    def select(self, index: Tensor) -> "Features":
        """The same threat: its limits do not differ between examples."""
        return self

    def around(self, x: Images) -> "FeatureBox":
        """Allowed inputs around each input of a batch.

        Raises:
            ThreatError: inputs that do not have D values.
        """
        size = math.prod(x.shape[1:])
        if size != self.limits.shape[1]:
            raise ThreatError(
                f"the limits of {self} are for {self.limits.shape[1]} features, the inputs have {size} (shape "
                f"{tuple(x.shape)})"
            )
        x = at_least_float32(x)
        radius = torch.full((len(x),), float(self.share), device=x.device, dtype=x.dtype)
        return FeatureBox(x, radius, self.limits.to(x).reshape(2, *x.shape[1:]), self.box)


@dataclass(frozen=True)
class FeatureBox:
    """Inputs whose features change within limits; theta `(N, ...)` is what is added to the input.

    Args:
        x: original inputs `(N, ...)`.
        radius: share of the limits that may be used, `(N,)`.
        limits: largest decrease and largest increase of each feature, `(2, ...)`.
        box: least and largest valid value.
    """

    x: Images
    radius: PerExample
    limits: Float[Tensor, "2 ..."]
    box: Box

    def apply(self, theta: Images) -> Images:
        """Changed inputs, clipped to the box."""
        return (self.x + theta).clamp(*self.box)

    def moved_to(self, images: Images) -> "FeatureBox":
        """The same changes of other inputs."""
        return replace(self, x=images)

    def identity(self) -> Images:
        """Changes of zero."""
        return torch.zeros_like(self.x)

    def random_start(self, generator: KeyedGenerator) -> Images:
        """Uniform between the limits of each feature, within the box."""
        low, high = self._reach
        return low + generator.uniform(*self.x.shape[1:]).to(self.x) * (high - low)

    def project(self, theta: Images) -> Images:
        """Changes clipped to their limits and to the box."""
        low, high = self._reach
        return torch.minimum(torch.maximum(theta, low), high)

    def step(self, theta: Images, gradient: Images, step_size: PerExample) -> Images:
        """Step of each feature along the sign of its gradient, by `step_size` times the mean of its two limits."""
        length = per_example(step_size, theta) * self.limits.mean(0)
        return self.project(theta + gradient.sign() * length)

    def units(self) -> Images:
        """Mean of the two limits of each feature, `(1, ...)`."""
        return self.limits.mean(0)[None]

    def default_step_size(self, steps: int) -> PerExample:
        """2.5 shares over the number of steps."""
        return 2.5 * self.radius / max(steps, 1)

    def size(self, theta: Images) -> PerExample:
        """Largest share of its limit that a feature uses; infinite where one changes that may not."""
        limit = torch.where(theta < 0, self.limits[0], self.limits[1])
        used = torch.where(theta == 0, torch.zeros_like(theta), theta.abs() / limit)
        return used.flatten(1).amax(1)

    def contains(self, theta: Images) -> Bool[Tensor, " n"]:
        """True where each change is within its limit, up to float32 rounding; frozen features are exact."""
        return self.size(theta) <= self.radius * (1 + 1e-5) + 1e-6

    def describe(self, theta: Images) -> list[str]:
        """One phrase per example: the number of changed features, and the largest change."""
        flat = theta.flatten(1)
        counts, places = (flat != 0).sum(1).tolist(), flat.abs().argmax(1)
        largest = flat.gather(1, places[:, None])[:, 0].tolist()
        return [
            f"{count} features changed, most feature {place}, by {change:+.3g}" if count else "unchanged"
            for count, place, change in zip(counts, places.tolist(), largest, strict=True)
        ]

    def select(self, index: Tensor) -> "FeatureBox":
        """Sets of some of the examples."""
        return FeatureBox(self.x[index], self.radius[index], self.limits, self.box)

    @property
    def _reach(self) -> tuple[Images, Images]:
        """Least and largest allowed change."""
        low, high = self.box
        share = per_example(self.radius, self.x)
        return (
            torch.maximum(-share * self.limits[0], low - self.x),
            torch.minimum(share * self.limits[1], high - self.x),
        )


def read_limits(path: Path | str) -> Limits:
    """Limits of features from a CSV file: columns feature, decrease, increase; one row per feature, in order.

    Raises:
        ThreatError: a file that is missing, too large, or has other columns or values.
    """
    try:
        if is_irregular(path):
            raise ThreatError(f"{str(path)!r} is not a regular file, which a file of limits is")
        if Path(path).stat().st_size > MOST_BYTES:
            raise ThreatError(f"{str(path)!r} is larger than {MOST_BYTES} bytes, which no file of limits is")
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            head, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split())[:120]
        raise ThreatError(f"{str(path)!r} is not a readable CSV file of limits ({reason})") from None
    if tuple(name.strip().lower() for name in head) != COLUMNS:
        raise ThreatError(f"{str(path)!r} must have the columns {','.join(COLUMNS)}, got {','.join(head)[:80]!r}")
    limits = [_row(row, f"{str(path)!r} line {line}") for line, row in enumerate(rows, 2) if row]
    if not limits:
        raise ThreatError(f"{str(path)!r} has no features")
    return torch.tensor(limits, dtype=torch.float32).T.contiguous()


def _row(row: Sequence[str], where: str) -> tuple[float, float]:
    try:
        _, down, up = row
        return float(down), float(up)
    except ValueError:
        raise ThreatError(f"{where} must be a name and two numbers, got {','.join(row)[:80]!r}") from None


def _checked_limits(limits: Tensor) -> Limits:
    if not isinstance(limits, Tensor) or limits.ndim != 2 or len(limits) != 2 or limits.shape[1] == 0:
        shape = tuple(limits.shape) if isinstance(limits, Tensor) else type(limits).__name__
        raise ThreatError(
            f"the limits of features must be a tensor (2, features): decreases, increases; got {shape}"
        )
    values = limits.detach().float()
    if not bool((values.isfinite() & (values >= 0)).all()):
        wrong = int((~(values.isfinite() & (values >= 0))).any(0).nonzero()[0, 0])
        raise ThreatError(f"limits must be finite numbers of at least 0, that of feature {wrong} is not")
    if not bool((values > 0).any()):
        raise ThreatError("the limits allow no feature to change")
    return values
