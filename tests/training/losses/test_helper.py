"""HAT: the contract of a part, its value by hand, its gradient, its neighbours, and what is detached."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_tools import Constant, Given, double, make_step, mlp

from robustly.testing import check_part
from robustly.training import PGDInner, Step, TradesLoss
from robustly.training.losses.helper import HatLoss

Z, Z_ADV = (2.0, 0.0, 0.0), (0.0, 1.0, 0.0)


@pytest.mark.slow
def test_it_keeps_the_contract_of_a_part() -> None:
    check_part(HatLoss())
    check_part(HatLoss(beta=0))
    check_part(HatLoss(gamma=0))


def test_its_value_by_hand() -> None:
    """The images are the logits: the helper example has (-2, 2, 0), and its label is class 1."""
    step = make_step(
        double(Z),
        torch.tensor([0]),
        nn.Identity(),
        inner=Given(double(Z_ADV)),
        teachers={"standard_teacher": Constant(0.0, 5.0, 0.0)},
    )
    terms = {name: float(term) for name, term in HatLoss(beta=2.0, gamma=0.25)(step).items()}
    p = math.exp(2) / (math.exp(2) + 2)
    shift = math.log(math.e + 2) - math.log(math.exp(2) + 2)
    divergence = shift + p * 2 - (1 - p) / 2  # sum_k p_k (log p_k - log p'_k)
    assert terms["clean"] == pytest.approx(-math.log(p))
    assert terms["consistency"] == pytest.approx(2.0 * divergence)
    helper = math.log(math.exp(-2) + math.exp(2) + 1) - 2
    assert terms["helper"] == pytest.approx(0.25 * helper)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(4, (16,), generator=generator)


def step_of(model: nn.Module, helper: nn.Module) -> Step:
    x, y = batch()
    return make_step(x, y, model, inner=PGDInner(steps=3), teachers={"standard_teacher": helper})


def test_its_gradient_is_that_of_the_formula() -> None:
    model, helper = mlp(0, norm=False).eval(), mlp(1, norm=False).requires_grad_(False).eval()
    step = step_of(model, helper)
    sum(HatLoss()(step).values()).sum().backward()  # type: ignore[union-attr]
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    x, y = batch()
    x_adv = step.adversarial.x_adv
    z, z_adv, z_help = model(x), model(x_adv), model(2 * x_adv - x)
    value = F.cross_entropy(z, y, reduction="sum")
    value = value + 2.5 * F.kl_div(z_adv.log_softmax(1), z.softmax(1), reduction="sum")
    value = value + 0.5 * F.cross_entropy(z_help, helper(x_adv).argmax(1), reduction="sum")
    value.backward()
    for mine, parameter in zip(found, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(mine, parameter.grad, atol=1e-10)
    assert all(parameter.grad is None for parameter in helper.parameters())


def test_without_helper_it_is_trades() -> None:
    model, helper = mlp(0, norm=False).eval(), mlp(1, norm=False).requires_grad_(False).eval()
    mine, trades = HatLoss(beta=6, gamma=0)(step_of(model, helper)), TradesLoss(beta=6)(step_of(model, helper))
    assert mine.keys() == trades.keys()
    assert all(torch.equal(mine[name], trades[name]) for name in mine)


@pytest.mark.parametrize(
    ("settings", "named"), [({"beta": -1}, "beta"), ({"gamma": -1}, "gamma"), ({"reach": 0}, "reach")]
)
def test_settings_out_of_range_are_named(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        HatLoss(**settings)
