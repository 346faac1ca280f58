"""Adversarial weight perturbation: published values, whole steps by hand, what stays untouched."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_tools import NormNet, final, last, make_job, make_step, mlp, run, same

from robustly.data import Splits
from robustly.runtime import Runtime, RuntimeConfig
from robustly.training import (
    AdversarialLoss,
    DynatLoss,
    ExponentialAverage,
    GuideLabels,
    Method,
    MethodError,
    Moment,
    PGDInner,
    Step,
    TradesLoss,
    WeightPerturbation,
    train,
)
from robustly.training.method import outer_loss

INNER = PGDInner(steps=2, step_size=0.05)


def batch(count: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(4, (count,), generator=generator)


class Fixture(nn.Module):
    """One matrix whose gradient is the one that the specification gives."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def perturbed(part: WeightPerturbation, step: Step, loss: Callable[[Step], Tensor]) -> dict[str, Tensor]:
    part.before_outer(step, loss)
    return {name: p.detach().clone() for name, p in step.model.named_parameters()}


def test_awp_has_the_published_value() -> None:
    net = Fixture()
    step = make_step(torch.rand(2, 2), torch.zeros(2, dtype=torch.int64), net)
    found = perturbed(WeightPerturbation(gamma=0.005), step, lambda other: 7 * other.model.w[0, 1])  # type: ignore[operator, index]
    v = found["w"] - torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(v, torch.tensor([[0, 0.025], [0, 0]], dtype=torch.float64), atol=1e-12)
    WeightPerturbation(gamma=0.005).after_backward(step)
    WeightPerturbation(gamma=0.005).after_step(step)
    assert torch.equal(net.w.detach(), torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)), "bit by bit"
    assert step.remember(WeightPerturbation()) == {}


def test_every_matrix_moves_by_gamma_and_nothing_else() -> None:
    x, y = batch()
    net = mlp(seed=2).train()
    net[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    net.append(nn.Linear(3, 3).double())  # a layer that the loss does not know
    net.forward = lambda x: nn.Sequential.forward(net[:-1], x)  # type: ignore[method-assign, index]
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    part = WeightPerturbation(gamma=0.02, proxy="adversarial")
    step = make_step(x, y, net, inner=INNER)
    after = perturbed(part, step, lambda other: other.clean_logits.sum())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"3.weight"}
    v = after["3.weight"] - before["3.weight"]
    assert float(v.norm() / before["3.weight"].norm()) == pytest.approx(0.02, rel=1e-9)
    assert all(bool(value.isfinite().all()) for value in after.values())
    part.after_backward(step)
    part.after_step(step)
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


def test_a_gradient_of_zero_perturbs_nothing() -> None:
    x, y = batch()
    net = mlp(norm=False)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    step = make_step(x, y, net)
    after = perturbed(WeightPerturbation(), step, lambda other: 0 * other.clean_logits.sum())
    assert all(torch.equal(before[name], after[name]) for name in before)


def losses(kind: str, net: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    if kind == "adversarial":
        return F.cross_entropy(net(x_adv), y)
    z, z_adv = net(x), net(x_adv)
    p, q = z.log_softmax(1), z_adv.log_softmax(1)
    return F.cross_entropy(z, y) + 6 * (p.exp() * (p - q)).sum(1).mean()


def awp_by_hand(
    net: nn.Module,
    velocity: dict[str, Tensor],
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    *,
    proxy: str,
    loss: str,
    gamma: float,
    rate: float,
    decay: float,
) -> None:
    """One step of SGD with momentum and weight decay, as AWP's paper has it, on a network in train mode."""
    copied = copy.deepcopy(net)
    losses(proxy, copied, x, x_adv, y).backward()
    old = {name: p.detach().clone() for name, p in net.named_parameters()}
    v = {}
    for name, p in copied.named_parameters():
        assert p.grad is not None
        v[name] = gamma * p.norm() * p.grad / p.grad.norm() if p.ndim > 1 else torch.zeros_like(p)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.add_(v[name].detach())
    net.zero_grad()
    losses(loss, net, x, x_adv, y).backward()
    with torch.no_grad():
        for name, p in net.named_parameters():
            assert p.grad is not None
            velocity[name] = 0.9 * velocity.get(name, torch.zeros_like(p)) + p.grad + decay * (old[name] + v[name])
            p.copy_(old[name] - rate * velocity[name])


def awp_step(
    method: Method,
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer | None = None,
    **changes: Any,
) -> Step:
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.3, weight_decay=0.01)
    step = make_step(x, y, net, inner=method.inner, slot_of=method.slot_of, **changes)
    loss, _ = outer_loss(method, step)
    optimizer.zero_grad()
    loss.backward()
    method.after_backward(step)
    optimizer.step()
    method.after_step(step)
    return step


@pytest.mark.parametrize(
    ("loss", "proxy", "as_loss"),
    [
        ("adversarial", "own", "adversarial"),
        ("adversarial", "adversarial", "adversarial"),
        ("trades", "own", "trades"),
        ("trades", "trades", "trades"),
        ("adversarial", "trades", "trades"),
    ],
)
def test_whole_awp_steps_by_hand(loss: str, proxy: str, as_loss: str) -> None:
    x, y = batch()
    one, other = mlp(seed=2).train(), mlp(seed=2).train()
    part = WeightPerturbation(gamma=0.05, proxy=proxy)  # type: ignore[arg-type]
    method = Method(
        inner=INNER, loss=AdversarialLoss() if loss == "adversarial" else TradesLoss(6.0), parameters=(part,)
    )
    optimizer = torch.optim.SGD(one.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    velocity: dict[str, Tensor] = {}
    settings = {"proxy": as_loss, "loss": loss, "gamma": 0.05, "rate": 0.3, "decay": 0.01}
    for _ in range(3):
        step = awp_step(method, one, x, y, optimizer)
        awp_by_hand(other, velocity, x, step.adversarial.x_adv, y, **settings)  # type: ignore[arg-type]
    expected = other.state_dict()
    for name, value in one.state_dict().items():  # running statistics and their count included
        assert torch.allclose(value, expected[name], atol=1e-12), name


def test_the_second_evaluation_leaves_running_statistics_alone() -> None:
    """One AWP step counts as many batches, with the statistics that the perturbed network saw, as one without."""
    x, y = batch()
    for loss, forwards in ((AdversarialLoss(), 1), (TradesLoss(), 2)):
        for proxy in ("own", "adversarial", "trades"):
            net = mlp(seed=2).train()
            part = WeightPerturbation(gamma=0.05, proxy=proxy)  # type: ignore[arg-type]
            awp_step(Method(inner=INNER, loss=loss, parameters=(part,)), net, x, y)
            assert int(net[1].num_batches_tracked) == forwards  # type: ignore[union-attr, arg-type]


def test_warm_up_and_gamma_zero_change_nothing() -> None:
    x, y = batch()
    plain = mlp(seed=2).train()
    awp_step(Method(inner=INNER, loss=TradesLoss()), plain, x, y)
    for part, moment in (
        (WeightPerturbation(gamma=0.0), Moment(5, 0, 1, 10)),
        (WeightPerturbation(warm_up=2), Moment(1, 3, 4, 10)),
    ):
        net = mlp(seed=2).train()
        awp_step(Method(inner=INNER, loss=TradesLoss(), parameters=(part,)), net, x, y, moment=moment)
        assert same(net.state_dict(), plain.state_dict())
    late = mlp(seed=2).train()
    part = WeightPerturbation(warm_up=2)
    awp_step(Method(inner=INNER, loss=TradesLoss(), parameters=(part,)), late, x, y, moment=Moment(2, 0, 4, 10))
    assert not same(late.state_dict(), plain.state_dict())


def test_awp_of_size_zero_trains_as_the_method_itself(little: Splits, tmp_path: Path) -> None:
    for name, parts in (("awp", (WeightPerturbation(gamma=0.0),)), ("plain", ())):
        method = Method(inner=PGDInner(steps=2), loss=TradesLoss(), parameters=parts)
        run(make_job(little, method, NormNet(), training={"epochs": 1}), tmp_path / name)
    assert same(last(tmp_path / "awp")["networks"]["model"], last(tmp_path / "plain")["networks"]["model"])


def test_the_guide_is_not_perturbed_and_the_proxy_takes_the_datas_labels() -> None:
    x, y = batch()
    net, guide = mlp(seed=2).train(), mlp(seed=5).train()
    method = Method(
        labels=GuideLabels(),
        inner=INNER,
        loss=DynatLoss(),
        parameters=(WeightPerturbation(gamma=0.05, proxy="adversarial"),),
    )
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    step = make_step(x, y, net, guide=guide, label_source=method.labels, inner=INNER, slot_of=method.slot_of)
    assert not torch.equal(step.labels.hard, y)
    outer_loss(method, step)
    assert all(torch.equal(before[name], p) for name, p in guide.named_parameters())
    original = mlp(seed=2).train()
    weight = original[3].weight  # type: ignore[union-attr]
    (gradient,) = torch.autograd.grad(F.cross_entropy(original(step.adversarial.x_adv), y), weight)  # type: ignore[arg-type]
    expected = weight + 0.05 * weight.norm() * gradient / gradient.norm()  # type: ignore[union-attr, operator]
    assert torch.allclose(net[3].weight, expected, atol=1e-12)  # type: ignore[union-attr, arg-type]


def test_the_gradient_is_the_mean_of_all_processes() -> None:
    """Two processes with shares of 15 and 5 images perturb as one with 20."""
    x, y = batch()
    part = WeightPerturbation(gamma=0.05)
    gradients = []
    for rows in (slice(0, 15), slice(15, 20)):
        net = mlp(seed=2, norm=False)
        loss = F.cross_entropy(net(x[rows]), y[rows])
        gradients.append(torch.autograd.grad(loss, [p for p in net.parameters() if p.ndim > 1]))
    whole = mlp(seed=2, norm=False)
    expected = perturbed(part, make_step(x, y, whole), lambda step: F.cross_entropy(step.clean_logits, step.y))
    other = iter(zip(*gradients, strict=True))

    def both(value: Tensor) -> Tensor:
        return (value + 5) / 2 if value.ndim == 0 else (value + 5 * next(other)[1]) / 2

    step = make_step(x[:15], y[:15], mlp(seed=2, norm=False), global_mean=both)
    found = perturbed(part, step, lambda step: F.cross_entropy(step.clean_logits, step.y))
    assert all(torch.allclose(found[name], expected[name], atol=1e-12) for name in expected)


def test_the_outer_pass_sees_the_perturbation_in_half_precision() -> None:
    """Autocast caches half-precision copies of weights, which are outdated after the perturbation."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    x, y = torch.rand(20, 6), torch.randint(4, (20,))
    losses = {}
    for gamma in (0.0, 0.5):
        method = Method(inner=INNER, loss=AdversarialLoss(), parameters=(WeightPerturbation(gamma=gamma),))
        with torch.autocast("cpu", torch.bfloat16):
            step = make_step(x, y, copy.deepcopy(net), inner=INNER, slot_of=method.slot_of)
            losses[gamma] = float(outer_loss(method, step)[0].detach())
            assert step.model[0].weight.dtype == torch.float32  # type: ignore[index, union-attr]
            fresh = step.model(step.adversarial.x_adv).float()
        assert float(F.cross_entropy(fresh.detach(), y)) == pytest.approx(losses[gamma], abs=1e-6)
    assert losses[0.5] > losses[0.0] + 0.05


def test_awp_trains_in_mixed_precision(little: Splits, tmp_path: Path) -> None:
    method = Method(inner=PGDInner(steps=1), loss=AdversarialLoss(), parameters=(WeightPerturbation(gamma=0.01),))
    job = make_job(little, method, NormNet(), training={"epochs": 1})
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    tmp_path.mkdir(exist_ok=True)
    train(job, Runtime(RuntimeConfig(device="cpu", precision="bf16-mixed")), tmp_path, config_digest="test")
    state = last(tmp_path)
    assert state["memory"].get("parameters.WeightPerturbation") == {}
    after = state["networks"]["model"]
    assert all(value.dtype == before[name].dtype for name, value in after.items())
    assert not torch.equal(after["conv.weight"], before["conv.weight"])


def test_an_average_sees_weights_without_their_perturbation(little: Splits, tmp_path: Path) -> None:
    """Whichever order they are named in."""
    awp, ema = WeightPerturbation(gamma=0.3), ExponentialAverage(decay=0.0, warm_up=0.0)
    for name, parts in (("one", (awp, ema)), ("other", (ema, awp))):
        method = Method(inner=PGDInner(steps=1), loss=AdversarialLoss(), parameters=parts)
        run(make_job(little, method, NormNet(), training={"epochs": 1}), tmp_path / name)
        state = last(tmp_path / name)
        assert same(state["memory"]["parameters.ExponentialAverage"], state["networks"]["model"])
    assert same(final(tmp_path / "one"), final(tmp_path / "other"))


def test_awp_settings_that_make_no_sense_are_refused(little: Splits) -> None:
    for name in ("gamma", "warm_up", "beta"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
            WeightPerturbation(**{name: -1.0})
    with pytest.raises(MethodError, match="proxy 'trades' needs adversarial examples"):
        Method(parameters=(WeightPerturbation(proxy="trades"),))
    with pytest.raises(MethodError, match=r"warm_up is 2\b.* run has 2\b"):
        make_job(little, Method(parameters=(WeightPerturbation(warm_up=2),)))
