"""A training method: five parts, composed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from robustly.training.batch_norms import statistics_kept
from robustly.training.catalogue import PARAMETER_PARTS
from robustly.training.labels import DataLabels
from robustly.training.losses import CleanLoss, OuterLoss, Terms
from robustly.training.parameters import EpochEnd, ParameterPart
from robustly.training.step import InnerMaximiser, LabelSource, Step
from robustly.training.weights import InstanceWeights


class MethodError(ValueError):
    """Parts of a method that contradict each other."""


@dataclass(frozen=True)
class Method:
    """Where labels come from, how the inner maximisation runs, outer loss, instance weights, parameters.

    Any part may also define `after_backward(step)` (gradients are there, the optimiser has not moved yet),
    `after_step(step)` (it has) and `after_epoch(end)`, to learn from how it went; `networks`, a tuple with the
    roles of further networks that it needs: "guide" (trained beside the model), "teacher", "standard_teacher"
    (frozen); `check(method)`, which returns why it does not go with the other parts, or None; and
    `check_epochs(epochs)`, which does so for the length of a run.

    Args:
        labels: label source.
        inner: inner maximisation; None for a method without attack.
        loss: outer loss.
        weights: instance weights; None counts every example once.
        parameters: what happens to the weights around the optimiser's step, in order.

    Raises:
        MethodError: two parameter parts of one class; a loss that lacks its inner maximisation, or one that nothing
            would use; parts that contradict each other.
    """

    labels: LabelSource = field(default_factory=DataLabels)
    inner: InnerMaximiser | None = None
    loss: OuterLoss = field(default_factory=CleanLoss)
    weights: InstanceWeights | None = None
    parameters: tuple[ParameterPart, ...] = ()

    def __post_init__(self) -> None:
        kinds = [type(part).__name__ for part in self.parameters]
        if len(set(kinds)) < len(kinds):
            raise MethodError(f"each parameter part may be named once, got {', '.join(kinds)}")
        if self.loss.needs_inner and self.inner is None:
            raise MethodError("the loss asks for adversarial examples, the method has no inner maximisation")
        if self.inner is not None and not self.loss.needs_inner:
            raise MethodError("the method has an inner maximisation that its loss does not use")
        if self.shares_backward and any(_perturbs(part) for part in self.parameters):
            raise MethodError(
                "a replaying inner maximisation (Free-AT) has one backward pass for attack and weights: no part "
                "may perturb the weights in between (awp)"
            )
        for slot, part in self.slots():
            check = getattr(part, "check", None)
            reason = check(self) if check is not None else None
            if reason is not None:
                raise MethodError(f"{_key(slot, part)}: {reason}")

    def check_epochs(self, epochs: int) -> None:
        """Refuse a run that is too short for a part.

        Raises:
            MethodError: a part's `check_epochs` says why.
        """
        for slot, part in self.slots():
            check = getattr(part, "check_epochs", None)
            reason = check(epochs) if check is not None else None
            if reason is not None:
                raise MethodError(f"{_key(slot, part)}: {reason}")

    def slots(self) -> Iterator[tuple[str, object]]:
        """Every part with the name of its place in the method; a value in two places comes once."""
        places: list[tuple[str, object]] = [
            ("labels", self.labels),
            ("inner", self.inner),
            ("loss", self.loss),
            ("weights", self.weights),
            *((f"parameters.{type(part).__name__}", part) for part in self.parameters),
        ]
        seen: list[object] = []
        for name, part in places:
            if part is not None and not any(part is other for other in seen):
                seen.append(part)
                yield name, part

    def slot_of(self, part: object) -> str:
        """The place of a part; for one inside another part, its class."""
        return next((name for name, other in self.slots() if other is part), type(part).__name__)

    def tell(self, occasion: Literal["after_backward", "after_step"], step: Step) -> None:
        """Tell every part that wants to hear it how the step went; first of all who perturbed the weights.

        Whatever looks at the weights after the step (an average) sees them without their perturbation.
        """
        for _, part in sorted(self.slots(), key=lambda slot: not _perturbs(slot[1])):
            listen = getattr(part, occasion, None)
            if listen is not None:
                listen(step)

    def after_epoch(self, end: EpochEnd) -> None:
        """Tell every part that wants to hear it that an epoch is over."""
        for _, part in self.slots():
            listen = getattr(part, "after_epoch", None)
            if listen is not None:
                listen(end)

    @property
    def networks(self) -> tuple[str, ...]:
        """Roles of the networks beside the model that the parts ask for."""
        roles = [role for _, part in self.slots() for role in getattr(part, "networks", ())]
        return tuple(dict.fromkeys(roles))

    @property
    def shares_backward(self) -> bool:
        """Whether one backward pass serves attack and weights (Free-AT)."""
        return bool(getattr(self.inner, "shares_backward", self.replays > 1))

    @property
    def replays(self) -> int:
        """Steps of the optimiser on each batch."""
        return int(getattr(self.inner, "replays", 1))


def outer_loss(method: Method, step: Step) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The loss of a step and the batch means of its terms (detached)."""
    labels = step.labels
    if method.inner is not None:
        _ = step.adversarial
    for part in method.parameters:
        part.before_outer(step, lambda other: _second_look(method, other))
    if any(_perturbs(part) for part in method.parameters):
        step.forget_model_logits()
    terms = _joined(labels.terms, _weighted(method, step))
    for part in method.parameters:
        terms = _joined(terms, part.extra_terms(step))
    means = {name: value.mean() for name, value in terms.items()}
    return sum(means.values(), start=step.x.new_zeros(())), {name: m.detach() for name, m in means.items()}


def _key(slot: str, part: object) -> str:
    """Where settings have a part: a slot of its class's name is one of the name that recipes use."""
    return next((f"parameters.{name}" for name, kind in PARAMETER_PARTS.items() if type(part) is kind), slot)


def _perturbs(part: object) -> bool:
    return isinstance(part, ParameterPart) and type(part).before_outer is not ParameterPart.before_outer


def _second_look(method: Method, step: Step) -> Float[Tensor, ""]:
    """The outer loss on the side: batch-norm statistics do not hear of it."""
    with statistics_kept(step.model):
        return _total(_weighted(method, step))


def _weighted(method: Method, step: Step) -> Terms:
    """The terms of the outer loss, one of them weighted where the method weights instances and the term is there.

    A term may come later than the weights (IAD's). One that never comes is refused before the run; see `step_cost`.
    """
    terms = method.loss(step)
    if method.weights is None:
        return terms
    name = method.weights.term
    weight = method.weights(step) if name in terms else None
    return terms if weight is None else terms | {name: weight.detach() * terms[name]}


def _joined(terms: Terms, more: Terms) -> Terms:
    twice = terms.keys() & more.keys()
    if twice:
        raise MethodError(f"two parts of the method have a loss term {', '.join(sorted(twice))!r}: name them apart")
    return terms | more


def _total(terms: Terms) -> Float[Tensor, ""]:
    return torch.stack([value.mean() for value in terms.values()]).sum()
