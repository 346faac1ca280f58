"""Weights that are perturbed for a step (AWP) and averaged over epochs (SWA) or steps (EMA)."""

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
    EpochAverage,
    ExponentialAverage,
    GuideLabels,
    Method,
    MethodError,
    Moment,
    Observer,
    OptimizerConfig,
    PGDInner,
    Step,
    TradesLoss,
    WeightAverage,
    WeightPerturbation,
    train,
)
from robustly.training.method import outer_loss
from robustly.training.parameters import EpochEnd
from robustly.training.swa import estimate_statistics

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
    method.tell("after_backward", step)
    optimizer.step()
    method.tell("after_step", step)
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


def test_the_second_look_leaves_running_statistics_alone() -> None:
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
    """Autocast keeps half-precision copies of weights: those of the second look are old."""
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
    with pytest.raises(MethodError, match="proxy 'trades' asks for adversarial examples"):
        Method(parameters=(WeightPerturbation(proxy="trades"),))
    with pytest.raises(MethodError, match="warm_up is 2 epochs and the run has 2: nothing would be perturbed"):
        make_job(little, Method(parameters=(WeightPerturbation(warm_up=2),)))


class Epochs(Observer):
    """Keeps the weights after every epoch."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.seen = model, list[dict[str, Tensor]]()

    def epoch_finished(self, row: object, is_best: bool) -> None:
        self.seen.append({name: value.clone() for name, value in self.model.state_dict().items()})


def test_swa_is_the_mean_of_the_late_epochs_with_statistics_of_its_own(little: Splits, tmp_path: Path) -> None:
    job = make_job(
        little,
        Method(parameters=(WeightAverage(start=1),)),
        NormNet(),
        training={"epochs": 4, "select_by": "clean"},
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.2),
    )
    weights = Epochs(job.model)
    run(job, tmp_path, weights)
    memory = dict(last(tmp_path)["memory"]["parameters.WeightAverage"])
    assert int(memory.pop("#epochs")) == 3
    trained = {name for name, _ in job.model.named_parameters()}
    network = NormNet()
    network.load_state_dict(memory)
    for name in trained:
        mean = torch.stack([seen[name] for seen in weights.seen[1:]]).mean(0)
        assert torch.allclose(memory[name], mean, atol=1e-6), name
    x = little.train.floats(torch.arange(len(little.train)))
    seen = network.conv(x)
    assert torch.allclose(memory["norm.running_mean"], seen.mean((0, 2, 3)), atol=1e-5)
    assert not torch.allclose(memory["norm.running_mean"], weights.seen[-1]["norm.running_mean"], atol=1e-3)
    assert final(tmp_path).keys() == weights.seen[0].keys()


def end_of(
    model: nn.Module, memory: dict[str, dict[str, Tensor]], batches: list[Tensor], **changes: Any
) -> EpochEnd:
    settings: dict[str, Any] = {
        "epoch": 5,
        "epochs": 9,
        "model": model,
        "images": lambda: iter(batches),
        "remember": lambda part: memory.setdefault("swa", {}),
        "global_mean": lambda value: value,
    }
    return EpochEnd(**(settings | changes))


def test_swa_of_identical_checkpoints_is_the_checkpoint() -> None:
    torch.manual_seed(0)
    for model in (NormNet(), mlp(norm=False)):
        memory: dict[str, dict[str, Tensor]] = {}
        batches = [torch.rand(4, 1, 16, 16), torch.rand(3, 1, 16, 16)]
        part = WeightAverage(start=0)
        for _ in range(7):
            part.after_epoch(end_of(model, memory, batches))
        average = part.evaluation_state(memory["swa"])
        assert average is not None
        for name, value in model.named_parameters():
            assert torch.equal(average[name], value), name
        assert average.keys() == model.state_dict().keys()


def test_statistics_are_weighted_by_batch_and_by_process() -> None:
    torch.manual_seed(0)
    model, images = NormNet(), torch.rand(12, 1, 16, 16)
    estimate_statistics(model.train(), end_of(model, {}, [images[:5], images[5:7], images[7:7], images[7:]]))
    assert model.training
    assert model.norm.momentum == 0.1
    seen = model.conv(images)
    assert torch.allclose(model.norm.running_mean, seen.mean((0, 2, 3)), atol=1e-6)  # type: ignore[arg-type]
    variances = [model.conv(part).var((0, 2, 3)) * len(part) for part in (images[:5], images[5:7], images[7:])]
    assert torch.allclose(model.norm.running_var, sum(variances) / 12, atol=1e-6)  # type: ignore[arg-type, operator]
    one, two = NormNet(), NormNet()
    estimate_statistics(two, end_of(two, {}, [images[8:]]))
    theirs = iter([two.norm.running_mean * 4, torch.tensor(4.0), two.norm.running_var * 4, torch.tensor(4.0)])  # type: ignore[operator]
    estimate_statistics(one, end_of(one, {}, [images[:8]], global_mean=lambda value: (value + next(theirs)) / 2))
    assert torch.allclose(one.norm.running_mean, seen.mean((0, 2, 3)), atol=1e-6)  # type: ignore[arg-type]


def test_swa_goes_on_where_it_stopped_and_leaves_training_alone(little: Splits, tmp_path: Path) -> None:
    def job(epochs: int, *parts: WeightAverage) -> Any:
        return make_job(little, Method(parameters=parts), NormNet(), training={"epochs": epochs})

    swa = WeightAverage(start=0)
    run(job(3, swa), tmp_path / "whole")
    run(job(1, swa), tmp_path / "cut")
    run(job(3, swa), tmp_path / "cut")
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))
    run(job(3), tmp_path / "plain")
    whole = last(tmp_path / "whole")
    assert same(whole["networks"]["model"], last(tmp_path / "plain")["networks"]["model"])
    memory = last(tmp_path / "cut")["memory"]["parameters.WeightAverage"]
    assert same(whole["memory"]["parameters.WeightAverage"], memory)


def test_swa_settings_that_make_no_sense_are_refused(little: Splits) -> None:
    with pytest.raises(ValueError, match="start must be at least 0"):
        WeightAverage(start=-1)
    with pytest.raises(MethodError, match="already has an average to release, ExponentialAverage"):
        Method(parameters=(WeightAverage(), ExponentialAverage()))
    with pytest.raises(MethodError, match="already has an average to release, EpochAverage"):
        Method(parameters=(WeightAverage(), EpochAverage()))
    with pytest.raises(ValueError, match="decay must lie in"):
        EpochAverage(1.0)
    with pytest.raises(MethodError, match="start is 2 epochs and the run has 2: nothing would be averaged"):
        make_job(little, Method(parameters=(WeightAverage(start=2),)))


def test_the_moving_average_over_epochs_by_hand_and_over_a_resume(little: Splits, tmp_path: Path) -> None:
    def job(epochs: int, *parts: EpochAverage) -> Any:
        return make_job(little, Method(parameters=parts), NormNet(), training={"epochs": epochs})

    part = EpochAverage(decay=0.75)
    states = []
    for epochs in (1, 2, 3):
        run(job(epochs), tmp_path / f"plain{epochs}")
        states.append(last(tmp_path / f"plain{epochs}")["networks"]["model"])
    run(job(1, part), tmp_path / "cut")
    run(job(3, part), tmp_path / "cut")
    run(job(3, part), tmp_path / "whole")
    memory = last(tmp_path / "cut")["memory"]["parameters.EpochAverage"]
    assert same(memory, last(tmp_path / "whole")["memory"]["parameters.EpochAverage"])
    for name, value in memory.items():
        first, second, third = (state[name] for state in states)
        expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third if value.is_floating_point() else third
        assert torch.allclose(value, expected, atol=1e-6), name


def test_an_ema_may_average_its_statistics(little: Splits, tmp_path: Path) -> None:
    part = ExponentialAverage(decay=0.5, warm_up=0.0, buffers="average")
    job = make_job(little, Method(parameters=(part,)), NormNet(), training={"epochs": 1})

    class Steps(Observer):
        seen: list[dict[str, Tensor]] = []  # noqa: RUF012

        def stepped(self, moment: Moment, loss: float, images: int) -> None:
            self.seen.append({name: value.clone() for name, value in job.model.state_dict().items()})

    run(job, tmp_path, Steps())
    average = Steps.seen[0]["norm.running_mean"]
    for count, now in enumerate(Steps.seen[1:], 1):
        d = min(0.5, (1 + count) / (10 + count))
        average = d * average + (1 - d) * now["norm.running_mean"]
    memory = last(tmp_path)["memory"]["parameters.ExponentialAverage"]
    assert torch.allclose(memory["norm.running_mean"], average, atol=1e-6)
    assert int(memory["norm.num_batches_tracked"]) == len(Steps.seen)


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x))
        return out


def test_tied_weights_are_averaged_under_both_names() -> None:
    net, part = Tied(), ExponentialAverage(decay=0.5, warm_up=0.0)
    step = make_step(torch.rand(3, 2), torch.zeros(3, dtype=torch.int64), net, moment=Moment(0, 0, 1, 1))
    for value in (1.0, 2.0, 4.0):
        with torch.no_grad():
            net.a.weight.fill_(value)
        part.after_step(step)
    average = part.evaluation_state(step.remember(part))
    assert average is not None
    assert torch.equal(average["a.weight"], average["b.weight"])
    assert float(average["a.weight"][0, 0]) < 4
