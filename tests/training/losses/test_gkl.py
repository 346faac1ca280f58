"""DKL, IKL and GKL: published values, the gradient identity, the class prior over epochs and over a resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_tools import Given, Stop, double, final, last, make_job, make_step, mlp, run, same

from robustly.data import Splits
from robustly.objectives import kl
from robustly.training import (
    DklLoss,
    GklInner,
    GklLoss,
    Job,
    Method,
    Step,
    TradesLoss,
)
from robustly.training.losses.gkl import ClassPrior, dkl, pairwise_square
from robustly.training.losses.terms import soft_cross_entropy
from robustly.training.method import outer_loss
from robustly.training.parts import EpochEnd, Terms

Z, Z_ADV = (2.0, 0.0, 0.0), (0.0, 1.0, 0.0)
OF_KL_TO_Z = (0.41909753, -0.26280225, -0.15629528)
OF_KL_TO_Z_ADV = (-0.57504448, 0.46960991, 0.10543458)
PRIORS = ((0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.2, 0.2, 0.6))


def random_logits(n: int, classes: int, seed: int) -> Tensor:
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fixture_step(z: Tensor, z_adv: Tensor, y: list[int], prior: Tensor | None = None, **changes: Any) -> Step:
    """A step whose images are its logits."""
    memory = {} if prior is None else {"ClassPrior": {"prior": prior}}
    return make_step(z, torch.tensor(y), nn.Identity(), inner=Given(z_adv), memory=memory, **changes)


def values(terms: Terms) -> dict[str, float]:
    return {name: float(term.detach().mean()) for name, term in terms.items()}


# published values


def test_dkl_has_the_published_values_and_the_gradients_of_kl() -> None:
    m, n = double(Z).requires_grad_(), double(Z_ADV).requires_grad_()
    squares = pairwise_square(m - n, m.detach().softmax(1))
    assert float(squares.detach()) == pytest.approx(0.55049866, abs=1e-8)
    assert float(soft_cross_entropy(m, n).detach()) == pytest.approx(1.44493773, abs=1e-8)
    value = dkl(m, n)
    assert float(value.detach()) == pytest.approx(0.55049866 + 1.44493773, abs=2e-8)
    value.sum().backward()
    assert torch.allclose(m.grad, double(OF_KL_TO_Z), atol=1e-8)
    assert torch.allclose(n.grad, double(OF_KL_TO_Z_ADV), atol=1e-8)


@pytest.mark.parametrize("norm", [False, True])
def test_dkl_training_is_trades_at_equal_weights(norm: bool) -> None:
    x, x_adv = torch.rand(12, 6, dtype=torch.float64), torch.rand(12, 6, dtype=torch.float64)
    y = torch.arange(12) % 4
    gradients = []
    for loss in (DklLoss(3.0, 3.0), TradesLoss(3.0)):
        net = mlp(norm=norm).train()
        step = make_step(x, y, net, inner=Given(x_adv))
        total, _ = outer_loss(Method(inner=Given(x_adv), loss=loss), step)
        gradients.append(torch.autograd.grad(total, list(net.parameters())))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize(("alpha", "beta", "still"), [(2.0, 0.0, "clean"), (0.0, 2.0, "adversarial")])
def test_each_term_of_dkl_moves_one_side_alone(alpha: float, beta: float, still: str) -> None:
    z, z_adv = double(Z).requires_grad_(), double(Z_ADV).requires_grad_()
    terms = DklLoss(alpha, beta)(fixture_step(z, z_adv, [0]))
    (counts,) = terms.keys() - {"clean"}
    assert counts == ("consistency" if alpha else "squares")
    gradients = torch.autograd.grad(terms[counts].sum(), (z, z_adv), allow_unused=True)
    of_clean, of_adversarial = (torch.zeros(1, 3) if gradient is None else gradient for gradient in gradients)
    zero, moving = (of_clean, of_adversarial) if still == "clean" else (of_adversarial, of_clean)
    assert float(zero.abs().max()) == 0
    expected = OF_KL_TO_Z_ADV if still == "clean" else OF_KL_TO_Z
    assert torch.allclose(moving, 2 * double(expected), atol=1e-7)


def test_a_uniform_prior_has_the_published_value() -> None:
    step = fixture_step(double(Z), double(Z_ADV), [0])
    for gamma in (1.0, 0.2, 0.0):  # a power of the uniform prior is uniform
        assert values(GklLoss(beta=1.0, gamma=gamma)(step))["squares"] == pytest.approx(7 / 9, abs=1e-7)


@pytest.mark.parametrize(("gamma", "expected"), [(1.0, 0.4925), (0.5, 0.62160731)])
def test_two_samples_have_the_published_value(gamma: float, expected: float) -> None:
    m, n = double((2, 0, 0), (0, 1, 0)), double((0, 1, 0), (0, 0, 1))
    terms = GklLoss(alpha=0.0, beta=1.0, gamma=gamma)(fixture_step(m, n, [0, 1], double(*PRIORS)))
    assert values(terms)["squares"] == pytest.approx(expected, abs=1e-8)
    assert terms.keys() == {"clean", "squares"}


# algebra


@pytest.mark.parametrize("classes", [2, 3, 100])
def test_dkl_has_the_gradients_of_kl_everywhere(classes: int) -> None:
    m, n = random_logits(7, classes, 1).requires_grad_(), random_logits(7, classes, 2).requires_grad_()
    dkl(m, n).sum().backward()
    a, b = m.detach().clone().requires_grad_(), n.detach().clone().requires_grad_()
    kl(a, b).sum().backward()
    assert torch.allclose(m.grad, a.grad, rtol=1e-9, atol=1e-12)
    assert torch.allclose(n.grad, b.grad, rtol=1e-9, atol=1e-12)


def straight_pairs(d: Tensor, u: Tensor) -> Tensor:
    differences = d[:, :, None] - d[:, None, :]
    return 0.25 * (u[:, :, None] * u[:, None, :] * differences**2).sum((1, 2))


NUMBERS = st.lists(st.floats(-50, 50), min_size=4, max_size=4)
WEIGHTS = st.lists(st.floats(1e-6, 1), min_size=4, max_size=4)


@settings(deadline=None)
@given(NUMBERS, WEIGHTS, st.floats(-1000, 1000))
def test_the_cheap_form_is_the_sum_over_pairs(d: list[float], u: list[float], shift: float) -> None:
    difference, weight = double(tuple(d)), double(tuple(u))
    cheap = pairwise_square(difference, weight)
    assert torch.allclose(cheap, straight_pairs(difference, weight), rtol=1e-9, atol=1e-9)
    assert torch.allclose(pairwise_square(difference + shift, weight), cheap, rtol=1e-6, atol=1e-6)
    assert float(cheap) >= 0


def test_a_constant_difference_costs_nothing() -> None:
    weight = double(*PRIORS)
    assert pairwise_square(torch.zeros(3, 3).double(), weight).tolist() == [0, 0, 0]
    assert torch.allclose(pairwise_square(torch.full((3, 3), 7.0).double(), weight), torch.zeros(3).double())


# loss and gradient against versions written down from the formulas, in double precision


def straight_gkl(z: Tensor, z_adv: Tensor, prior: Tensor, gamma: float, t: float) -> Tensor:
    u = prior**gamma
    joint = u[:, :, None] * u[:, None, :]
    delta = (z[:, :, None] - z[:, None, :]) - (z_adv[:, :, None] - z_adv[:, None, :])
    squares = 0.25 * (joint * delta**2).sum() / joint.sum()
    target = (z / t).softmax(1).detach()
    return 20 * squares - 4 * (target * (z_adv / t).log_softmax(1)).sum(1).mean()


def straight_ikl(z: Tensor, z_adv: Tensor, prior: Tensor, gamma: float, t: float) -> Tensor:
    """The first version: the weights of each example sum to 1, the batch mean is over examples."""
    joint = prior[:, :, None] * prior[:, None, :]
    delta = (z[:, :, None] - z[:, None, :]) - (z_adv[:, :, None] - z_adv[:, None, :])
    squares = 0.25 * (joint * delta**2).sum() / len(z)
    return 20 * squares - 4 * (z.softmax(1).detach() * z_adv.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize(
    ("gamma", "temperature", "straight"),
    [(1.0, 1.0, straight_gkl), (1.0, 1.0, straight_ikl), (0.2, 1.0, straight_gkl), (0.4, 2.5, straight_gkl)],
)
def test_loss_and_gradients_are_those_of_the_formula(
    gamma: float, temperature: float, straight: Callable[..., Tensor]
) -> None:
    x = torch.rand(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(9) % 4
    prior = random_logits(4, 4, 3).softmax(1)
    inner, loss = GklInner(steps=2), GklLoss(gamma=gamma, temperature=temperature)
    model, again = mlp(0), mlp(0)
    memory = {"ClassPrior": {"prior": prior}}
    step = make_step(x, y, model, inner=inner, memory=memory)
    value, terms = outer_loss(Method(inner=inner, loss=loss), step)
    value.backward()
    z, z_adv = again(x), again(step.adversarial.x_adv)
    expected = F.cross_entropy(z, y) + straight(z, z_adv, prior[y], gamma, temperature)
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-11)
    assert list(terms) == ["clean", "consistency", "squares"]
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, rtol=1e-9, atol=1e-13)
    assert not any(tensor.requires_grad for tensor in memory["ClassPrior"].values())


def test_without_squares_the_adversarial_side_learns_as_in_trades_and_the_clean_side_does_not() -> None:
    z, z_adv = double(Z).requires_grad_(), double(Z_ADV).requires_grad_()
    GklLoss(alpha=6.0, beta=0.0)(fixture_step(z, z_adv, [0]))["consistency"].sum().backward()
    trades, z_trades = double(Z_ADV).requires_grad_(), double(Z)
    TradesLoss(6.0)(fixture_step(z_trades, trades, [0]))["consistency"].sum().backward()
    assert torch.allclose(z_adv.grad, trades.grad, atol=1e-12)
    assert z.grad is None


def test_squares_pull_both_sides() -> None:
    z, z_adv = double(Z).requires_grad_(), double(Z_ADV).requires_grad_()
    GklLoss()(fixture_step(z, z_adv, [0]))["squares"].sum().backward()
    assert torch.allclose(z.grad, -z_adv.grad)
    assert float(z.grad.abs().max()) > 0


def test_shards_of_several_processes_make_the_loss_of_the_whole_batch() -> None:
    m, n, prior = random_logits(8, 3, 1), random_logits(8, 3, 2), double(*PRIORS)
    y = [0, 1, 2, 2, 1, 0, 0, 1]
    loss = GklLoss(gamma=0.3)
    whole = values(loss(fixture_step(m, n, y, prior)))["squares"]
    shards, weights = (slice(0, 3), slice(3, 8)), (prior[y] ** 0.3).sum(1) ** 2
    together = 0.0
    for mine, other in (shards, shards[::-1]):
        answers = iter([weights[other].sum(), torch.tensor(float(len(weights[other])))])
        step = fixture_step(m[mine], n[mine], y[mine], prior, global_mean=lambda v, a=answers: (v + next(a)) / 2)
        squares = values(loss(step))["squares"]
        together += squares * len(y[mine]) / len(y)
    assert together == pytest.approx(whole, rel=1e-12)


# the class prior


def end_of(
    step_memory: dict[str, dict[str, Tensor]], global_mean: Callable[[Tensor], Tensor] = lambda v: v
) -> EpochEnd:
    return EpochEnd(
        epoch=0,
        epochs=2,
        model=nn.Identity(),
        images=lambda: iter(()),
        remember=lambda part: step_memory.setdefault(type(part).__name__, {}),
        global_mean=global_mean,
    )


def test_the_prior_is_the_mean_answer_to_each_class_of_the_epoch_before() -> None:
    loss, memory = GklLoss(prior_temperature=4.0), {}
    batches = [(random_logits(5, 3, seed), [0, 1, 2, 0, seed % 2]) for seed in range(4)]
    for z, y in batches:
        step = make_step(z, torch.tensor(y), nn.Identity(), inner=Given(z), memory=memory)
        assert torch.equal(ClassPrior().rows(step, 3), torch.full((3, 3), 1 / 3))  # the first epoch knows nothing
        loss(step)
        loss.after_step(step)
    loss.after_epoch(end_of(memory, lambda v: v / 2))  # the number of processes cancels
    z, y = torch.cat([z for z, _ in batches]), torch.tensor([label for _, y in batches for label in y])
    expected = torch.stack([(z[y == label] / 4).softmax(1).mean(0) for label in range(3)])
    assert torch.allclose(memory["ClassPrior"]["prior"], expected)
    assert list(memory["ClassPrior"]) == ["prior"]
    step = make_step(z, y, nn.Identity(), inner=Given(z), memory=memory)
    assert torch.equal(ClassPrior().rows(step, 3), memory["ClassPrior"]["prior"])


def test_a_class_that_an_epoch_did_not_show_keeps_its_row() -> None:
    prior = double(*PRIORS)
    for before, kept in ((None, torch.full((3,), 1 / 3).double()), (prior, prior[2])):
        step = fixture_step(double(Z, Z_ADV), double(Z, Z_ADV), [0, 1], before)
        memory = {"ClassPrior": step.remember(ClassPrior())}
        GklLoss().after_step(step)
        GklLoss().after_epoch(end_of(memory))
        assert torch.allclose(memory["ClassPrior"]["prior"][2], kept)
        assert bool(memory["ClassPrior"]["prior"].isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("steps", [6, 8])  # of 5 in an epoch
def test_the_prior_survives_a_resume_bit_by_bit(steps: int, little: Splits, tmp_path: Path) -> None:
    method = Method(inner=GklInner(steps=2), loss=GklLoss(gamma=0.2, prior_temperature=1.0))

    def job() -> Job:
        return make_job(little, method, training={"epochs": 3})

    run(job(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(job(), tmp_path / "cut", Stop(steps))
    first = last(tmp_path / "cut")["memory"]["ClassPrior"]
    assert list(first) == ["prior"]
    assert torch.allclose(first["prior"].sum(1), torch.ones(10))
    run(job(), tmp_path / "cut")
    one, two = (last(tmp_path / name)["memory"]["ClassPrior"] for name in ("whole", "cut"))
    assert same(one, two)
    assert not same(one, first)
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))


# what is refused


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: GklLoss(beta=-1.0), "beta must be at least 0, got -1.0"),
        (lambda: GklLoss(alpha=float("nan")), "alpha must be at least 0"),
        (lambda: GklLoss(gamma=-0.1), "gamma must be at least 0"),
        (lambda: GklLoss(prior_temperature=0.0), "prior_temperature must be positive"),
        (lambda: GklLoss(temperature=-1.0), "temperature must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()
