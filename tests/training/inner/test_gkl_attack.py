"""The attack of GKL: both terms of its objective, its relation to TRADES, what it refuses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from training_tools import make_step, mlp

from robustly.training import GklInner, GklLoss, Method, MethodError, PGDInner, TradesLoss


def random_logits(n: int, classes: int, seed: int) -> Tensor:
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def straight_pairs(d: Tensor, u: Tensor) -> Tensor:
    differences = d[:, :, None] - d[:, None, :]
    return 0.25 * (u[:, :, None] * u[:, None, :] * differences**2).sum((1, 2))


def test_without_squares_the_attack_is_that_of_trades() -> None:
    x, y = torch.rand(9, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64), torch.arange(9) % 4
    attacks = (GklInner(beta=0.0, steps=5), PGDInner(objective="kl", start="gaussian", steps=5))
    one, two = (make_step(x, y, mlp(0), inner=inner).adversarial for inner in attacks)
    assert torch.equal(one.x_adv, two.x_adv)
    assert torch.equal(one.backwards, two.backwards)


@pytest.mark.parametrize("prior", [None, random_logits(4, 4, 3).softmax(1)])
def test_the_attack_climbs_both_terms(prior: Tensor | None) -> None:
    x, y = torch.rand(9, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64), torch.arange(9) % 4
    memory = {} if prior is None else {"ClassPrior": {"prior": prior}}
    step = make_step(x, y, mlp(0), inner=GklInner(steps=4, step_size=0.03, start="random"), memory=memory)
    start = make_step(x, y, mlp(0), inner=PGDInner(steps=0, start="random")).adversarial.x_adv
    u = torch.full((9, 4), 0.25).double() if prior is None else prior[y]
    model = mlp(0).eval()
    m, x_adv = model(x).detach(), start
    for _ in range(4):
        x_adv = x_adv.detach().requires_grad_()
        n = model(x_adv)
        value = straight_pairs(m - n, u).sum() - (m.softmax(1) * n.log_softmax(1)).sum()
        moved = x_adv.detach() + 0.03 * torch.autograd.grad(value, x_adv)[0].sign()
        x_adv = torch.maximum(torch.minimum(moved, x + 0.1), x - 0.1).clamp(0, 1)
    assert torch.allclose(step.adversarial.x_adv, x_adv, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: GklInner(beta=-1.0), "at least 0 and not both 0"),
        (lambda: GklInner(alpha=0.0, beta=0.0), "not both 0"),
        (lambda: GklInner(start="none"), "zero at the clean image"),
        (lambda: GklInner(steps=-1), "steps must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()


def test_the_attack_needs_the_prior_of_the_loss_only_for_its_squares() -> None:
    with pytest.raises(MethodError, match=r"inner: .*class prior.* gkl"):
        Method(inner=GklInner(), loss=TradesLoss())
    Method(inner=GklInner(beta=0.0), loss=TradesLoss())
    Method(inner=GklInner(), loss=GklLoss())
