"""Any parts together: they compose or say why not, and what a part leaves out changes nothing, bit by bit."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_tools import make_step, mlp

from robustly.training import (
    INNER_MAXIMISERS,
    LABEL_SOURCES,
    LOSSES,
    PARAMETER_PARTS,
    ExponentialAverage,
    GairatWeights,
    Method,
    MethodError,
    Part,
)
from robustly.training.method import outer_loss
from robustly.training.parameters.awp import WeightPerturbation
from robustly.training.parameters.gradalign import GradAlign
from robustly.training.weights.mail import MailWeights

COUNT, CLASSES = 6, 4


def built(table: dict[str, type], **changes: dict[str, object]) -> st.SearchStrategy[object]:
    return st.sampled_from([kind(**changes.get(name, {})) for name, kind in table.items()])


EVEN = MailWeights(slope=0.0, scale="mean_one", burn_in=0)
FEW_STEPS = {name: {"steps": 2} for name in ("pgd", "adaad", "gkl", "friendly", "curriculum")}
LABELS = built(LABEL_SOURCES)
INNERS = built(INNER_MAXIMISERS, **FEW_STEPS)
LOSS = built({name: kind for name, kind in LOSSES.items() if name != "tafd"})  # needs a network with domains
INSTANCE_WEIGHTS = st.sampled_from([None, GairatWeights(burn_in=0), MailWeights(burn_in=0), EVEN])
PARAMETERS = st.lists(st.sampled_from([kind() for kind in PARAMETER_PARTS.values()]), max_size=3, unique_by=type)
COMMON = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])


def composed(labels: object, inner: object, loss: object, **more: object) -> Method:
    """A method; compositions that the parts refuse are skipped."""
    try:
        return Method(labels=labels, inner=inner, loss=loss, **more)  # type: ignore[arg-type]
    except MethodError:
        assume(False)
        raise


@dataclass(frozen=True)
class Observed:
    """Results of one step: the loss, and the gradients of the model and of the guide."""

    loss: Tensor
    model: dict[str, Tensor]
    guide: dict[str, Tensor]
    statistics: dict[str, Tensor]


def look(method: Method) -> Observed:
    """One step of a method on fixed images, the same for all."""
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(COUNT, 6, dtype=torch.float64, generator=draws)
    y = torch.arange(COUNT) % CLASSES
    networks = {role: mlp(number) for number, role in enumerate(("model", "guide", "teacher", "standard_teacher"))}
    for role in ("teacher", "standard_teacher"):
        networks[role].requires_grad_(False).eval()
    step = make_step(
        x,
        y,
        networks["model"].train(),
        guide=networks["guide"].train() if "guide" in method.networks else None,
        teachers={role: networks[role] for role in ("teacher", "standard_teacher")},
        label_source=method.labels,
        inner=method.inner,
        slot_of=method.slot_of,
    )
    loss, _ = outer_loss(method, step)
    loss.backward()
    method.after_backward(step)
    method.after_step(step)
    for role in ("teacher", "standard_teacher"):
        assert all(p.grad is None for p in networks[role].parameters())
    statistics = dict(networks["model"].named_buffers())
    return Observed(loss.detach(), gradients(networks["model"]), gradients(networks["guide"]), statistics)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def alike(one: Observed, other: Observed, exactly: bool = True) -> None:
    close = torch.equal if exactly else lambda a, b: torch.allclose(a, b, rtol=1e-9, atol=1e-12)
    assert close(one.loss, other.loss)
    for name in ("model", "guide", "statistics"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.keys() == theirs.keys()
        assert all(close(value, theirs[key]) for key, value in mine.items()), name


@pytest.mark.slow
@COMMON
@given(labels=LABELS, inner=INNERS, loss=LOSS, weights=INSTANCE_WEIGHTS, parameters=PARAMETERS)
def test_parts_compose_or_are_refused(
    labels: object, inner: object, loss: object, weights: object, parameters: list[Part]
) -> None:
    method = composed(labels, inner, loss, weights=weights, parameters=tuple(parameters))
    found = look(method)
    assert bool(found.loss.isfinite())
    assert found.model, "the model learns"
    assert all(bool(gradient.isfinite().all()) for gradient in found.model.values())
    alike(found, look(method))


@pytest.mark.slow
@COMMON
@given(labels=LABELS, inner=INNERS, loss=LOSS)
def test_a_perturbation_of_size_zero_is_none(labels: object, inner: object, loss: object) -> None:
    method = composed(labels, inner, loss)
    assume(method.replays == 1)
    parts = (WeightPerturbation(gamma=0.0), GradAlign(weight=0.0), ExponentialAverage())
    alike(look(method), look(replace(method, parameters=parts)))


@pytest.mark.slow
@COMMON
@given(labels=LABELS, inner=INNERS, loss=LOSS)
def test_a_second_evaluation_leaves_labels_examples_and_statistics_alone(
    labels: object, inner: object, loss: object
) -> None:
    """With a tiny perturbation the gradients are those of the method itself, and batch norm counts as before."""
    method = composed(labels, inner, loss)
    assume(method.replays == 1)
    one = look(method)
    other = look(replace(method, parameters=(WeightPerturbation(gamma=1e-9),)))
    assert torch.allclose(one.loss, other.loss, rtol=1e-6)
    for name in ("model", "guide"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.allclose(gradient, theirs[key], rtol=1e-5, atol=1e-7) for key, gradient in mine.items()), (
            name
        )
    assert all(torch.allclose(value, other.statistics[name], rtol=1e-6) for name, value in one.statistics.items())


@pytest.mark.slow
@COMMON
@given(labels=LABELS, inner=INNERS, loss=LOSS)
def test_weights_of_one_are_none(labels: object, inner: object, loss: object) -> None:
    method = composed(labels, inner, loss)
    alike(look(method), look(replace(method, weights=EVEN)), exactly=False)


@pytest.mark.slow
@COMMON
@given(inner=INNERS, loss=LOSS)
def test_a_guide_that_only_labels_learns_from_the_data_alone(inner: object, loss: object) -> None:
    """No gradient of the model's loss reaches it, except where the loss compares the two (LBGAT)."""
    method = composed(LABEL_SOURCES["guide"](), inner, loss)
    assume("guide" not in getattr(loss, "networks", ()))
    found = look(method)
    guide = mlp(1).train()
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(COUNT, 6, dtype=torch.float64, generator=draws)
    nn.functional.cross_entropy(guide(x), torch.arange(COUNT) % CLASSES).backward()
    assert all(
        torch.allclose(gradient, gradients(guide)[name], rtol=1e-9) for name, gradient in found.guide.items()
    )
    assert found.guide.keys() == gradients(guide).keys()
