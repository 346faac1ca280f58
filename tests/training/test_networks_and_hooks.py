"""Networks beside the model; the hooks of parts; early ends of a run."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_tools import NormNet, Stop, final, last, make_job, make_step, mlp, run, same, small_net

from robustly.attacks import AttackResult
from robustly.data import Extra, Splits
from robustly.training import (
    AdversarialLoss,
    DataLabels,
    ExponentialAverage,
    GuideLabels,
    Job,
    Method,
    MethodError,
    PGDInner,
    Step,
    TrainingConfig,
)
from robustly.training.engine.checkpoint import CheckpointError
from robustly.training.parts import EpochEnd, Part


@dataclass(frozen=True)
class Agree(Part):
    """A loss that needs a teacher: squared distance of the logits."""

    reads = ("clean", "teacher@clean")

    def __call__(self, step: Step) -> dict[str, Tensor]:
        return {"agreement": (step.clean_logits - step.logits("teacher")).square().mean(1)}


@dataclass(frozen=True)
class Counting(Part):
    """Count the calls of its methods."""

    def after_backward(self, step: Step) -> None:
        assert step.model.get_parameter(next(iter(dict(step.model.named_parameters())))).grad is not None
        self._count(step.remember(self), "backward")

    def after_step(self, step: Step) -> None:
        self._count(step.remember(self), "step")

    def after_epoch(self, end: EpochEnd) -> None:
        memory = end.remember(self)
        self._count(memory, "epoch")
        memory["images"] = torch.tensor(sum(len(x) for x in end.images()))
        memory["last"] = torch.tensor([end.epoch, end.epochs])

    @staticmethod
    def _count(memory: dict[str, Tensor], name: str) -> None:
        memory[name] = memory.get(name, torch.tensor(0)) + 1


@dataclass(frozen=True)
class Replaying(Part):
    """Take three steps on each batch; the perturbation grows with every replay."""

    replays = 3

    def __call__(self, step: Step) -> AttackResult:
        none = torch.zeros_like(step.y)
        memory = step.remember(self)
        memory["replays"] = memory.get("replays", torch.zeros(3)) + torch.eye(3)[step.replay]
        return AttackResult(step.x, none.bool(), step.x.new_zeros(len(none)), *[none] * 3, none.bool())


def test_networks_are_exactly_those_that_the_parts_ask_for(little: Splits) -> None:
    method = Method(loss=Agree())
    assert method.networks == ("teacher",)
    with pytest.raises(MethodError, match="uses the network 'teacher', the run has none: set the key 'teacher'"):
        make_job(little, method)
    with pytest.raises(MethodError, match="has the network 'teacher' that the method does not use"):
        make_job(little, Method(), teachers={"teacher": small_net()})
    with pytest.raises(MethodError, match="uses the network 'guide', the run has none: set the key 'guide'"):
        make_job(little, Method(labels=GuideLabels()))
    make_job(little, method, teachers={"teacher": small_net(seed=3)})


def test_a_teacher_is_frozen_and_never_learns(little: Splits, tmp_path: Path) -> None:
    teacher = NormNet(seed=3)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    job = make_job(little, Method(loss=Agree()), teachers={"teacher": teacher})
    outcome = run(job, tmp_path / "run")
    assert same(before, teacher.state_dict())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    losses = [row["loss_agreement"] for row in outcome.rows]
    assert losses[1] < losses[0]  # type: ignore[operator]
    assert set(last(tmp_path / "run")["networks"]) == {"model"}, "what is frozen is not saved with every epoch"


def test_a_run_does_not_go_on_with_another_teacher(little: Splits, tmp_path: Path) -> None:
    run(make_job(little, Method(loss=Agree()), teachers={"teacher": small_net(seed=3)}), tmp_path / "run")
    longer = {"training": {"epochs": 3}}
    with pytest.raises(CheckpointError, match="the weights of the teacher differ"):
        run(
            make_job(little, Method(loss=Agree()), teachers={"teacher": small_net(seed=4)}, **longer),
            tmp_path / "run",
        )
    run(make_job(little, Method(loss=Agree()), teachers={"teacher": small_net(seed=3)}, **longer), tmp_path / "run")


def test_parts_are_called_after_backward_passes_steps_and_epochs(little: Splits, tmp_path: Path) -> None:
    job = make_job(little, Method(parameters=(Counting(), ExponentialAverage(0.9))))
    run(job, tmp_path / "run")
    memory = last(tmp_path / "run")["memory"]
    assert set(memory) == {"parameters.Counting", "parameters.ExponentialAverage"}
    counts = memory["parameters.Counting"]
    steps = 2 * job.steps_per_epoch
    assert (int(counts["backward"]), int(counts["step"]), int(counts["epoch"])) == (steps, steps, 2)
    assert int(counts["images"]) == len(little.train)
    assert counts["last"].tolist() == [1, 2]


def test_replays_take_several_steps_on_one_batch(little: Splits, tmp_path: Path) -> None:
    job = make_job(little, Method(inner=Replaying(), loss=AdversarialLoss(), parameters=(Counting(),)))
    run(job, tmp_path / "run")
    memory = last(tmp_path / "run")["memory"]
    assert memory["inner"]["replays"].tolist() == [2 * job.steps_per_epoch] * 3
    assert int(memory["parameters.Counting"]["step"]) == 6 * job.steps_per_epoch


class Perturbing(Part):
    def before_outer(self, step: Step, loss: object) -> None: ...


def test_replays_and_weight_perturbation_contradict_each_other() -> None:
    with pytest.raises(MethodError, match="no part may perturb the weights"):
        Method(inner=Replaying(), loss=AdversarialLoss(), parameters=(Perturbing(),))


@dataclass(frozen=True)
class Picky(DataLabels):
    """Refuse every inner maximisation."""

    def check(self, method: Method) -> str | None:
        return "no attack, please" if method.inner is not None else None


def test_check_refuses_other_parts() -> None:
    Method(labels=Picky())
    with pytest.raises(MethodError, match="labels: no attack, please"):
        Method(labels=Picky(), inner=PGDInner(), loss=AdversarialLoss())


def test_reference_logits_are_in_the_mode_of_the_attack() -> None:
    x, y = torch.rand(8, 6, dtype=torch.float64), torch.randint(4, (8,))
    net = mlp().train()
    step = make_step(x, y, net)
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    statistics = step.reference_in("train_nostat")
    assert same(kept, net.state_dict())
    assert not torch.allclose(statistics, step.reference_logits)
    assert torch.allclose(statistics, net(x).detach())


def test_a_collapse_of_robust_accuracy_stops_the_run(little: Splits, tmp_path: Path) -> None:
    """One epoch that learns, then a rate that ruins everything."""
    from robustly.training import OptimizerConfig, ScheduleConfig

    job = make_job(
        little,
        Method(inner=PGDInner(steps=2), loss=AdversarialLoss()),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.01),
        schedule=ScheduleConfig(name="piecewise", boundaries=(15,), factors=(1.0, 30.0)),
        training={"epochs": 20, "stop_after_drop": 0.15},
    )
    outcome = run(job, tmp_path / "run")
    assert 6 < outcome.epochs < 20
    robust = [row["validation_robust_accuracy"] for row in outcome.rows]
    assert robust[-2] - robust[-1] > 0.15  # type: ignore[operator]
    assert outcome.best_epoch < outcome.epochs
    again = run(job, tmp_path / "run")
    assert again.epochs == outcome.epochs, "a stopped run stays stopped"
    assert final(tmp_path / "run")
    with pytest.raises(ValueError, match="stop_after_drop must lie between 0 and 1"):
        TrainingConfig(stop_after_drop=1.5)


def test_extra_images_are_mixed_into_every_batch_and_resumption_is_exact(little: Splits, tmp_path: Path) -> None:
    changed = (little.train.images // 2).clone()
    extra = Extra(replace(little.train, images=changed), 0.7)

    def job(epochs: int) -> Job:
        return make_job(little, Method(), small_net(dropout=0.3), extra=extra, training={"epochs": epochs})

    whole = run(job(3), tmp_path / "whole")
    stop = Stop(7)
    with pytest.raises(KeyboardInterrupt):
        run(job(3), tmp_path / "cut", stop)
    assert stop.images == {32}, "every batch is full"
    run(job(3), tmp_path / "cut")
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))
    assert whole.rows[-1]["step"] == 3 * job(3).steps_per_epoch
