"""Learning rates, weight decay, clipping."""

from pathlib import Path

import pytest
import torch
from torch import nn
from training_tools import NormNet, Splits, make_job, run, small_net

from robustly.cli.recipes import read_recipe
from robustly.experiments.configuration import RunConfig, build_config
from robustly.training import Method, Moment, Observer, OptimizerConfig, ScheduleConfig
from robustly.training.engine.optimisation import build_optimizer, rate_factor


def rate(config: RunConfig, time: float) -> float:
    return config.optimizer.learning_rate * rate_factor(config.schedule, time, config.training.epochs)


@pytest.mark.parametrize(
    ("recipe", "times"),
    [
        ("cifar10/pgd_at", {0: 0.1, 99.99: 0.1, 100: 0.01, 149.99: 0.01, 150: 0.001, 199.99: 0.001}),
        (
            "cifar10/dynat",
            {0: 0.02, 0.999: 0.02, 1: 0.1, 74.99: 0.1, 75: 0.01, 89.99: 0.01, 90: 0.001, 99.9: 0.001},
        ),
        ("cifar10/dynat_inner", {0.5: 0.02, 1: 0.1, 75: 0.01, 90: 0.001}),
        ("cifar10/trades", {0: 0.1, 73.99: 0.1, 74: 0.01}),
        ("cifar10/standard", {0: 0.1, 100: 0.05, 200: 0.0}),
    ],
)
def test_recipes_have_the_published_learning_rates(recipe: str, times: dict[float, float]) -> None:
    config = build_config(read_recipe(recipe))
    for time, expected in times.items():
        assert rate(config, time) == pytest.approx(expected, abs=1e-12), time


def test_one_cycle_is_a_triangle() -> None:
    triangle = ScheduleConfig(name="one_cycle", peak=0.5)
    assert [rate_factor(triangle, time, 30) for time in (0, 7.5, 15, 22.5, 30)] == [0, 0.5, 1, 0.5, 0]
    early = ScheduleConfig(name="one_cycle", peak=0.4)
    assert [rate_factor(early, time, 10) for time in (0, 2, 4, 7, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize(("epochs", "peak"), [(400, 0.025), (30, 0.3)])
def test_one_cycle_by_epoch_is_pytorchs(epochs: int, peak: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs, pct_start=peak)
    ours = ScheduleConfig(name="one_cycle_cosine", peak=peak)
    for epoch in range(epochs):
        for time in (epoch, epoch + 0.99):
            expected = theirs.get_last_lr()[0]
            assert 0.2 * rate_factor(ours, time, epochs) == pytest.approx(expected, rel=1e-9), epoch
        optimizer.step()
        if epoch + 1 < epochs:
            theirs.step()
    assert rate_factor(ours, 1.0, 1) > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"boundaries": (50,), "factors": (1.0, 0.1)},
        {"name": "one_cycle", "floor": 0.5},
        {"name": "cosine", "boundaries": (1,), "factors": (1.0, 0.1)},
        {"name": "cosine", "peak": 0.3},
    ],
)
def test_settings_that_a_schedule_does_not_use_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no effect"):
        ScheduleConfig(**settings)  # type: ignore[arg-type]


def test_cosine_ends_at_its_floor_and_warm_up_multiplies() -> None:
    cosine = ScheduleConfig(name="cosine", floor=0.1)
    assert [rate_factor(cosine, time, 10) for time in (0, 5, 10)] == pytest.approx([1, 0.55, 0.1])
    warm = ScheduleConfig(name="piecewise", boundaries=(2,), factors=(1.0, 0.1), warm_up=4)
    assert [rate_factor(warm, time, 10) for time in (0, 1, 2, 3, 4, 9)] == pytest.approx(
        [0, 0.25, 0.05, 0.075, 0.1, 0.1]
    )
    assert rate_factor(ScheduleConfig(), 3, 10) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "piecewise", "boundaries": (1,), "factors": (1.0,)},
        {"name": "piecewise", "boundaries": (2, 2), "factors": (1.0, 0.1, 0.01)},
        {"peak": 1.0},
        {"floor": 1.5},
        {"warm_up": -1},
    ],
)
def test_schedules_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        ScheduleConfig(**settings)  # type: ignore[arg-type]


class Rates(Observer):
    """Learning rate of plain gradient steps: size of the steps over the gradients."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.before, self.rates = model, [p.detach().clone() for p in model.parameters()], list[float]()

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        now = [p.detach().clone() for p in self.model.parameters()]
        moved = torch.cat([(a - b).flatten() for a, b in zip(self.before, now, strict=True)])
        gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()])
        self.rates.append(float((moved * gradient).sum() / gradient.square().sum()))
        self.before = now


def test_every_step_gets_the_rate_of_its_middle(little: Splits, tmp_path: Path) -> None:
    schedule = ScheduleConfig(name="one_cycle", peak=0.5)
    plain = OptimizerConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    job = make_job(little, Method(), NormNet(), optimizer=plain, schedule=schedule)
    rates = Rates(job.model)
    outcome = run(job, tmp_path, rates)
    middles = [(step + 0.5) / 5 for step in range(10)]
    assert rates.rates == pytest.approx([0.1 * min(t, 2 - t) for t in middles], rel=1e-3)
    assert [row["learning_rate"] for row in outcome.rows] == pytest.approx([0.09, 0.01])


def test_a_first_epoch_of_its_own_rate_is_a_whole_epoch(little: Splits, tmp_path: Path) -> None:
    schedule = ScheduleConfig(name="piecewise", boundaries=(1,), factors=(0.2, 1.0))
    plain = OptimizerConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    job = make_job(little, Method(), NormNet(), optimizer=plain, schedule=schedule)
    rates = Rates(job.model)
    run(job, tmp_path, rates)
    assert rates.rates == pytest.approx([0.02] * 5 + [0.1] * 5, rel=1e-3)


def test_weight_decay_can_leave_vectors_out() -> None:
    model, guide = NormNet(0), NormNet(1)
    for decay_norms, expected in ((True, 0.1), (False, 0.0)):
        config = OptimizerConfig(weight_decay=0.1, decay_norms=decay_norms)
        optimizer = build_optimizer(config, [model, guide])
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        for network in (model, guide):
            for name, parameter in network.named_parameters():
                assert decay.pop(id(parameter)) == (0.1 if parameter.ndim > 1 else expected), name
        assert not decay


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_acts_on_the_weights_and_not_on_spared_vectors(name: str) -> None:
    model = nn.Linear(3, 2)
    config = OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5, decay_norms=False)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = build_optimizer(config, [model])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(model.weight, before[0] * 0.95)
    assert torch.equal(model.bias, before[1])


def test_frozen_parameters_stay(little: Splits, tmp_path: Path) -> None:
    model = small_net()
    model.feature_extractor.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(make_job(little, Method(), model, training={"epochs": 1}), tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("feature_extractor"), name
    assert all(p.requires_grad != name.startswith("feature_extractor") for name, p in model.named_parameters())


class Norms(Observer):
    def __init__(self, model: nn.Module) -> None:
        self.model, self.norms = model, list[float]()

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        self.norms.append(float(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm()))


def test_clipping_bounds_the_whole_gradient(little: Splits, tmp_path: Path) -> None:
    found = {}
    for clip in (None, 0.05):
        config = OptimizerConfig(learning_rate=0.001, clip_norm=clip)
        job = make_job(little, Method(), optimizer=config, training={"epochs": 1})
        norms = Norms(job.model)
        run(job, tmp_path / str(clip), norms)
        found[clip] = norms.norms
    assert min(found[None]) > 0.05
    assert found[0.05] == pytest.approx([0.05] * 5, rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0},
        {"learning_rate": float("inf")},
        {"weight_decay": -1},
        {"momentum": 1},
        {"clip_norm": 0},
    ],
)
def test_optimisers_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        OptimizerConfig(**settings)  # type: ignore[arg-type]
