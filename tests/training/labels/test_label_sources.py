"""Label sources: labels of the data, smoothed labels, dynamic labels of a guide."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_tools import Constant, double, make_step, mlp

from robustly.training import (
    CleanLoss,
    DynatLoss,
    GuideLabels,
    Labels,
    Method,
    MethodError,
    Moment,
    PGDInner,
    SmoothedLabels,
)
from robustly.training.losses.terms import label_loss
from robustly.training.method import outer_loss

Z = (2.0, 0.0, 0.0)
CE, KL = PGDInner(steps=3, start="none"), PGDInner(objective="kl", start="gaussian", steps=3)


@pytest.mark.parametrize(("epoch", "expected"), [(0, [3, 3]), (1, [3, 3]), (2, [0, 1])])
def test_dynamic_labels_may_begin_late(epoch: int, expected: list[int]) -> None:
    """The guide learns all the time; the labels of the model change after the warm-up."""
    x, y = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0]]), torch.tensor([3, 3])
    step = make_step(x, y, nn.Identity(), guide=nn.Identity(), moment=Moment(epoch, 0, 1, 4))
    labels = GuideLabels(warm_up=2)(step)
    assert labels.hard.tolist() == expected
    assert labels.terms.keys() == {"guide"}
    with pytest.raises(MethodError, match=r"warm_up is 2\b.* run has 2\b"):
        Method(labels=GuideLabels(warm_up=2), inner=CE, loss=DynatLoss()).check_epochs(2)
    for settings in ({"warm_up": -1.0}, {"smoothing": 1.0}):
        with pytest.raises(ValueError, match="must"):
            GuideLabels(**settings)


@pytest.mark.parametrize("beta", [0.2, 1.0, 50.0])
@pytest.mark.parametrize("inner", [CE, KL])
def test_nothing_leaks_from_the_model_into_the_guide(beta: float, inner: PGDInner) -> None:
    x, y = torch.rand(9, 6, dtype=torch.float64), torch.arange(9) % 4
    model, guide = mlp(0), mlp(1)
    step = make_step(x, y, model, inner=inner, guide=guide, label_source=GuideLabels())
    outer_loss(Method(labels=GuideLabels(), inner=inner, loss=DynatLoss(beta, 1.0)), step)[0].backward()
    alone = mlp(1)
    F.cross_entropy(alone(x), y, reduction="none").mean().backward()
    for one, other in zip(guide.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_tie_of_the_guide_goes_to_the_lowest_class() -> None:
    step = make_step(
        double(Z), torch.tensor([2]), nn.Identity(), guide=Constant(1, 3, 3), label_source=GuideLabels()
    )
    assert step.labels.hard.tolist() == [1]
    assert not step.labels.hard.requires_grad


def test_smoothed_labels_have_the_published_value() -> None:
    z, y = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    assert float(label_loss(z, Labels(y, smoothing=0.1))) == pytest.approx(0.37287810, abs=1e-8)
    x = torch.rand(5, 6, dtype=torch.float64)
    y = torch.randint(4, (5,))
    plain, smooth = make_step(x, y, mlp()), make_step(x, y, mlp(), label_source=SmoothedLabels(0.0))
    assert torch.equal(CleanLoss()(plain)["clean"], CleanLoss()(smooth)["clean"])
    with pytest.raises(ValueError, match=r"smoothing .*\[0, 1\).* 1"):
        SmoothedLabels(1.0)


def test_the_label_of_the_data_replaces_that_of_an_unsure_guide() -> None:
    x = double((3.0, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 4.0, 0.0))  # largest probabilities 0.909, 0.452, 0.965
    step = make_step(x, torch.tensor([2, 2, 2]), nn.Identity(), guide=nn.Identity())
    labels = {limit: GuideLabels(confidence=limit)(step).hard.tolist() for limit in (0.0, 0.4, 0.8, 0.95, 1.0)}
    assert labels == {0.0: [0, 0, 1], 0.4: [0, 0, 1], 0.8: [0, 2, 1], 0.95: [2, 2, 1], 1.0: [2, 2, 2]}
    with pytest.raises(ValueError, match=r"confidence must lie in \[0, 1\]"):
        GuideLabels(confidence=1.1)
