"""The attack between those of PGD-AT and TRADES: its ends, its gradient, its shares, what it refuses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from training_tools import make_step, mlp

from robustly.testing.training import check_part
from robustly.training import MixedInner, Moment, PGDInner, Step

EPSILON = 0.1


def data(count: int = 9) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, torch.arange(count) % 4


def step_with(inner: MixedInner | PGDInner, count: int = 9) -> Step:
    return make_step(*data(count), mlp(0), inner=inner)


@pytest.mark.parametrize(("share", "objective"), [(0.0, "cross_entropy"), (1.0, "kl")])
@pytest.mark.parametrize("by", ["value", "draw"])
def test_at_both_ends_it_is_the_attack_of_pgd_at_and_of_trades(share: float, objective: str, by: str) -> None:
    mixed = MixedInner(kl=share, by=by, steps=5, start="gaussian")  # type: ignore[arg-type]
    plain = PGDInner(objective=objective, steps=5, start="gaussian")  # type: ignore[arg-type]
    one, two = step_with(mixed).adversarial, step_with(plain).adversarial
    assert torch.equal(one.x_adv, two.x_adv)
    assert torch.equal(one.backwards, two.backwards)


def test_it_climbs_the_weighted_sum_of_both_objectives() -> None:
    x, y = data()
    inner = MixedInner(kl=0.3, steps=4, step_size=0.03)
    x_adv = step_with(PGDInner(steps=0)).adversarial.x_adv  # the same random start
    model = mlp(0).eval()
    log_p = model(x).detach().log_softmax(1)
    for _ in range(4):
        x_adv = x_adv.detach().requires_grad_()
        log_q = model(x_adv).log_softmax(1)
        kl = (log_p.exp() * (log_p - log_q)).sum(1)
        value = 0.7 * -log_q[torch.arange(9), y] + 0.3 * kl
        moved = x_adv.detach() + 0.03 * torch.autograd.grad(value.sum(), x_adv)[0].sign()
        x_adv = torch.maximum(torch.minimum(moved, x + EPSILON), x - EPSILON).clamp(0, 1)
    assert torch.allclose(step_with(inner).adversarial.x_adv, x_adv, atol=1e-12)


def test_each_example_draws_its_attack_and_keeps_it_in_any_batch() -> None:
    inner = MixedInner(kl=0.4, by="draw", steps=3, start="gaussian")
    weights = inner.weights(step_with(inner, 400), torch.zeros(400, 4))
    assert set(weights.tolist()) == {0.0, 1.0}
    assert weights.mean() == pytest.approx(0.4, abs=0.1)  # four standard deviations
    assert torch.equal(inner.weights(step_with(inner, 100), torch.zeros(100, 4)), weights[:100])
    by_kl, by_ce = (PGDInner(objective=name, steps=3, start="gaussian") for name in ("kl", "cross_entropy"))  # type: ignore[arg-type]
    found, kl, ce = (step_with(one, 40).adversarial.x_adv for one in (inner, by_kl, by_ce))
    assert torch.equal(found, torch.where(weights[:40, None] == 1, kl, ce))


@pytest.mark.parametrize("where", ["wrong", "right"])
def test_kl_can_be_for_examples_that_the_model_gets_wrong_or_right(where: str) -> None:
    x, y = data(40)
    right = mlp(0).eval()(x).argmax(1) == y
    assert 0 < int(right.sum()) < 40
    inner = MixedInner(kl=1.0, kl_on=where, steps=3, start="gaussian")  # type: ignore[arg-type]
    by_kl, by_ce = (PGDInner(objective=name, steps=3, start="gaussian") for name in ("kl", "cross_entropy"))  # type: ignore[arg-type]
    found, kl, ce = (step_with(one, 40).adversarial.x_adv for one in (inner, by_kl, by_ce))
    assert torch.equal(found, torch.where((right == (where == "right"))[:, None], kl, ce))


def test_its_share_moves_linearly_over_the_run() -> None:
    inner = MixedInner(kl=1.0, kl_end=0.2)
    shares = [inner.kl_at(Moment(epoch, 5, 10, 4)) for epoch in range(4)]
    assert shares == pytest.approx([0.9, 0.7, 0.5, 0.3])
    assert MixedInner(kl=0.3).kl_at(Moment(3, 5, 10, 4)) == 0.3


def test_it_is_a_training_part() -> None:
    check_part(MixedInner(kl=0.5, by="draw", steps=2))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: MixedInner(kl=1.5), r"kl must lie in \[0, 1\]"),
        (lambda: MixedInner(kl_end=-0.1), r"kl_end must lie in \[0, 1\]"),
        (lambda: MixedInner(start="none"), "zero gradient at the clean image"),
        (lambda: MixedInner(kl=0.0, kl_end=0.5, start="none"), "zero gradient at the clean image"),
        (lambda: MixedInner(steps=-1), "steps must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()
    MixedInner(kl=0.0, start="none")
