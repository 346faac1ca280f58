"""Contract of threats: the allowed perturbations of an input, and the set of allowed inputs of each example."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from robustly.randomness import KeyedGenerator

Images = Float[Tensor, "n ..."]
Theta = Float[Tensor, "n ..."]
PerExample = Float[Tensor, " n"]
Box = tuple[float, float]


class ThreatError(ValueError):
    """A threat that cannot exist; the message names what is allowed."""


@runtime_checkable
class Threat(Protocol):
    """The perturbations that an adversary is allowed: a hashable value.

    `str(threat)` is its text form, such as "linf:8/255" or "rotation:30"; `parse_threat` parses it.
    """

    @property
    def kind(self) -> str:
        """Word in front of the colon of the text form: "linf", "rotation", "chain"."""
        ...

    @property
    def box(self) -> tuple[float, float]:
        """Least and largest valid value of an input."""
        ...

    @property
    def extent(self) -> Fraction | Tensor:
        """Largest allowed size of a perturbation, in `unit`; `(N,)` where it differs per example."""
        ...

    @property
    def extent_text(self) -> str:
        """Text of the extent: "8/255", "30"."""
        ...

    @property
    def unit(self) -> str:
        """Unit of sizes: "input units", "pixels", "degrees", "times each part's limit"."""
        ...

    @property
    def arrays(self) -> Mapping[str, Tensor]:
        """Tensors that belong to the value and that its text names by a digest, such as masks; mostly none."""
        ...

    @property
    def set_type(self) -> type:
        """Class of the sets that `around` returns. Attacks compare it with their `needs`."""
        ...

    def words(self) -> str:
        """Description of the threat in one sentence."""
        ...

    def scaled(self, factor: float) -> "Threat":
        """The same threat with `factor` times the extent, as far as the inputs allow (epsilon ramps)."""
        ...

    def with_extent(self, extent: float | str | Fraction) -> "Threat":
        """The same threat with another extent.

        Raises:
            ThreatError: an extent that the threat cannot have.
        """
        ...

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Possible extents at multiples of this one, ascending and without zero (security curves)."""
        ...

    def around(self, x: Images) -> "ThreatSet":
        """Set of allowed inputs around each input of a batch.

        Raises:
            ThreatError: inputs of a shape that the threat is not defined for.
        """
        ...

    def select(self, index: Tensor) -> "Threat":
        """The threat for some of the examples. It differs where the extent is per example."""
        ...


@runtime_checkable
class ThreatSet(Protocol):
    """Allowed inputs around N examples, described by parameters theta `(N, ...)` that a search moves."""

    @property
    def x(self) -> Images:
        """Original inputs `(N, ...)`."""
        ...

    @property
    def radius(self) -> PerExample:
        """Largest allowed size `(N,)`, in the threat's unit."""
        ...

    def apply(self, theta: Theta) -> Images:
        """Inputs of the model, `(N, ...)`; differentiable. For Lp balls they are theta itself."""
        ...

    def identity(self) -> Theta:
        """Parameters of no perturbation: `apply(identity())` equals `x`."""
        ...

    def random_start(self, generator: KeyedGenerator) -> Theta:
        """Random allowed parameters."""
        ...

    def project(self, theta: Theta) -> Theta:
        """Nearest allowed parameters."""
        ...

    def step(self, theta: Theta, gradient: Theta, step_size: PerExample) -> Theta:
        """Projected step of size `step_size` (in the threat's unit) in the steepest direction."""
        ...

    def default_step_size(self, steps: int) -> PerExample:
        """Step size for which `steps` steps cross the set and some more."""
        ...

    def size(self, theta: Theta) -> PerExample:
        """Size of each perturbation, in the threat's unit; 0 for the identity."""
        ...

    def contains(self, theta: Theta) -> Bool[Tensor, " n"]:
        """True where the perturbation is allowed, up to rounding."""
        ...

    def select(self, index: Tensor) -> "ThreatSet":
        """Sets of some of the examples: a mask or positions."""
        ...


@runtime_checkable
class Link(ThreatSet, Protocol):
    """Set whose perturbations can be applied to other inputs than its own: a part of a chain."""

    def moved_to(self, images: Images) -> "Link":
        """The same perturbations of other inputs of the shape of `x`; `apply` is differentiable in these, too."""
        ...

    def select(self, index: Tensor) -> "Link":
        """Sets of some of the examples: a mask or positions."""
        ...


@runtime_checkable
class StepsInPlace(Protocol):
    """Set whose step can use the memory of the gradient, for parameters larger than the inputs."""

    def step_in_place(self, theta: Theta, gradient: Theta, step_size: PerExample) -> Theta:
        """`ThreatSet.step`, written over the gradient."""
        ...


@runtime_checkable
class Condensable(Protocol):
    """Set with parameters that change no input, which a search need not move."""

    def condensed(self) -> ThreatSet:
        """Set of the same inputs without such parameters: a `Condensed` one, or the set itself.

        Random starts, steps and inputs are the same.
        """
        ...


@runtime_checkable
class Condensed(Protocol):
    """Set of which some parameters are left out."""

    def expanded(self, theta: Theta) -> Theta:
        """Parameters of the whole set, neutral where they are left out."""
        ...


@runtime_checkable
class Smooth(Protocol):
    """A set that also measures how uneven its parameters are, for attacks that keep perturbations smooth."""

    def roughness(self, theta: Theta) -> PerExample:
        """Roughness of each perturbation, `(N,)`: differentiable, at least 0, and 0 for the identity.

        It has the unit of sizes: half the perturbation has about half the roughness.
        """
        ...


@runtime_checkable
class Unequal(Protocol):
    """Set whose parameters have different units, such as degrees beside pixels.

    Rules that step along a direction of their own (Adam, normalised steps) take these into account; `step` does
    anyway.
    """

    def units(self) -> Theta:
        """Change of each parameter per unit of size, at least 0; broadcasts against theta."""
        ...


@runtime_checkable
class MadeFromData(Protocol):
    """Threat that was made from training data, such as their principal directions."""

    def check_data(self, digest: Callable[[], str]) -> None:
        """Check that the threat was made from the data of a run, as far as that is known.

        Args:
            digest: returns the digest of the training images, `ImageData.digest()`; called only if it is needed.

        Raises:
            ThreatError: it was made from other data.
        """
        ...


@runtime_checkable
class Described(Protocol):
    """Set whose perturbations can be described in words."""

    def describe(self, theta: Theta) -> list[str]:
        """One phrase per example, such as "rotated by 12.3 degrees clockwise, moved 2 pixels right"."""
        ...


@runtime_checkable
class EditSet(Protocol):
    """Allowed inputs reached by discrete edits (graph edges, points, tokens), without gradient ascent."""

    @property
    def x(self) -> Tensor:
        """Original inputs."""
        ...

    @property
    def radius(self) -> PerExample:
        """Largest number of edits `(N,)`."""
        ...

    def apply(self, theta: Shaped[Tensor, "n ..."]) -> Tensor:
        """Inputs after the edits theta."""
        ...

    def candidates(
        self, theta: Shaped[Tensor, "n ..."], gradient: Theta, count: int
    ) -> Shaped[Tensor, "n count ..."]:
        """The `count` single edits of each example with the largest first-order gain."""
        ...


def has_no_gradient(threat: Threat) -> bool:
    """Return True for threats whose sets list candidates (`EditSet`), on which gradient steps are not defined."""
    return hasattr(threat.set_type, "candidates")


def per_example(values: Shaped[Tensor, " n"], like: Images) -> Shaped[Tensor, "n ..."]:
    """Reshape `(N,)` so that it broadcasts against a batch of inputs."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def checked_box(box: Sequence[float]) -> Box:
    """Least and largest valid value of an input.

    Raises:
        ThreatError: an empty box.
    """
    if len(box) != 2 or not float(box[0]) < float(box[1]):
        raise ThreatError(f"box {tuple(box)} is empty: give (least, largest) pixel value, such as (0, 1)")
    return float(box[0]), float(box[1])
