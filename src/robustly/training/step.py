"""A training step: batch, labels, adversarial examples, logits and memory."""

import copy
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks import AttackResult
from robustly.attacks.core.compiled import CompiledNetwork
from robustly.attacks.core.contract import Images, ModelMode, frozen
from robustly.attacks.core.graphs import PassGraphs
from robustly.attacks.core.model_access import frozen_statistics, logits_of
from robustly.data import Batch
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats import Threat
from robustly.training.quantities import Networks, Quantities, network_and_inputs, quantity_of

Memory = dict[str, dict[str, Tensor]]
Logits = Float[Tensor, "n k"]
Inputs = Literal["clean", "adversarial"]
LabelOrigin = Literal["labels", "data"]
T = TypeVar("T")


@dataclass(frozen=True)
class Labels:
    """Labels of a batch, from the first part of a method.

    Args:
        hard: classes `(N,)`, without gradient.
        terms: per-example losses that train the label source itself, by name: `(N,)` each, already scaled.
        smoothing: share of each label's weight that cross-entropies of the outer loss spread evenly over all
            classes, the label's own included.
    """

    hard: Int64[Tensor, " n"]
    terms: dict[str, Float[Tensor, " n"]] = field(default_factory=dict)
    smoothing: float = 0.0


@dataclass(frozen=True)
class Moment:
    """Position of a step in the run.

    Args:
        epoch: finished epochs.
        index: finished steps of this epoch.
        steps_per_epoch: steps of an epoch.
        epochs: epochs of the run.
    """

    epoch: int
    index: int
    steps_per_epoch: int
    epochs: int

    @property
    def count(self) -> int:
        """Steps finished since the run began."""
        return self.epoch * self.steps_per_epoch + self.index

    @property
    def time(self) -> float:
        """Epochs since the run began, in fractions."""
        return self.epoch + self.index / self.steps_per_epoch


def unchanged(value: Tensor) -> Tensor:
    """Identity: the mean over a single process."""
    return value


def no_attacks(step: "Step") -> tuple[AttackResult, ...]:
    """No further attacks of a batch."""
    return ()


def class_name(part: object) -> str:
    """Name of a part's memory outside a method."""
    return type(part).__name__


class Step:
    """One training step, as the parts of a method use it.

    Logits are named quantities (see `robustly.training.quantities`), computed by one forward pass each in a fixed
    order. A running part may read those that it declares. Outside a method, quantities are computed when read.

    Args:
        batch: images, labels, example ids and the batch's random numbers.
        networks: the networks of the run.
        threats: threat models of the training attack at this moment of the run, at least one.
        moment: position in the run.
        label_source: first part of the method.
        inner: second part, or None for a method without attack.
        further: further attacks of the second part, over which the outer loss is averaged too (AVG).
        memory: named tensors that outlive the step and are saved with every checkpoint; see `remember`.
        attack_steps: largest number of steps of the inner maximisation.
        replays: optimiser steps on each batch.
        replay: earlier optimiser steps on this batch (Free-AT).
        own: quantities that parts define, by name.
        slot_of: name of a part's memory.
        global_mean: mean of a tensor over all processes.
        seed: the run's seed.
        whole_weights: a context in which every process holds the whole weights, for the inner maximisation: it may
            take different numbers of passes in different processes.

    Attributes:
        columns: per-example values whose means over an epoch are columns of `metrics.csv`, by their names; see
            `note`.
        others: this step with the adversarial examples of each further attack, once the outer loss has used them.
        graphs: captured passes of the attack; None for none.
        compiled: the network in training with compiled passes for attacks; None for none.
    """

    graphs: PassGraphs | None = None
    compiled: CompiledNetwork | None = None

    def __init__(
        self,
        batch: Batch,
        networks: Networks,
        *,
        threats: tuple[Threat, ...],
        moment: Moment,
        label_source: Callable[["Step"], Labels],
        inner: Callable[["Step"], AttackResult] | None,
        further: Callable[["Step"], tuple[AttackResult, ...]] = no_attacks,
        memory: Memory,
        attack_steps: int = 0,
        replays: int = 1,
        replay: int = 0,
        own: Mapping[str, Callable[["Step"], Tensor]] = MappingProxyType({}),
        slot_of: Callable[[object], str] = class_name,
        global_mean: Callable[[Tensor], Tensor] = unchanged,
        seed: int = 0,
        whole_weights: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.x, self.y, self.ids, self.generator = batch.x, batch.y, batch.ids, batch.generator
        self.views = (batch.x, *batch.other_views)
        self.networks, self.threats, self.moment = networks, threats, moment
        self.attack_steps, self.replays, self.replay = attack_steps, replays, replay
        self.global_mean, self.seed, self._whole_weights = global_mean, seed, whole_weights
        self._label_source, self._inner, self._further, self._own = label_source, inner, further, own
        self.columns: dict[str, Tensor] = {}
        self.others: tuple[Step, ...] = ()
        self._memory, self._slot_of = memory, slot_of
        self._under_way: set[str] = set()
        self.quantities = Quantities(networks, own)

    @property
    def model(self) -> nn.Module:
        """The network in training."""
        return self.networks.model

    @property
    def attacked(self) -> nn.Module:
        """The network in training for the search of an attack, compiled where the run does that."""
        return self.model if self.compiled is None else self.compiled

    @property
    def threat(self) -> Threat:
        """The first threat model of the run."""
        return self.threats[0]

    def network(self, name: str) -> nn.Module:
        """A network of the run by its name.

        Raises:
            ValueError: the run has no such network.
        """
        return self.networks.by_name(name)

    # logits

    def logits_at(self, name: str, x: Images) -> Logits:
        """Logits of a network at any images, by a separate forward pass.

        A trained network is in train mode and its logits have a gradient. A frozen network is in evaluation mode
        and its logits have no gradient.

        Args:
            name: "model", or the name of another network.
            x: images `(N, ...)`.
        """
        network = self.network(name)
        if name in self.networks.frozen:
            with frozen(network, full_precision=False), torch.no_grad():
                return logits_of(network, x.detach())
        return logits_of(network, x)

    def compute(self, quantities: Collection[str]) -> None:
        """Compute missing quantities in the fixed order."""
        self.quantities.compute(quantities, self._forward)

    @property
    def own_names(self) -> Collection[str]:
        """Names of the quantities that parts define."""
        return self._own.keys()

    def quantity(self, name: str) -> Tensor:
        """A quantity by its name.

        Raises:
            UndeclaredReadError: the running part does not declare it.
        """
        return self.quantities.read(name, self._forward)

    def logits(self, network: str, inputs: Inputs = "clean") -> Logits:
        """Logits of a network on the clean or the adversarial images: the quantity "NETWORK@INPUTS"."""
        return self.quantity(quantity_of(network, inputs))

    @property
    def clean_logits(self) -> Logits:
        """The quantity "clean": the model's logits of the clean images, in train mode, with gradient."""
        return self.quantity("clean")

    @property
    def adversarial_logits(self) -> Logits:
        """The quantity "adversarial": the model's logits of adversarial images, in train mode, with gradient."""
        return self.quantity("adversarial")

    @property
    def guide_logits(self) -> Logits:
        """The quantity "guide": the guide's logits of the clean images, in train mode, with gradient."""
        return self.quantity("guide")

    def reading(self, part: str, reads: Collection[str]) -> AbstractContextManager[None]:
        """Allow a part, by its name in messages, to read the quantities that it declares, and no others."""
        return self.quantities.reading(part, reads)

    def _forward(self, quantity: str) -> Tensor:
        if quantity in self._own:
            return self._own[quantity](self)
        network, inputs = network_and_inputs(quantity)
        return self.logits_at(network, self.x if inputs == "clean" else self.adversarial.x_adv)

    @cached_property
    def reference_logits(self) -> Logits:
        """The model's logits of the clean images in evaluation mode, without gradient: reference of KL attacks."""
        return self.attacked_logits(self.x, "eval")

    def reference_in(self, mode: ModelMode) -> Logits:
        """Reference logits in the mode of an attack, without gradient; those in "eval" are computed once."""
        return self.reference_logits if mode == "eval" else self.attacked_logits(self.x, mode)

    def attacked_logits(self, x: Images, mode: ModelMode) -> Logits:
        """The model's logits at any images in the mode of an attack, without gradient: one forward pass each."""
        with frozen(self.model, mode, full_precision=False), torch.no_grad():
            return logits_of(self.model, x)

    # labels and adversarial examples

    @cached_property
    def labels(self) -> Labels:
        """Labels from the first part of the method."""
        return self._once("the labels", self._label_source)

    @cached_property
    def adversarial(self) -> AttackResult:
        """Result of the inner maximisation.

        Raises:
            ValueError: the method has no inner maximisation.
        """
        if self._inner is None:
            raise ValueError("a part reads adversarial examples, the method has no inner maximisation")
        return self._attacked("the adversarial examples", self._inner)

    @cached_property
    def further_attacks(self) -> tuple[AttackResult, ...]:
        """Results of further attacks of the inner maximisation, mostly none."""
        return self._attacked("the further attacks", self._further)

    def with_adversarial(self, found: AttackResult) -> "Step":
        """This step with other adversarial examples; what depends on them is computed again."""
        twin = copy.copy(self)
        twin.adversarial = found
        twin.quantities = self.quantities.without_attack()
        return twin

    def _attacked(self, what: str, part: Callable[["Step"], T]) -> T:
        """Result of a part of the inner maximisation, with whole weights; one such part may use another."""
        within = bool(self._under_way & {"the adversarial examples", "the further attacks"})
        with nullcontext() if within else self._whole_weights():
            return self._once(what, part)

    def _once(self, what: str, part: Callable[["Step"], T]) -> T:
        if what in self._under_way:
            raise ValueError(f"{what} are read while they are computed")
        self._under_way.add(what)
        try:
            return part(self)
        finally:
            self._under_way.remove(what)

    def labels_from(self, origin: LabelOrigin) -> Int64[Tensor, " n"]:
        """Classes of the examples, from the label source ("labels") or the data set ("data")."""
        return self.labels.hard if origin == "labels" else self.y

    # second evaluations of the loss

    def again(self, *reads: str) -> "Step":
        """A step with the same labels and adversarial examples, for a second evaluation of a loss (AWP, SAM).

        The model's logits are computed again, and this step does not change. Other networks do not run again: their
        logits are copied without gradient, and losses that train them are left out.

        Args:
            reads: quantities to compute for the running part; batch-norm statistics do not change.
        """
        twin = copy.copy(self)
        twin.labels = Labels(self.labels.hard, smoothing=self.labels.smoothing)
        twin.quantities = self.quantities.second(reads)
        with frozen_statistics(*self.networks.learning.values()):
            twin.compute(reads)
        return twin

    # state, numbers of the epoch and random numbers

    def note(self, column: str, values: Tensor) -> None:
        """Add per-example values `(N,)` to a column of `metrics.csv`, which holds their mean over the epoch."""
        self.columns[column] = values.detach()

    def remember(self, part: object) -> dict[str, Tensor]:
        """Named tensors of a part, empty at first, kept from step to step and in every checkpoint.

        Their key is the part's slot in the method. Each process has its own, and checkpoints have those of the
        first process: the values must be equal in all processes (see `batch_mean`).
        """
        return self._memory.setdefault(self._slot_of(part), {})

    @property
    def batch_generator(self) -> KeyedGenerator:
        """Random numbers `(1, ...)` of the whole step, the same in every process."""
        count = torch.tensor([self.moment.count], device=self.x.device)
        return KeyedGenerator(derive_seed(self.seed, "batch"), count)

    def batch_mean(self, values: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """Mean of per-example values over the batch of all processes, whose shares may differ in size."""
        count = values.new_tensor(float(len(values)))
        return self.global_mean(values.sum()) / self.global_mean(count)
