"""A training method: five parts, composed."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from robustly.training.labels import DataLabels
from robustly.training.losses import CleanLoss, OuterLoss, Terms
from robustly.training.parameters import ParameterPart
from robustly.training.step import InnerMaximiser, LabelSource, Step
from robustly.training.weights import InstanceWeights


class MethodError(ValueError):
    """Parts of a method that contradict each other."""


@dataclass(frozen=True)
class Method:
    """Where labels come from, how the inner maximisation runs, outer loss, instance weights, parameters.

    Any part may also define `after_step(step)`, called after the optimiser's step, to learn from how it went.

    Args:
        labels: label source.
        inner: inner maximisation; None for a method without attack.
        loss: outer loss.
        weights: instance weights; None counts every example once.
        parameters: what happens to the weights around the optimiser's step, in order.

    Raises:
        MethodError: two parameter parts of one class (they would share their memory); a loss that lacks its inner
            maximisation, or one that nothing would use.
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

    def after_step(self, step: Step) -> None:
        """Tell every part that has an `after_step` how the step went; a value in two slots hears it once."""
        heard: list[object] = []
        for part in (self.labels, self.inner, self.loss, self.weights, *self.parameters):
            listen = getattr(part, "after_step", None)
            if listen is not None and not any(part is other for other in heard):
                heard.append(part)
                listen(step)

    @property
    def needs_guide(self) -> bool:
        """Whether a network is trained beside the model."""
        return self.labels.needs_guide


def outer_loss(method: Method, step: Step) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The loss of a step and the batch means of its terms (detached)."""
    labels = step.labels
    if method.inner is not None:
        _ = step.adversarial
    for part in method.parameters:
        part.before_outer(step, lambda other: _second_look(method, other))
    if any(type(part).before_outer is not ParameterPart.before_outer for part in method.parameters):
        step.forget_model_logits()
    terms = _joined(labels.terms, _weighted(method, step))
    for part in method.parameters:
        terms = _joined(terms, part.extra_terms(step))
    means = {name: value.mean() for name, value in terms.items()}
    return sum(means.values(), start=step.x.new_zeros(())), {name: m.detach() for name, m in means.items()}


def _second_look(method: Method, step: Step) -> Float[Tensor, ""]:
    """The outer loss on the side: batch-norm statistics do not hear of it."""
    norms = [module for module in step.model.modules() if isinstance(module, _BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False
        return _total(_weighted(method, step))
    finally:
        for norm, was_tracked in zip(norms, tracked, strict=True):
            norm.track_running_stats = was_tracked


def _weighted(method: Method, step: Step) -> Terms:
    """The terms of the outer loss, one of them weighted where the method weights instances."""
    terms = method.loss(step)
    if method.weights is None:
        return terms
    name = method.weights.term
    if name not in terms:
        raise MethodError(f"the weights are for the loss term {name!r}, the loss has {', '.join(terms)}")
    weight = method.weights(step)
    return terms if weight is None else terms | {name: weight.detach() * terms[name]}


def _joined(terms: Terms, more: Terms) -> Terms:
    twice = terms.keys() & more.keys()
    if twice:
        raise MethodError(f"two parts of the method have a loss term {', '.join(sorted(twice))!r}: name them apart")
    return terms | more


def _total(terms: Terms) -> Float[Tensor, ""]:
    return torch.stack([value.mean() for value in terms.values()]).sum()
