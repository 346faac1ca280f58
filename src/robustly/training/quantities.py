"""Named logits of a training step, computed in a fixed order and read by the parts that declare them.

"clean" and "adversarial" are the model's logits of the clean and the adversarial images. "NAME@clean" and
"NAME@adversarial" are those of another network; "guide" is short for "guide@clean". Parts may define more names.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn


class UndeclaredReadError(ValueError):
    """A part reads a quantity that it does not declare."""


@dataclass(frozen=True)
class Networks:
    """The networks of a run.

    Args:
        model: the network in training, unwrapped.
        trained: networks trained beside it, by name ("guide", or another name of the recipe).
        frozen: frozen networks by name ("teacher", "standard_teacher", or another name of the recipe).
    """

    model: nn.Module
    trained: Mapping[str, nn.Module] = field(default_factory=dict)
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def learning(self) -> dict[str, nn.Module]:
        """All trained networks by name; the first is the model, as "model"."""
        return {"model": self.model, **self.trained}

    def by_name(self, name: str) -> nn.Module:
        """A network by its name.

        Raises:
            ValueError: the run has no such network.
        """
        everything = {**self.learning, **self.frozen}
        if name not in everything:
            raise ValueError(f"a part uses the network {name!r}, the run has {', '.join(everything)}")
        return everything[name]


def network_and_inputs(quantity: str) -> tuple[str, str]:
    """Network of a quantity, and its images: "clean" or "adversarial".

    Raises:
        ValueError: a name of another form.
    """
    if quantity in ("clean", "adversarial"):
        return "model", quantity
    network, _, inputs = ("guide", "@", "clean") if quantity == "guide" else quantity.partition("@")
    if network in ("", "model") or inputs not in ("clean", "adversarial"):
        raise ValueError(
            f"unknown quantity {quantity!r}: allowed are clean, adversarial, guide, NAME@clean, NAME@adversarial "
            "with the name of a network, and the names that a part defines in `own_quantities`"
        )
    return network, inputs


def quantity_of(network: str, inputs: str) -> str:
    """Name of the logits of a network on the "clean" or the "adversarial" images."""
    if network == "model":
        return inputs
    return "guide" if (network, inputs) == ("guide", "clean") else f"{network}@{inputs}"


def needs_attack(quantity: str) -> bool:
    """Return True if a quantity needs adversarial images."""
    return quantity == "adversarial" or quantity.endswith("@adversarial")


@dataclass(frozen=True)
class _Reader:
    """The running part, and the quantities that it declares."""

    part: str
    reads: frozenset[str]


class Quantities:
    """Values of the quantities of one step.

    The order of computation is fixed: other trained networks on clean images, the model on clean images, frozen
    networks, the model on adversarial images, other trained networks on adversarial images, quantities that parts
    define. Batch-norm statistics and dropout then do not depend on the order of reading.

    Args:
        networks: the networks of the run.
        own: names of quantities that parts define, in the order of computation.

    Attributes:
        read_by: names of the quantities that each part has read, by the part's name.
    """

    def __init__(self, networks: Networks, own: Collection[str]) -> None:
        self.read_by: dict[str, set[str]] = {}
        self._networks, self._own = networks, tuple(own)
        self._values: dict[str, Tensor] = {}
        self._reader: _Reader | None = None

    @contextmanager
    def reading(self, part: str, reads: Collection[str]) -> Iterator[None]:
        """Allow a part to read the quantities that it declares, and no others.

        Args:
            part: name of the part in messages.
            reads: names of quantities.
        """
        before, self._reader = self._reader, _Reader(part, frozenset(reads))
        try:
            yield
        finally:
            self._reader = before

    def compute(self, names: Collection[str], forward: Callable[[str], Tensor]) -> None:
        """Compute missing quantities in the fixed order.

        Args:
            names: names of quantities.
            forward: computes the quantity of a name.
        """
        for name in sorted(set(names) - self._values.keys(), key=self._place):
            if name in self._own:
                with self.reading(f"the quantity {name!r}", self._values):
                    self._values[name] = forward(name)
            else:
                self._values[name] = forward(name)

    def read(self, name: str, forward: Callable[[str], Tensor]) -> Tensor:
        """Return a quantity; `forward` computes it if it is missing.

        Raises:
            UndeclaredReadError: the running part does not declare it.
        """
        if self._reader is not None:
            if name not in self._reader.reads:
                declared = ", ".join(sorted(self._reader.reads)) or "nothing"
                raise UndeclaredReadError(
                    f"{self._reader.part} reads the quantity {name!r} and declares {declared}: add it to `reads`"
                )
            self.read_by.setdefault(self._reader.part, set()).add(name)
        self.compute([name], forward)
        return self._values[name]

    def computed(self, name: str) -> Tensor | None:
        """A quantity without gradient, or None if it is not computed yet."""
        value = self._values.get(name)
        return None if value is None else value.detach()

    def second(self, reads: Collection[str]) -> "Quantities":
        """Quantities for a second evaluation: those of other networks without gradient, none of the model.

        Args:
            reads: names that the running part reads in the second evaluation.
        """
        twin = Quantities(self._networks, self._own)
        twin._values = {name: value.detach() for name, value in self._values.items()}
        twin.forget_model()
        if self._reader is not None:
            twin._reader = _Reader(f"the second evaluation of {self._reader.part}", frozenset(reads))
        return twin

    def without_attack(self) -> "Quantities":
        """The same quantities, except those at adversarial images and those that parts define."""
        twin = Quantities(self._networks, self._own)
        twin._values = {
            name: value for name, value in self._values.items() if name not in self._own and not needs_attack(name)
        }
        twin._reader = self._reader
        return twin

    def forget_model(self) -> None:
        """Drop the quantities that depend on the model's weights."""
        self._values = {name: value for name, value in self._values.items() if not self.depends_on_model(name)}

    def depends_on_model(self, name: str) -> bool:
        """Return True if a quantity changes with the model's weights for the same adversarial images."""
        return name in self._own or network_and_inputs(name)[0] == "model"

    def _place(self, name: str) -> tuple[int, int]:
        """Position of a quantity in the order of computation."""
        if name in self._own:
            return 5, self._own.index(name)
        network, inputs = network_and_inputs(name)
        if network == "model":
            return (1 if inputs == "clean" else 3), 0
        if network in self._networks.frozen:
            return 2, 2 * list(self._networks.frozen).index(network) + (inputs == "adversarial")
        trained = list(self._networks.trained)
        return (0 if inputs == "clean" else 4), trained.index(network) if network in trained else len(trained)
