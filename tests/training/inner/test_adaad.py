"""AdaAD's attack, through both networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_tools import make_step, mlp

from robustly.training import AdaadInner


def frozen(network: nn.Module) -> nn.Module:
    return network.requires_grad_(False).eval()


def straight_adaad_attack(
    model: nn.Module, teacher: nn.Module, start: Tensor, x: Tensor, frozen_target: bool
) -> Tensor:
    model.eval()
    x_adv = start
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        target = teacher(x if frozen_target else x_adv)
        F.kl_div(model(x_adv).log_softmax(1), target.softmax(1), reduction="sum").backward()
        moved = x_adv.detach() + 0.04 * x_adv.grad.sign()
        x_adv = torch.maximum(torch.minimum(moved, x + 0.1), x - 0.1).clamp(0, 1)
    return x_adv.detach()


def test_the_attack_of_adaad_moves_through_both_networks() -> None:
    x, y = torch.rand(9, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64), torch.arange(9) % 4
    model, teacher = mlp(0).train(), frozen(mlp(1))
    step = make_step(
        x, y, model, inner=AdaadInner(steps=3, step_size=0.04, start="none"), teachers={"teacher": teacher}
    )
    found = step.adversarial
    assert torch.equal(found.x_adv, straight_adaad_attack(mlp(0), frozen(mlp(1)), x, x, frozen_target=False))
    assert not torch.equal(found.x_adv, straight_adaad_attack(mlp(0), frozen(mlp(1)), x, x, frozen_target=True))
    assert found.backwards.tolist() == [3] * 9
    assert model.training
    assert all(p.grad is None for network in (model, teacher) for p in network.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_the_attack_of_adaad_starts_from_noise_and_stays_inside() -> None:
    x, y = torch.rand(9, 6, dtype=torch.float64), torch.arange(9) % 4
    changes = {"teachers": {"teacher": frozen(mlp(1))}, "inner": AdaadInner()}
    one, two = (make_step(x, y, mlp(0), **changes).adversarial.x_adv for _ in range(2))
    assert torch.equal(one, two)
    assert float((one - x).abs().max()) <= 0.1 + 1e-12
    assert float((one - x).abs().max()) > 0.09
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1


def test_a_step_size_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step_size .*positive"):
        AdaadInner(step_size=-1.0)
