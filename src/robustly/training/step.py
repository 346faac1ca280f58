"""The quantities of one training step, each computed when first asked for, and once."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks import AttackResult
from robustly.attacks.core.contract import ModelMode, frozen
from robustly.attacks.core.model_access import logits_of
from robustly.data import Batch
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats.lp import ThreatModel

Memory = dict[str, dict[str, Tensor]]
Logits = Float[Tensor, "n k"]
Of = Literal["clean", "adversarial"]
Whose = Literal["labels", "data"]
NO_TEACHERS: Mapping[str, nn.Module] = MappingProxyType({})


def outlasts(setting: str, begin: float, epochs: int, otherwise: str) -> str | None:
    """Why a part that begins after some epochs has nothing to do in a run, if it has not.

    Args:
        setting: what says when it begins.
        begin: finished epochs before it does.
        epochs: of the run.
        otherwise: what would come of it.
    """
    return None if begin < epochs else f"{setting} is {begin:g} epochs and the run has {epochs}: {otherwise}"


@dataclass(frozen=True)
class Labels:
    """Where the outer loss wants each example to go.

    Args:
        hard: classes `(N,)`, without gradient.
        terms: per-example losses that the label source trains itself with, by name: `(N,)` each, already scaled.
        smoothing: share of each label's weight that cross-entropies of the outer loss spread evenly over all
            classes, the label's own included.
    """

    hard: Int64[Tensor, " n"]
    terms: dict[str, Float[Tensor, " n"]] = field(default_factory=dict)
    smoothing: float = 0.0


@runtime_checkable
class LabelSource(Protocol):
    """First part of a method: where labels come from."""

    def __call__(self, step: "Step") -> Labels:
        """The labels of a batch."""
        ...


@runtime_checkable
class InnerMaximiser(Protocol):
    """Second part: how the training attack runs, on which objective."""

    def __call__(self, step: "Step") -> AttackResult:
        """Attack the batch of a step."""
        ...


def same(value: Tensor) -> Tensor:
    """The mean over processes, where there is one."""
    return value


def class_name(part: object) -> str:
    """What a part's memory is called outside a method."""
    return type(part).__name__


@dataclass(frozen=True)
class Moment:
    """Where in the run a step stands.

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


class Step:
    """One training step as every part of a method sees it.

    Clean, guide and adversarial logits come from one train-mode forward pass each, in the order in which they are
    first asked for (ours ask for clean before adversarial logits: batch normalisation remembers the order).

    Args:
        batch: images, labels, example ids and the batch's random numbers.
        model: the network in training, unwrapped.
        guide: the network trained beside it, if the method has one.
        teachers: frozen networks by their role, if the method has any.
        threat: what the training attack may do, at this moment of the run.
        moment: where in the run this is.
        label_source: first part of the method.
        inner: second part, or None for a method without attack.
        memory: named tensors that outlive the step and are saved with every checkpoint; see `remember`.
        global_mean: mean of a tensor over all processes.
        slot_of: what a part's memory is called.
        seed: the run's seed.
        replay: how many steps were taken on this very batch before (Free-AT).
    """

    def __init__(
        self,
        batch: Batch,
        model: nn.Module,
        guide: nn.Module | None,
        *,
        teachers: Mapping[str, nn.Module] = NO_TEACHERS,
        threat: ThreatModel,
        moment: Moment,
        label_source: LabelSource,
        inner: InnerMaximiser | None,
        memory: Memory,
        global_mean: Callable[[Tensor], Tensor] = same,
        slot_of: Callable[[object], str] = class_name,
        seed: int = 0,
        replay: int = 0,
    ) -> None:
        self.x, self.y, self.ids, self.generator = batch.x, batch.y, batch.ids, batch.generator
        self.model = model
        self.threat = threat
        self.moment = moment
        self.global_mean = global_mean
        self.seed = seed
        self.replay = replay
        self._guide = guide
        self._teachers = teachers
        self._slot_of = slot_of
        self._label_source = label_source
        self._inner = inner
        self._memory = memory
        self._taught: dict[tuple[str, Of], Logits] = {}

    @property
    def guide(self) -> nn.Module:
        """The network trained beside the model.

        Raises:
            ValueError: the run has none.
        """
        if self._guide is None:
            raise ValueError("the method asks for a guide network, the run has none: set the key 'guide'")
        return self._guide

    def teacher(self, role: str = "teacher") -> nn.Module:
        """A frozen network.

        Raises:
            ValueError: the run has none of that role.
        """
        if role not in self._teachers:
            raise ValueError(f"the method asks for a frozen network, the run has none: set the key {role!r}")
        return self._teachers[role]

    def remember(self, part: object) -> dict[str, Tensor]:
        """A part's own named tensors, empty at first, kept from step to step and in every checkpoint.

        They go by the part's slot in the method. With several processes each keeps its own and the first one's are
        saved: what is remembered has to be the same everywhere (see `batch_mean`).
        """
        return self._memory.setdefault(self._slot_of(part), {})

    @property
    def batch_generator(self) -> KeyedGenerator:
        """Random numbers of the step as a whole `(1, ...)`, the same in every process."""
        count = torch.tensor([self.moment.count], device=self.x.device)
        return KeyedGenerator(derive_seed(self.seed, "batch"), count)

    def batch_mean(self, values: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """Mean of per-example values over the batch of all processes, also where their shares differ in size."""
        count = values.new_tensor(float(len(values)))
        return self.global_mean(values.sum()) / self.global_mean(count)

    @cached_property
    def clean_logits(self) -> Logits:
        """Logits of the clean images, with gradient."""
        return logits_of(self.model, self.x)

    @cached_property
    def guide_logits(self) -> Logits:
        """The guide's logits of the clean images, with gradient."""
        return logits_of(self.guide, self.x)

    @cached_property
    def reference_logits(self) -> Logits:
        """Logits of the clean images in evaluation mode, without gradient: what a KL attack moves away from."""
        return self._reference("eval")

    def reference_in(self, mode: ModelMode) -> Logits:
        """Logits of the clean images in the mode of an attack, without gradient; kept in "eval", else anew."""
        return self.reference_logits if mode == "eval" else self._reference(mode)

    def _reference(self, mode: ModelMode) -> Logits:
        with frozen(self.model, mode, full_precision=False), torch.no_grad():
            return logits_of(self.model, self.x)

    def teacher_logits(self, role: str = "teacher", of: Of = "clean") -> Logits:
        """What a frozen network says of the clean or the adversarial images, without gradient; asked once.

        A second look at the loss (see `again`) finds the same answers.
        """
        if (role, of) not in self._taught:
            network, x = self.teacher(role), self.x if of == "clean" else self.adversarial.x_adv
            with frozen(network, full_precision=False), torch.no_grad():
                self._taught[role, of] = logits_of(network, x.detach())
        return self._taught[role, of]

    def labels_by(self, whose: Whose) -> Int64[Tensor, " n"]:
        """Classes of the examples by the label source or by the data set."""
        return self.labels.hard if whose == "labels" else self.y

    @cached_property
    def labels(self) -> Labels:
        """What the label source says."""
        return self._label_source(self)

    @cached_property
    def adversarial(self) -> AttackResult:
        """What the inner maximisation found.

        Raises:
            ValueError: the method has no inner maximisation.
        """
        if self._inner is None:
            raise ValueError("the loss asks for adversarial examples, the method has no inner maximisation")
        return self._inner(self)

    @property
    def attack_steps(self) -> int:
        """How many steps the inner maximisation may take: its attribute `steps`, 0 where it has none."""
        return int(getattr(self._inner, "steps", 0))

    @property
    def replays(self) -> int:
        """How many steps of the optimiser a batch gets."""
        return int(getattr(self._inner, "replays", 1))

    @cached_property
    def adversarial_logits(self) -> Logits:
        """Logits of the adversarial images, with gradient."""
        return logits_of(self.model, self.adversarial.x_adv)

    def again(self) -> "Step":
        """The same labels and adversarial examples, with the model's logits yet to be computed.

        For a second evaluation of the loss (AWP, SAM) that leaves this step alone. The guide is not asked again:
        its logits are passed on without gradient, its own loss is left out.
        """
        twin = copy.copy(self)
        twin.__dict__ = dict(self.__dict__)
        twin.forget_model_logits()
        twin.__dict__["labels"] = Labels(self.labels.hard, smoothing=self.labels.smoothing)
        if self._guide is not None:
            twin.__dict__["guide_logits"] = self.guide_logits.detach()
        return twin

    def forget_model_logits(self) -> None:
        """Compute the model's logits anew when they are asked for: its weights have moved."""
        for name in ("clean_logits", "adversarial_logits"):
            self.__dict__.pop(name, None)

    def computed(self, quantity: str) -> Tensor | None:
        """A quantity if some part asked for it already (for statistics, which must cost nothing)."""
        value = self.__dict__.get(quantity)
        return value.detach() if isinstance(value, Tensor) else None
