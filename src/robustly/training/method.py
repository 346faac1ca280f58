"""A training method: five parts, composed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustly.attacks.core.model_access import frozen_statistics
from robustly.data import Batch
from robustly.threats import Threat
from robustly.training.labels.data import DataLabels
from robustly.training.losses.cross_entropy import CleanLoss
from robustly.training.parameters import PARAMETER_PARTS
from robustly.training.parts import (
    EpochEnd,
    InnerMaximiser,
    InstanceWeights,
    LabelSource,
    OuterLoss,
    Part,
    Terms,
    perturbs_weights,
)
from robustly.training.quantities import Networks, needs_attack, network_and_inputs
from robustly.training.step import Memory, Moment, Step, no_attacks, unchanged


class MethodError(ValueError):
    """Parts of a method that contradict each other."""


@dataclass(frozen=True)
class Method:
    """Label source, inner maximisation, outer loss, instance weights and parameter parts.

    Args:
        labels: label source.
        inner: inner maximisation; None for a method without attack.
        loss: outer loss.
        weights: instance weights; None counts every example once.
        parameters: parts that change the weights around the optimiser's step, in order.

    Raises:
        MethodError: two parameter parts have one class, the loss lacks an inner maximisation or does not use it, a
            quantity does not exist, or parts contradict each other.
    """

    labels: LabelSource = field(default_factory=DataLabels)
    inner: InnerMaximiser | None = None
    loss: OuterLoss = field(default_factory=CleanLoss)
    weights: InstanceWeights | None = None
    parameters: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        kinds = [type(part).__name__ for part in self.parameters]
        if len(set(kinds)) < len(kinds):
            raise MethodError(f"each parameter part may be named once, got {', '.join(kinds)}")
        for slot, part in self.slots():
            if not isinstance(part, Part):
                raise MethodError(f"{slot}: {type(part).__name__} must derive from robustly.training.Part")
        if self.loss.needs_inner and self.inner is None:
            raise MethodError("the loss needs adversarial examples, the method has no inner maximisation")
        if self.inner is not None and not self.loss.needs_inner:
            raise MethodError("the method has an inner maximisation that its loss does not use")
        if self.shares_backward and any(perturbs_weights(part) for _, part in self.slots()):
            raise MethodError(
                "a replaying inner maximisation (Free-AT) has one backward pass for attack and weights: no part "
                "may perturb the weights in between (awp)"
            )
        self._check_reads()
        self._refuse(lambda part: part.check(self))

    def _check_reads(self) -> None:
        """Refuse quantities that steps of the method do not have."""
        own = self.own_quantities
        reads = [(slot, part, name) for slot, part in self.slots() for name in part.reads if name not in own]
        for slot, part, name in reads:
            try:
                network_and_inputs(name)
            except ValueError as error:
                raise MethodError(f"{_key(slot, part)}: {error}") from None
        known = ("model", *self.networks)
        for slot, part, name in reads:
            network, inputs = network_and_inputs(name)
            if network not in known:
                raise MethodError(f"{_key(slot, part)}: reads {name!r}, no part names the network {network!r}")
            if inputs == "adversarial" and self.inner is None:
                raise MethodError(f"{_key(slot, part)}: reads {name!r}, the method has no inner maximisation")

    def _refuse(self, reason_of: Callable[[Part], str | None]) -> None:
        """Raise the first reason that a part has, with its place in the method."""
        for slot, part in self.slots():
            reason = reason_of(part)
            if reason is not None:
                raise MethodError(f"{_key(slot, part)}: {reason}")

    def check_epochs(self, epochs: int) -> None:
        """Refuse a run that is too short for a part.

        Raises:
            MethodError: the message of the part's `check_epochs`.
        """
        self._refuse(lambda part: part.check_epochs(epochs))

    def check_threats(self, threats: tuple[Threat, ...]) -> None:
        """Refuse threats that a part is not defined for.

        Raises:
            MethodError: the message of the part's `check_threats`.
        """
        self._refuse(lambda part: part.check_threats(threats))

    def check_classes(self, classes: int) -> None:
        """Refuse a number of classes that a part is not defined for.

        Raises:
            MethodError: the message of the part's `check_classes`.
        """
        self._refuse(lambda part: part.check_classes(classes))

    def whole_batch_reason(self) -> str:
        """Reason why a batch cannot pass in several parts; empty without one.

        Free-AT, instance weights, and parts that perturb the weights depend on the whole batch.
        """
        reasons = [
            f"{_key(slot, part)} perturbs the weights" for slot, part in self.slots() if perturbs_weights(part)
        ]
        reasons += ["Free-AT keeps a perturbation for each position in the batch"] * self.shares_backward
        reasons += ["instance weights are those of a whole batch"] * (self.weights is not None)
        return reasons[0] if reasons else ""

    def check_accumulation(self) -> None:
        """Refuse steps in several parts for methods whose steps depend on the whole batch.

        Raises:
            MethodError: there is a `whole_batch_reason`.
        """
        reason = self.whole_batch_reason()
        if reason:
            raise MethodError(f"training.accumulate: {reason}: set it to 1")

    def check_sharding(self) -> None:
        """Refuse weights in shards (FSDP) for methods with a part that needs them whole.

        Raises:
            MethodError: the message of the part's `check_sharding`.
        """
        for slot, part in self.slots():
            reason = part.check_sharding()
            if reason is None and perturbs_weights(part):
                reason = "perturbs the weights, which no process holds as a whole"
            if reason is not None:
                raise MethodError(f"runtime.strategy fsdp: {_key(slot, part)} {reason}: set it to ddp")

    def check_synchronised_norms(self) -> None:
        """Refuse synchronised batch normalisation in an attack whose number of passes differs between processes.

        Raises:
            MethodError: an inner maximisation in training mode that stops early.
        """
        inner = self.inner
        if inner is not None and inner.stops_early and getattr(inner, "mode", "eval") != "eval":
            raise MethodError(
                f"training.sync_batch_norm: inner ({type(inner).__name__}) stops early in each process on its own, "
                "and its passes in training mode need all processes: set method.inner.mode to eval"
            )

    def check_model(self, model: nn.Module, threats: tuple[Threat, ...]) -> None:
        """Refuse a network that a part is not defined for.

        Raises:
            MethodError: the message of the part's `check_model`.
        """
        self._refuse(lambda part: part.check_model(model, threats))

    def slots(self) -> Iterator[tuple[str, Part]]:
        """Yield (slot, part) pairs; a part in two slots is yielded once."""
        places: list[tuple[str, Part | None]] = [
            ("labels", self.labels),
            ("inner", self.inner),
            ("loss", self.loss),
            ("weights", self.weights),
            *((f"parameters.{type(part).__name__}", part) for part in self.parameters),
        ]
        seen: list[Part] = []
        for name, part in places:
            if part is not None and not any(part is other for other in seen):
                seen.append(part)
                yield name, part

    def slot_of(self, part: object) -> str:
        """Slot of a part; for one inside another part, its class."""
        return next((name for name, other in self.slots() if other is part), type(part).__name__)

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks beside the model that the parts use."""
        return tuple(dict.fromkeys(name for _, part in self.slots() for name in part.networks))

    @property
    def own_quantities(self) -> Mapping[str, Callable[[Step], Tensor]]:
        """Quantities that the parts define themselves, by name.

        Raises:
            MethodError: two parts define a name, or a name is that of a network's logits.
        """
        own: dict[str, Callable[[Step], Tensor]] = {}
        for slot, part in self.slots():
            for name, define in part.own_quantities.items():
                if name in own or name in ("clean", "adversarial", "guide") or "@" in name:
                    raise MethodError(
                        f"{_key(slot, part)}: the quantity {name!r} exists already: choose another name"
                    )
                own[name] = define
        return own

    @property
    def views(self) -> int:
        """Independently augmented copies of each image that the parts use."""
        return max(part.views for _, part in self.slots())

    @property
    def replays(self) -> int:
        """Optimiser steps on each batch."""
        return 1 if self.inner is None else self.inner.replays

    @property
    def shares_backward(self) -> bool:
        """True if attack and weights share one backward pass (Free-AT)."""
        return self.inner is not None and self.inner.shares_backward

    def step(
        self,
        batch: Batch,
        networks: Networks,
        *,
        threats: tuple[Threat, ...],
        moment: Moment,
        memory: Memory,
        replay: int = 0,
        global_mean: Callable[[Tensor], Tensor] = unchanged,
        seed: int = 0,
        whole_weights: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Step:
        """A training step of this method; arguments as in `Step`."""
        return Step(
            batch,
            networks,
            threats=threats,
            moment=moment,
            label_source=self.labels,
            inner=self.inner,
            further=no_attacks if self.inner is None else self.inner.further_attacks,
            memory=memory,
            attack_steps=0 if self.inner is None else self.inner.steps,
            replays=self.replays,
            replay=replay,
            own=self.own_quantities,
            slot_of=self.slot_of,
            global_mean=global_mean,
            seed=seed,
            whole_weights=whole_weights,
        )

    def after_backward(self, step: Step) -> None:
        """Call `after_backward` of all parts, parts that perturb the weights first."""
        for slot, part in self._perturbing_first():
            with _reading(step, slot, part):
                part.after_backward(step)

    def after_step(self, step: Step) -> None:
        """Call `after_step` of all parts, parts that perturb the weights first.

        Averages are then over weights without the perturbation.
        """
        for slot, part in self._perturbing_first():
            with _reading(step, slot, part):
                part.after_step(step)

    def after_failure(self, step: Step) -> None:
        """Call `after_failure` of all parts, in the order of `after_step`."""
        for _, part in self._perturbing_first():
            part.after_failure(step)

    def after_epoch(self, end: EpochEnd) -> None:
        """Call `after_epoch` of all parts."""
        for _, part in self.slots():
            part.after_epoch(end)

    def _perturbing_first(self) -> list[tuple[str, Part]]:
        return sorted(self.slots(), key=lambda slot: not perturbs_weights(slot[1]))


def outer_loss(method: Method, step: Step) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The loss of a step and the batch means of its terms, which are detached.

    The phases are labels, inner maximisation, weight perturbation, outer loss. In each of them the quantities that
    its parts declare are computed first.
    """
    moment = step.moment
    _compute_clean(step, method.labels.reads_at(moment))
    with _reading(step, "labels", method.labels):
        labels = step.labels
    if method.inner is not None:
        _compute_clean(step, method.inner.reads_at(moment))
        with _reading(step, "inner", method.inner):
            _ = step.adversarial, step.further_attacks
    declared = [name for _, part in method.slots() for name in part.reads_at(moment)]
    perturbing = [(slot, part) for slot, part in method.slots() if perturbs_weights(part)]
    if perturbing:
        step.compute([name for name in declared if not step.quantities.depends_on_model(name)])
        for slot, part in perturbing:
            with _reading(step, slot, part):
                part.before_outer(step, lambda again: _second_evaluation(method, again))
        step.quantities.forget_model()
    step.compute(declared)
    terms = _joined(labels.terms, _weighted(method, step))
    for slot, part in method.slots():
        with _reading(step, slot, part):
            terms = _joined(terms, part.extra_terms(step))
    means = {name: value.mean() for name, value in terms.items()}
    return sum(means.values(), start=step.x.new_zeros(())), {name: m.detach() for name, m in means.items()}


def part_name(slot: str, part: Part) -> str:
    """Name of a part in messages: its configuration key and its class."""
    return f"{_key(slot, part)} ({type(part).__name__})"


def _key(slot: str, part: Part) -> str:
    """Configuration key of a part."""
    return next((f"parameters.{name}" for name, kind in PARAMETER_PARTS.items() if type(part) is kind), slot)


def _reading(step: Step, slot: str, part: Part) -> AbstractContextManager[None]:
    return step.reading(part_name(slot, part), part.reads_at(step.moment))


def _compute_clean(step: Step, reads: tuple[str, ...]) -> None:
    """Compute the quantities that do not need the attack."""
    step.compute([name for name in reads if name not in step.own_names and not needs_attack(name)])


def _second_evaluation(method: Method, step: Step) -> Float[Tensor, ""]:
    """The weighted outer loss; batch-norm statistics are not updated."""
    with frozen_statistics(*step.networks.learning.values()):
        step.compute(_reads_of_loss(method, step.moment))
        return torch.stack([value.mean() for value in _weighted(method, step).values()]).sum()


def _reads_of_loss(method: Method, moment: Moment) -> tuple[str, ...]:
    """Quantities that the outer loss and the instance weights read."""
    return method.loss.reads_at(moment) + (() if method.weights is None else method.weights.reads_at(moment))


def _weighted(method: Method, step: Step) -> Terms:
    """The weighted terms of the outer loss, averaged over all attacks of the inner maximisation."""
    terms = _weighted_once(method, step)
    if method.inner is None or method.loss.joins_attacks or not step.further_attacks:
        return terms
    step.others = tuple(step.with_adversarial(found) for found in step.further_attacks)
    found = [terms]
    for other in step.others:
        other.compute(_reads_of_loss(method, step.moment))
        found.append(_weighted_once(method, other))
    return {name: torch.stack([one[name] for one in found]).mean(0) for name in terms}


def _weighted_once(method: Method, step: Step) -> Terms:
    """The terms of the outer loss, with one of them multiplied by the instance weights.

    The weighted term may be absent in early epochs (IAD); `step_cost` rejects methods that never produce it.
    """
    with _reading(step, "loss", method.loss):
        terms = method.loss(step)
    if method.weights is None or method.weights.term not in terms:
        return terms
    with _reading(step, "weights", method.weights):
        weight = method.weights(step)
    name = method.weights.term
    return terms if weight is None else terms | {name: weight.detach() * terms[name]}


def _joined(terms: Terms, more: Terms) -> Terms:
    twice = terms.keys() & more.keys()
    if twice:
        raise MethodError(
            f"two parts of the method have a loss term {', '.join(sorted(twice))!r}: give them different names"
        )
    return terms | more
