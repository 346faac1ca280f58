"""Common corruptions up to a severity, and those of MNIST-C, as threats: finite sets without gradients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from robustly.corruptions import LEAST_SIDE, SEVERITIES, STANDARD, corrupt
from robustly.corruptions.mnist_c import MNIST_C, SIDE, corrupt_digits
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Images, PerExample, ThreatError
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.precision import at_least_float32

Choice = Float[Tensor, "n 3"]
"""A corruption (1 to 15, 0 for none), its severity (0 for none), and a number that selects its random numbers."""
NUMBERS = 1 << 24
"""Numbers that random numbers may depend on: those of 24 bits, which float32 holds exactly."""
Pixels = UInt8[Tensor, "n c h w"]


@dataclass(frozen=True)
class Collection:
    """Corruptions of one source.

    Args:
        kind: word in front of the colon of the text form.
        names: the corruptions.
        severities: their severities, from 1.
        corrupt: from 8-bit images, a corruption, a severity and numbers `(N,)` to corrupted images.
        fits: whether the corruptions are defined for images of a shape `(N, C, H, W)`.
        images: the images that they are defined for, in words.
        rule: the allowed severities, in words.
        sentence: description of the threat, with `{limit}` in the place of the severity.
    """

    kind: str
    names: tuple[str, ...]
    severities: tuple[int, ...]
    corrupt: Callable[[Pixels, str, int, Int64[Tensor, " n"]], Pixels]
    fits: Callable[[torch.Size], bool]
    images: str
    rule: str
    sentence: str


def _common(pixels: Pixels, name: str, severity: int, ids: Int64[Tensor, " n"]) -> Pixels:
    return corrupt(pixels, name, severity, ids=ids)


def _digits(pixels: Pixels, name: str, severity: int, ids: Int64[Tensor, " n"]) -> Pixels:
    return corrupt_digits(pixels, name, ids=ids)


def _fits_common(shape: torch.Size) -> bool:
    return len(shape) == 4 and shape[1] in (1, 3) and min(shape[2:]) >= LEAST_SIDE


def _fits_digits(shape: torch.Size) -> bool:
    return tuple(shape[1:]) == (1, SIDE, SIDE)


COMMON = Collection(
    "corruption",
    STANDARD,
    SEVERITIES,
    _common,
    _fits_common,
    f"corruptions are defined for images (N, C, H, W) of 1 or 3 channels and at least {LEAST_SIDE} x {LEAST_SIDE} "
    "pixels",
    "the severity of corruptions is a whole number from 1 to 5",
    f"Each image may be changed by one of the {len(STANDARD)} common corruptions (noise, blur, weather, digital) "
    "at a severity of at most {limit}.",
)
"""The 15 corruptions of Hendrycks and Dietterich (ICLR 2019)."""
DIGITS = Collection(
    "mnist_c",
    MNIST_C,
    (1,),
    _digits,
    _fits_digits,
    f"mnist_c is defined for grey images (N, 1, {SIDE}, {SIDE})",
    "the corruptions of MNIST-C have one severity, mnist_c:1",
    f"Each image may be changed by one of the {len(MNIST_C)} corruptions of MNIST-C (noise, blur, geometry, "
    "weather, strokes), which have one severity.",
)
"""The 15 corruptions of Mu and Gilmer (2019), for digits."""
COLLECTIONS: dict[str, Collection] = {one.kind: one for one in (COMMON, DIGITS)}
"""Collections by the kind of their threat."""


@dataclass(frozen=True)
class CorruptionSet:
    """Each image, and its 15 corruptions at severities of at most the radius.

    There is no gradient: `candidates` lists the set, and `ExhaustiveSearch` tries all of it. Images are rounded to
    8 bits before they are corrupted.

    Args:
        x: original images `(N, C, H, W)` in [0, 1].
        radius: largest severity, `(N,)`.
        collection: the corruptions.
    """

    x: Images
    radius: PerExample
    collection: Collection = COMMON

    def apply(self, theta: Choice) -> Images:
        """Corrupted images; the original bit for bit for corruption 0. Not differentiable."""
        changed = self.x.clone()
        choices = theta.detach().round().long().cpu()
        for kind, severity in sorted({(int(kind), int(severity)) for kind, severity, _ in choices.tolist()}):
            if kind == 0 or severity == 0:
                continue
            rows = ((choices[:, 0] == kind) & (choices[:, 1] == severity)).nonzero()[:, 0]
            place = rows.to(self.x.device)
            pixels = (self.x[place].detach() * 255).round().to(torch.uint8)
            corrupted = self.collection.corrupt(pixels, self.collection.names[kind - 1], severity, choices[rows, 2])
            changed[place] = corrupted.to(changed.dtype) / 255
        return changed

    def identity(self) -> Choice:
        """No corruption, `(N, 3)`."""
        return self.x.new_zeros(len(self.x), 3)

    def random_start(self, generator: KeyedGenerator) -> Choice:
        """A random corruption at a random severity."""
        kind = generator.fold("corruption").integers(len(self.collection.names), 1) + 1
        severity = (generator.fold("severity").uniform(1).to(self.x) * self.radius[:, None]).floor() + 1
        number = generator.fold("number").integers(NUMBERS, 1)
        return self.project(torch.cat([kind.to(self.x), severity, number.to(self.x)], 1))

    def project(self, theta: Choice) -> Choice:
        """Nearest whole numbers in the ranges; a corruption without a severity becomes none, and the reverse."""
        kind = theta[:, 0].round().clamp(0, len(self.collection.names))
        severity = torch.minimum(theta[:, 1].round().clamp_min(0), self.radius.floor())
        there = (kind > 0) & (severity > 0)
        number = theta[:, 2].round().clamp(0, NUMBERS - 1)
        return torch.where(there[:, None], torch.stack([kind, severity, number], 1), torch.zeros_like(theta))

    def step(self, theta: Choice, gradient: Choice, step_size: PerExample) -> Choice:
        """Refuse gradient steps.

        Raises:
            ThreatError: always.
        """
        raise ThreatError("corruptions have no gradient: use the attack exhaustive, which tries all of them")

    def default_step_size(self, steps: int) -> PerExample:
        """One severity."""
        return torch.ones_like(self.radius)

    def size(self, theta: Choice) -> PerExample:
        """Severity; 0 for none."""
        return torch.where(theta[:, 0] > 0, theta[:, 1], torch.zeros_like(theta[:, 1]))

    def contains(self, theta: Choice) -> Bool[Tensor, " n"]:
        """True for whole numbers in the ranges."""
        return theta.isfinite().all(1) & (self.project(theta.nan_to_num(-1.0)) == theta).all(1)

    def select(self, index: Tensor) -> "CorruptionSet":
        """Sets of some of the examples."""
        return CorruptionSet(self.x[index], self.radius[index], self.collection)

    def candidates(self, theta: Choice, gradient: Choice, count: int) -> Float[Tensor, "n count 3"]:
        """The first `count` corruptions, by severity, with the numbers of theta; the gradient is not used."""
        kinds = range(1, len(self.collection.names) + 1)
        every = [(kind, severity) for severity in self.collection.severities for kind in kinds][:count]
        pairs = theta.new_tensor(every).reshape(1, -1, 2).expand(len(theta), -1, -1)
        numbers = theta[:, None, 2:].expand(-1, pairs.shape[1], -1)
        return torch.cat([pairs, numbers], 2)

    @property
    def count(self) -> int:
        """Number of corruptions in the largest of the sets."""
        return len(self.collection.names) * int(self.radius.max()) if len(self.radius) else 0


@dataclass(frozen=True)
class CorruptionThreat:
    """The 15 corruptions of a collection at severities of at most `severity`; the adversary may choose one.

    Args:
        severity: largest severity, a whole number from 1 to 5 (MNIST-C: 1); 0 allows no change.
        box: least and largest valid value of an image: (0, 1).
        collection: the common corruptions, or those of MNIST-C.

    Raises:
        ThreatError: another severity, or another box; at use, images that the corruptions are not defined for.
    """

    severity: Fraction
    box: tuple[float, float]
    collection: Collection

    def __init__(
        self,
        severity: float | str | Fraction,
        box: Sequence[float] = (0.0, 1.0),
        collection: Collection = COMMON,
    ) -> None:
        rule = collection.rule
        try:
            exact = parse_epsilon(severity)
        except ThreatError:
            raise ThreatError(f"{rule}, got {severity!r}") from None
        if exact.denominator != 1 or not 0 <= exact <= max(collection.severities):
            raise ThreatError(f"{rule}, got {fraction_text(exact)}")
        if tuple(float(end) for end in box) != (0.0, 1.0):
            raise ThreatError(f"corruptions are defined for images in [0, 1], the box is {list(box)}")
        object.__setattr__(self, "severity", exact)
        object.__setattr__(self, "box", (0.0, 1.0))
        object.__setattr__(self, "collection", collection)

    def __str__(self) -> str:
        return f"{self.kind}:{self.extent_text}"

    @property
    def kind(self) -> str:  # noqa: D102
        return self.collection.kind

    @property
    def extent(self) -> Fraction:
        """Largest severity."""
        return self.severity

    @property
    def extent_text(self) -> str:  # noqa: D102
        return fraction_text(self.severity)

    @property
    def unit(self) -> str:  # noqa: D102
        return "severity"

    @property
    def arrays(self) -> Mapping[str, Tensor]:  # noqa: D102
        return {}

    @property
    def set_type(self) -> type[CorruptionSet]:  # noqa: D102
        return CorruptionSet

    def words(self) -> str:
        """Description of the threat in a sentence."""
        return self.collection.sentence.format(limit=self.extent_text)

    def scaled(self, factor: float) -> "CorruptionThreat":
        """The same corruptions up to `factor` times the severity, rounded down, at most the largest one."""
        return self.with_extent(min(int(float(self.severity) * factor), max(self.collection.severities)))

    def with_extent(self, extent: float | str | Fraction) -> "CorruptionThreat":
        """The same corruptions up to another severity."""
        return CorruptionThreat(extent, self.box, self.collection)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Whole severities at multiples of this one, rounded down, from 1 to the largest one."""
        sizes = {int(float(self.severity) * factor) for factor in factors}
        return sorted(Fraction(size) for size in sizes if size in self.collection.severities)

    def select(self, index: Tensor) -> "CorruptionThreat":
        """The same threat: its severity does not differ between examples."""
        return self

    def around(self, x: Images) -> CorruptionSet:
        """Corruptions of each image of a batch.

        Raises:
            ThreatError: images of a shape that the corruptions are not defined for.
        """
        if not self.collection.fits(x.shape):
            raise ThreatError(f"{self.collection.images}, got {tuple(x.shape)}")
        x = at_least_float32(x)
        return CorruptionSet(x, x.new_full((len(x),), float(self.severity)), self.collection)


def corruption_threat(severity: str, box: Sequence[float]) -> CorruptionThreat:
    """The threat of a text "corruption:SEVERITY".

    Raises:
        ThreatError: a severity that is not a whole number from 1 to 5.
    """
    if severity.strip().lower() in (DIGITS.kind, "mnist-c"):
        raise ThreatError(f"{DIGITS.rule}, got corruption:{severity}")
    return _parsed(severity, box, COMMON)


def digit_corruption_threat(severity: str, box: Sequence[float]) -> CorruptionThreat:
    """The threat of the text "mnist_c:1".

    Raises:
        ThreatError: another severity.
    """
    return _parsed(severity, box, DIGITS)


def _parsed(severity: str, box: Sequence[float], collection: Collection) -> CorruptionThreat:
    threat = CorruptionThreat(severity, box, collection)
    if threat.severity == 0:
        raise ThreatError(f"{collection.rule}, got 0")
    return threat
