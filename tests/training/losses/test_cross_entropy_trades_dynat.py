"""Outer losses: published values, gradients against straight-line versions, what must not be detached."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_tools import Constant, Given, double, make_step, mlp

from robustly.objectives import kl
from robustly.training import (
    AdversarialLoss,
    CleanLoss,
    DynatLoss,
    GuideLabels,
    Method,
    MethodError,
    MixtureLoss,
    OuterLoss,
    PGDInner,
    TradesLoss,
)
from robustly.training.labels.data import SmoothedLabels
from robustly.training.method import outer_loss

Z, Z_ADV = (2.0, 0.0, 0.0), (0.0, 1.0, 0.0)


def fixture_total(loss: OuterLoss, guided: bool) -> tuple[float, dict[str, float]]:
    """The loss of one example whose images are its logits: z clean, z' adversarial, y = 0, g = (0, 3, 1)."""
    changes = {"guide": Constant(0, 3, 1), "label_source": GuideLabels()} if guided else {}
    inner = Given(double(Z_ADV)) if loss.needs_inner else None
    step = make_step(double(Z), torch.tensor([0]), nn.Identity(), inner=inner, **changes)
    labels = {"labels": GuideLabels()} if guided else {}
    value, terms = outer_loss(Method(inner=inner, loss=loss, **labels), step)
    return float(value.detach()), {name: float(term) for name, term in terms.items()}


@pytest.mark.parametrize(
    ("loss", "guided", "total"),
    [
        (CleanLoss(), False, 0.23954477),
        (AdversarialLoss(), False, 1.55144471),
        (MixtureLoss(), False, 0.89549474),
        (MixtureLoss(0.0), False, 0.23954477),
        (MixtureLoss(1.0), False, 1.55144471),
        (TradesLoss(6.0), False, 4.91573508),
        (TradesLoss(0.0), False, 0.23954477),
        (DynatLoss(), True, 3.72129073),
        (DynatLoss(beta=0.2, consistency=1.0), True, 4.05950002),
        (DynatLoss(beta=0.0, consistency=1.0), True, 3.16984602 + 0.77936505),
        (DynatLoss(beta=1.0), False, 1.55144471),
    ],
)
def test_losses_have_the_published_values(loss: OuterLoss, guided: bool, total: float) -> None:
    value, terms = fixture_total(loss, guided)
    assert value == pytest.approx(total, abs=1e-8)
    assert math.fsum(terms.values()) == pytest.approx(value, abs=1e-12)


def test_terms_are_named_and_scaled() -> None:
    _, terms = fixture_total(DynatLoss(beta=0.2, consistency=1.0), guided=True)
    assert terms == pytest.approx(
        {"guide": 3.16984602, "adversarial": 0.2 * 0.55144471, "consistency": 0.77936505}, abs=1e-8
    )
    _, terms = fixture_total(TradesLoss(6.0), guided=False)
    assert terms == pytest.approx({"clean": 0.23954477, "consistency": 6 * 0.77936505}, abs=1e-7)


def test_kl_goes_from_the_first_to_the_second_and_neither_is_detached() -> None:
    z, z_adv = double(Z).requires_grad_(), double(Z_ADV).requires_grad_()
    assert float(kl(z, z_adv).detach()) == pytest.approx(0.77936505, abs=1e-8)
    assert float(kl(z_adv, z).detach()) == pytest.approx(0.84033382, abs=1e-8)
    kl(z, z_adv).sum().backward()
    assert torch.allclose(z.grad, double((0.41909753, -0.26280225, -0.15629528)), atol=1e-8)
    assert torch.allclose(z_adv.grad, double((-0.57504448, 0.46960991, 0.10543458)), atol=1e-8)


def test_the_clean_prediction_of_trades_learns_too() -> None:
    z, z_adv = double(Z).requires_grad_(), double(Z_ADV).requires_grad_()
    step = make_step(z, torch.tensor([0]), nn.Identity(), inner=Given(z_adv))
    TradesLoss(6.0)(step)["consistency"].sum().backward()
    assert torch.allclose(z.grad, 6 * double((0.41909753, -0.26280225, -0.15629528)), atol=1e-7)
    assert torch.allclose(z_adv.grad, 6 * double((-0.57504448, 0.46960991, 0.10543458)), atol=1e-7)


# loss and gradients against versions written down from the formulas, in double precision


def straight_clean(z: Tensor, z_adv: Tensor, y: Tensor, g: Tensor) -> Tensor:
    return -z.softmax(1).log()[range(len(y)), y].mean()


def straight_adversarial(z: Tensor, z_adv: Tensor, y: Tensor, g: Tensor) -> Tensor:
    return straight_clean(z_adv, z, y, g)


def straight_mixture(z: Tensor, z_adv: Tensor, y: Tensor, g: Tensor) -> Tensor:
    return 0.7 * straight_clean(z, z_adv, y, g) + 0.3 * straight_clean(z_adv, z, y, g)


def straight_trades(z: Tensor, z_adv: Tensor, y: Tensor, g: Tensor) -> Tensor:
    p, p_adv = z.softmax(1), z_adv.softmax(1)
    return straight_clean(z, z_adv, y, g) + 6.0 * F.kl_div(p_adv.log(), p, reduction="batchmean")


def straight_dynat(z: Tensor, z_adv: Tensor, y: Tensor, g: Tensor) -> Tensor:
    dynamic = torch.tensor([int(row.argmax()) for row in g])
    p, p_adv = z.softmax(1), z_adv.softmax(1)
    consistency = (p * (p / p_adv).log()).sum() / len(y)
    return straight_clean(g, z, y, g) + 0.2 * straight_clean(z_adv, z, dynamic, g) + consistency


CE, KL = PGDInner(steps=3, start="none"), PGDInner(objective="kl", start="gaussian", steps=3)


@pytest.mark.parametrize(
    ("loss", "inner", "straight"),
    [
        (CleanLoss(), None, straight_clean),
        (AdversarialLoss(), CE, straight_adversarial),
        (MixtureLoss(0.3), CE, straight_mixture),
        (TradesLoss(6.0), KL, straight_trades),
        (DynatLoss(0.2, 1.0), KL, straight_dynat),
        (DynatLoss(0.2, 1.0), CE, straight_dynat),
    ],
)
def test_loss_and_gradients_are_those_of_the_formula(
    loss: OuterLoss, inner: PGDInner | None, straight: object
) -> None:
    x = torch.rand(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(9) % 4
    model, guide = mlp(0), mlp(1)
    guided = isinstance(loss, DynatLoss)
    labels = {"labels": GuideLabels()} if guided else {}
    source = {"label_source": GuideLabels(), "guide": guide} if guided else {}
    step = make_step(x, y, model, inner=inner, **source)
    value, _ = outer_loss(Method(inner=inner, loss=loss, **labels), step)
    value.backward()
    mine = [parameter.grad for network in (model, guide) for parameter in network.parameters()]
    again, other = mlp(0), mlp(1)
    x_adv = step.adversarial.x_adv if inner is not None else x
    if inner is CE and not guided:
        assert torch.equal(x_adv, straight_pgd(mlp(0), x, y, steps=3, size=2.5 * 0.1 / 3))
    expected = straight(again(x), again(x_adv), y, other(x))  # type: ignore[operator]
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    theirs = [parameter.grad for network in (again, other) for parameter in network.parameters()]
    for one, two in zip(mine, theirs, strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.allclose(one, two, rtol=1e-9, atol=1e-14)


def straight_pgd(model: nn.Module, x: Tensor, y: Tensor, steps: int, size: float) -> Tensor:
    model.eval()
    x_adv = x.clone()
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        F.cross_entropy(model(x_adv), y).backward()
        moved = x_adv.detach() + size * x_adv.grad.sign()
        x_adv = torch.maximum(torch.minimum(moved, x + 0.1), x - 0.1).clamp(0, 1)
    return x_adv


def test_without_weight_the_labels_of_the_guide_teach_the_model_nothing() -> None:
    x, y = torch.rand(9, 6, dtype=torch.float64), torch.arange(9) % 4
    gradients = []
    for labels in (GuideLabels(), SmoothedLabels(0.3)):
        model, guide = mlp(0), mlp(1)
        step = make_step(x, y, model, inner=Given(x.flip(0)), guide=guide, label_source=labels)
        method = Method(labels=labels, inner=Given(x.flip(0)), loss=DynatLoss(beta=0.0, consistency=1.0))
        outer_loss(method, step)[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        learns = isinstance(labels, GuideLabels)
        assert all((parameter.grad is not None) is learns for parameter in guide.parameters())
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    with pytest.raises(ValueError, match="must not both be 0"):
        DynatLoss(beta=0.0)


def test_a_kl_attack_from_the_image_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="zero gradient"):
        PGDInner(objective="kl", start="none")


@pytest.mark.parametrize("make", [lambda: MixtureLoss(1.1), lambda: TradesLoss(-1), lambda: DynatLoss(beta=-0.1)])
def test_coefficients_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="got"):
        make()  # type: ignore[operator]


def test_a_method_and_its_parts_belong_together() -> None:
    with pytest.raises(MethodError, match="no inner"):
        Method(loss=TradesLoss())
    with pytest.raises(MethodError, match="does not use"):
        Method(inner=CE, loss=CleanLoss())
