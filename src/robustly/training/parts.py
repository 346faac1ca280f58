"""The five parts of a training method: the base class of all parts, and one protocol for each kind."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from robustly.attacks import AttackResult
from robustly.threats import Threat
from robustly.training.quantities import needs_attack, network_and_inputs
from robustly.training.step import LabelOrigin, Labels, Moment, Step

Terms = dict[str, Float[Tensor, " n"]]
Kind = Literal["trained", "frozen"]

CONVENTIONAL_NETWORKS: dict[str, Kind] = {"guide": "trained", "teacher": "frozen", "standard_teacher": "frozen"}
"""Networks beside the model that recipes name at their top level: a guide is trained, teachers are frozen."""


class InstanceWeightsError(ValueError):
    """Instance weights that are zero for a whole batch."""


def begins_too_late(setting: str, begin: float, epochs: int, consequence: str) -> str | None:
    """Error message if a part begins only after the end of the run, else None.

    Args:
        setting: name of the setting that holds `begin`.
        begin: finished epochs before the part begins.
        epochs: epochs of the run.
        consequence: effect on the run, for the message.
    """
    return None if begin < epochs else f"{setting} is {begin:g} epochs and the run has {epochs}: {consequence}"


@dataclass(frozen=True)
class EpochEnd:
    """The end of an epoch, before validation.

    Args:
        epoch: the finished epoch, from 0.
        epochs: epochs of the run.
        model: the network in training.
        images: yields the training images in batches, in the order and with the augmentation of this epoch.
        remember: returns a part's memory; see `Step.remember`.
        global_mean: mean of a tensor over all processes.
        whole_weights: a context in which every process holds the whole weights of a network, so that processes may
            take different numbers of passes.
    """

    epoch: int
    epochs: int
    model: nn.Module
    images: Callable[[], Iterator[Tensor]]
    remember: Callable[[object], dict[str, Tensor]]
    global_mean: Callable[[Tensor], Tensor]
    whole_weights: Callable[[nn.Module], AbstractContextManager[object]] = nullcontext


@runtime_checkable
class Part(Protocol):
    """Base class of all parts: attributes and methods that the loop uses, with defaults.

    A part is a frozen dataclass that derives from `Part`, overrides some of them, and adds `__call__` (except
    parameter parts). A setting with the name of an attribute must have a default. State is kept in
    `step.remember(self)`, which every checkpoint saves.
    """

    # attributes

    @property
    def reads(self) -> tuple[str, ...]:
        """Quantities of a step that the part reads with its settings, at any moment of a run.

        Allowed are "clean", "adversarial", "guide", "NAME@clean", "NAME@adversarial" (see
        `robustly.training.quantities`), and names that a part of the method defines in `own_quantities`.
        """
        return ()

    def reads_at(self, moment: Moment) -> tuple[str, ...]:
        """Quantities of `reads` that the part reads at one moment of a run; by default all."""
        return self.reads

    @property
    def own_quantities(self) -> Mapping[str, Callable[[Step], Tensor]]:
        """Definitions of further quantities, by name.

        They are computed once per step, after the quantities that all parts declare, and may read these.
        """
        return {}

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks beside the model that the part uses; by default those in `reads`."""
        declared = [name for name in self.reads if name not in self.own_quantities]
        named = [network_and_inputs(name)[0] for name in declared if name == "guide" or "@" in name]
        return tuple(dict.fromkeys(named))

    @property
    def views(self) -> int:
        """Independently augmented copies of each image that the part uses: `step.views` has at least as many."""
        return 1

    @property
    def classes(self) -> int:
        """Least number of classes that the part's settings need, such as a cost matrix; 0 for any number."""
        return 0

    @property
    def needs_inner(self) -> bool:
        """Outer loss: True if it needs an inner maximisation; by default, if it reads adversarial logits."""
        return any(needs_attack(name) for name in self.reads)

    @property
    def joins_attacks(self) -> bool:
        """Outer loss: True if it uses the further attacks itself, so that it is not averaged over them."""
        return False

    @property
    def smoothing(self) -> float:
        """Label source: share of each label's weight that is spread evenly over all classes."""
        return 0.0

    @property
    def steps(self) -> int:
        """Inner maximisation: largest number of steps."""
        return 0

    @property
    def against(self) -> LabelOrigin:
        """Inner maximisation: origin of the labels that it works against."""
        return "labels"

    @property
    def replays(self) -> int:
        """Inner maximisation: optimiser steps on each batch."""
        return 1

    @property
    def shares_backward(self) -> bool:
        """Inner maximisation: True if attack and weights share one backward pass (Free-AT)."""
        return self.replays > 1

    @property
    def stops_early(self) -> bool:
        """Inner maximisation: True if its number of passes depends on the examples."""
        return False

    def further_attacks(self, step: Step) -> tuple[AttackResult, ...]:
        """Inner maximisation: attacks beside its result, over all of which the outer loss is averaged (AVG)."""
        return ()

    # checks before a run

    def check_threats(self, threats: tuple[Threat, ...]) -> str | None:
        """Error message if the part is not defined for the threats of the run, else None."""
        return None

    def check(self, method: "Composition") -> str | None:
        """Error message if the part contradicts other parts of the method, else None."""
        return None

    def check_model(self, model: nn.Module, threats: tuple[Threat, ...]) -> str | None:
        """Error message if the part is not defined for the network in training or the threats, else None."""
        return None

    def check_epochs(self, epochs: int) -> str | None:
        """Error message if a run of this length is too short for the part, else None."""
        return None

    def check_classes(self, classes: int) -> str | None:
        """Error message if the part is not defined for this number of classes, else None."""
        return None

    def check_sharding(self) -> str | None:
        """Error message if the part needs weights that each process holds as a whole (no FSDP), else None.

        The message follows the name of the part. Parts that perturb weights are refused anyway.
        """
        return None

    # during a run, in this order

    def before_outer(self, step: Step, loss: Callable[[Step], Tensor]) -> None:
        """Perturb the weights before the outer loss; labels and adversarial examples are computed already.

        Args:
            step: the step. The model's logits are dropped afterwards, because its weights may have changed.
            loss: evaluates the method's outer loss on `step.again()`, on the same examples, without changing
                `step`.
        """
        return None

    def extra_terms(self, step: Step) -> Terms:
        """Further terms of the loss (regularisers)."""
        return {}

    def after_backward(self, step: Step) -> None:
        """Use the gradients before the optimiser's step."""
        return None

    def after_step(self, step: Step) -> None:
        """Undo a perturbation or average weights after the optimiser's step."""
        return None

    def after_failure(self, step: Step) -> None:
        """Undo a perturbation of the weights in a step that ended before `after_backward`, out of memory.

        Tensors of the memory that were replaced are restored already before the next try; one that was changed in
        place ends the run.
        """
        return None

    def after_epoch(self, end: EpochEnd) -> None:
        """Run at the end of an epoch, before validation."""
        return None

    def evaluation_state(self, memory: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """State dict to validate, select and release instead of the model's own, or None.

        Args:
            memory: the part's memory.
        """
        return None


@runtime_checkable
class LabelSource(Part, Protocol):
    """First part of a method: the source of labels."""

    def __call__(self, step: Step) -> Labels:
        """Return the labels of a batch."""
        ...


@runtime_checkable
class InnerMaximiser(Part, Protocol):
    """Second part: the training attack and its objective."""

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step."""
        ...


@runtime_checkable
class OuterLoss(Part, Protocol):
    """Third part: the loss that the optimiser minimises, as named per-example terms.

    Every term is `(N,)` and scaled by its coefficient. Instance weights may multiply single terms. The optimiser
    minimises the batch mean of the sum of all terms.
    """

    def __call__(self, step: Step) -> Terms:
        """Return the loss terms of a batch, by name."""
        ...


@runtime_checkable
class InstanceWeights(Part, Protocol):
    """Fourth part: a factor for each example in one term of the loss."""

    @property
    def term(self) -> str:
        """Name of the weighted term, such as "adversarial" or "consistency"."""
        ...

    def __call__(self, step: Step) -> Float[Tensor, " n"] | None:
        """Return the weights of a batch, without gradient; None counts every example once (a burn-in)."""
        ...


@runtime_checkable
class Composition(Protocol):
    """The parts of a method, for `Part.check`."""

    @property
    def labels(self) -> LabelSource:
        """Label source."""
        ...

    @property
    def inner(self) -> InnerMaximiser | None:
        """Inner maximisation, or None."""
        ...

    @property
    def loss(self) -> OuterLoss:
        """Outer loss."""
        ...

    @property
    def weights(self) -> InstanceWeights | None:
        """Instance weights, or None."""
        ...

    @property
    def parameters(self) -> tuple[Part, ...]:
        """Parameter parts, which change the weights around the optimiser's step, in order."""
        ...


def perturbs_weights(part: Part) -> bool:
    """Return True if a part perturbs the weights for the outer loss."""
    return type(part).before_outer is not Part.before_outer


def averages_weights(part: Part) -> bool:
    """Return True if a part has weights to release instead of the model's."""
    return type(part).evaluation_state is not Part.evaluation_state
