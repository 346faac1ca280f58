"""A training method: five parts, composed."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from robustly.training.labels import DataLabels
from robustly.training.losses import CleanLoss, OuterLoss
from robustly.training.parameters import ParameterPart
from robustly.training.step import InnerMaximiser, LabelSource, Step
from robustly.training.weights import InstanceWeights


class MethodError(ValueError):
    """Parts of a method that contradict each other."""


@dataclass(frozen=True)
class Method:
    """Where labels come from, how the inner maximisation runs, outer loss, instance weights, parameters.

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
        part.before_outer(step)
    terms = {**labels.terms, **method.loss(step)}
    for part in method.parameters:
        terms.update(part.extra_terms(step))
    if method.weights is not None:
        weights = {name: method.weights(step, name) for name in terms}
        terms |= {name: weight.detach() * terms[name] for name, weight in weights.items() if weight is not None}
    means = {name: value.mean() for name, value in terms.items()}
    return sum(means.values(), start=step.x.new_zeros(())), {name: m.detach() for name, m in means.items()}
