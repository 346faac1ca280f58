"""Changes within the principal directions of a class: guided PGD on the data manifold (GPGD)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Box, Images, PerExample, ThreatError, checked_box, per_example
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.planes import Planes, nearest_plane, read_planes
from robustly.threats.precision import at_least_float32, without_autocast

Coefficients = Float[Tensor, "n q"]


@dataclass(frozen=True, eq=False)
class Subspace:
    """Changes of a Euclidean length of at most `epsilon` within the span of some directions (GPGD).

    x' = clip(x + V_c z) with |z|_2 <= epsilon, for the q orthonormal directions V_c of the class c of the input
    (TaFD's attack "gpgd": 128 principal directions of at most 600 training images of a class, epsilon 2, steps of
    1.5 epsilon / 10). `robustly.data.make_planes` computes the directions.

    Args:
        epsilon: largest Euclidean length of z, at least 0, in the unit of the inputs.
        planes: the directions of each class, or of all data, with their means.
        box: least and largest valid value of an input.
        classes: class of each input of a batch, `(N,)`, as in GPGD, which uses the labels. None takes the class
            whose plane, through its mean, is nearest to the input, so that no labels are needed.

    Raises:
        ThreatError: a negative epsilon; an empty box; classes that have no plane; at use, inputs that do not have D
            values, or another number of classes than inputs.
    """

    epsilon: Fraction
    planes: Planes
    box: Box
    classes: Int64[Tensor, " n"] | None

    def __init__(
        self,
        epsilon: float | str | Fraction,
        planes: Planes,
        box: Sequence[float] = (0.0, 1.0),
        classes: Int64[Tensor, " n"] | None = None,
    ) -> None:
        exact = parse_epsilon(epsilon)
        if exact < 0:
            raise ThreatError(f"epsilon must be a finite number of at least 0, got {fraction_text(exact)}")
        count = len(planes.values)
        if classes is not None and not (
            classes.ndim == 1 and classes.dtype == torch.int64 and bool(((classes >= 0) & (classes < count)).all())
        ):
            raise ThreatError(f"the classes of a subspace must be int64 (N,) in 0..{count - 1}")
        object.__setattr__(self, "epsilon", exact)
        object.__setattr__(self, "planes", planes)
        object.__setattr__(self, "box", checked_box(box))
        object.__setattr__(self, "classes", classes)

    @staticmethod
    def read(epsilon: str, box: Sequence[float], path: str) -> "Subspace":
        """A subspace whose planes are those of a file of `write_planes`.

        Raises:
            ThreatError: see `read_planes` and the class.
        """
        return Subspace(epsilon, read_planes(path), box)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Subspace) or str(self) != str(other) or self.box != other.box:
            return False
        one, two = self.classes, other.classes
        return torch.equal(one, two) if one is not None and two is not None else one is two

    def __hash__(self) -> int:
        return hash((str(self), self.box))

    def __str__(self) -> str:
        return f"{self.kind}:{self.extent_text}@{self.planes.digest}"

    @property
    def kind(self) -> str:  # noqa: D102
        return "subspace"

    @property
    def extent(self) -> Fraction:
        """Epsilon."""
        return self.epsilon

    @property
    def extent_text(self) -> str:  # noqa: D102
        return fraction_text(self.epsilon)

    @property
    def unit(self) -> str:  # noqa: D102
        return "input units"

    @property
    def arrays(self) -> Mapping[str, Tensor]:
        """The planes, by their digest."""
        return {self.planes.digest: self.planes.values}

    @property
    def set_type(self) -> type["SubspaceSet"]:  # noqa: D102
        return SubspaceSet

    def words(self) -> str:
        """Description of the threat in a sentence."""
        low, high = self.box
        if len(self.planes.values) == 1:
            whose = "the data"
        else:
            whose = "its class" if self.classes is not None else "the class whose plane is nearest to it"
        return (
            f"Each input may change by a Euclidean length of at most {self.extent_text} (on a scale from {low:g} "
            f"to {high:g}) along the {self.planes.values.shape[1] - 1} principal directions of {whose}."
        )

    def scaled(self, factor: float) -> "Subspace":
        """The same directions and `factor` times the length."""
        return self.with_extent(float(self.epsilon) * factor)

    def with_extent(self, extent: float | str | Fraction) -> "Subspace":
        """The same directions and another length."""
        return Subspace(extent, self.planes, self.box, self.classes)

    def of_classes(self, classes: Int64[Tensor, " n"]) -> "Subspace":
        """The same threat for inputs of known classes: with their labels it is GPGD as published."""
        return Subspace(self.epsilon, self.planes, self.box, classes)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Lengths at multiples of epsilon."""
        lengths = {self.epsilon * Fraction(factor).limit_denominator(1000) for factor in factors}
        return sorted(length for length in lengths if length > 0)

    def select(self, index: Tensor) -> "Subspace":
        """The threat for some of the examples. It differs only if their classes are given."""
        return self if self.classes is None else self.of_classes(self.classes[index])

    def check_data(self, digest: Callable[[], str]) -> None:
        """Check that the planes were made from the training images of a run.

        Args:
            digest: returns the digest of these images.

        Raises:
            ThreatError: they are known to have been made from others.
        """
        if self.planes.made_from and self.planes.made_from != (found := digest()):
            raise ThreatError(
                f"the planes of {self} were made from other training data (SHA-256 "
                f"{self.planes.made_from[:12]}..., the data have {found[:12]}...): make them "
                "again with robustly.data.make_planes"
            )

    def around(self, x: Images) -> "SubspaceSet":
        """Allowed inputs around each input of a batch.

        Raises:
            ThreatError: inputs of another size than the planes; another number of classes than inputs.
        """
        size = math.prod(x.shape[1:])
        if size != self.planes.values.shape[2]:
            raise ThreatError(
                f"the planes of {self} are for inputs of {self.planes.values.shape[2]} values, got {size} "
                f"(shape {tuple(x.shape)})"
            )
        if self.classes is not None and len(self.classes) != len(x):
            raise ThreatError(f"the threat has the classes of {len(self.classes)} inputs, got {len(x)} inputs")
        x = at_least_float32(x)
        planes = self.planes.values.to(x)
        place = nearest_plane(x, self.planes) if self.classes is None else self.classes.to(x.device)
        radius = torch.full((len(x),), float(self.epsilon), device=x.device, dtype=x.dtype)
        return SubspaceSet(x, radius, planes[:, 1:], place, self.box)


@dataclass(frozen=True)
class SubspaceSet:
    """Inputs changed within a subspace; theta `(N, q)` holds the coefficients of the directions.

    Args:
        x: original inputs `(N, ...)`.
        radius: largest Euclidean length of the coefficients, `(N,)`.
        directions: orthonormal directions of each class, `(K, q, D)`.
        place: class of each input, `(N,)`.
        box: least and largest valid value.
    """

    x: Images
    radius: PerExample
    directions: Float[Tensor, "k q d"]
    place: Int64[Tensor, " n"]
    box: Box

    def apply(self, theta: Coefficients) -> Images:
        """Changed inputs, clipped to the box."""
        count, size = self.directions.shape[:2]
        own = F.one_hot(self.place, count).to(theta)[:, :, None]
        with without_autocast(theta):
            change = (own * theta[:, None]).reshape(-1, count * size) @ self.directions.flatten(0, 1)
        return (self.x + change.reshape(self.x.shape)).clamp(*self.box)

    def moved_to(self, images: Images) -> "SubspaceSet":
        """The same changes of other inputs."""
        return replace(self, x=images)

    def identity(self) -> Coefficients:
        """Coefficients of zero."""
        return self.x.new_zeros(len(self.x), self.directions.shape[1])

    def random_start(self, generator: KeyedGenerator) -> Coefficients:
        """Uniform in the ball of the coefficients."""
        size = self.directions.shape[1]
        direction = generator.fold("direction").normal(size).to(self.x)
        share = generator.fold("length").uniform(1).to(self.x) ** (1 / size)
        return _unit(direction) * share * self.radius[:, None]

    def project(self, theta: Coefficients) -> Coefficients:
        """Coefficients shortened to the largest length."""
        length = torch.linalg.vector_norm(theta, dim=1)
        return torch.where((length > self.radius)[:, None], _unit(theta) * self.radius[:, None], theta)

    def step(self, theta: Coefficients, gradient: Coefficients, step_size: PerExample) -> Coefficients:
        """Projected step of Euclidean length `step_size` along the gradient."""
        return self.project(theta + _unit(gradient) * per_example(step_size, theta))

    def default_step_size(self, steps: int) -> PerExample:
        """2.5 radii over the number of steps."""
        return 2.5 * self.radius / max(steps, 1)

    def size(self, theta: Coefficients) -> PerExample:
        """Euclidean length of the coefficients, which is that of the change before it is clipped."""
        length: Tensor = torch.linalg.vector_norm(theta, dim=1)
        return length

    def contains(self, theta: Coefficients) -> Bool[Tensor, " n"]:
        """True where the length is allowed, up to float32 rounding."""
        return self.size(theta) <= self.radius * (1 + 1e-5) + 1e-6

    def describe(self, theta: Coefficients) -> list[str]:
        """One phrase per example: the length of the change."""
        lengths = self.size(theta).tolist()
        return [
            f"changed by {length:.3g} along principal directions" if length else "unchanged" for length in lengths
        ]

    def select(self, index: Tensor) -> "SubspaceSet":
        """Sets of some of the examples."""
        return SubspaceSet(self.x[index], self.radius[index], self.directions, self.place[index], self.box)


def _unit(vectors: Float[Tensor, "n q"]) -> Float[Tensor, "n q"]:
    """Vectors of length 1, or 0 where they are 0; without underflow for tiny ones."""
    largest = vectors.abs().amax(1, keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(length > 0, length, 1.0)
