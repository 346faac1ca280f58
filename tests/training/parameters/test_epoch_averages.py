"""Averages over epochs (SWA, moving average), and the batch-norm statistics of averages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_tools import NormNet, final, last, make_job, make_step, mlp, run, same

from robustly.data import Splits
from robustly.training import (
    EpochAverage,
    ExponentialAverage,
    Method,
    MethodError,
    Moment,
    Observer,
    OptimizerConfig,
    WeightAverage,
)
from robustly.training.parameters.averaging import estimate_statistics
from robustly.training.parts import EpochEnd


class Epochs(Observer):
    """Keep the weights after every epoch."""

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


@pytest.mark.slow
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
    with pytest.raises(ValueError, match=r"start .*at least 0"):
        WeightAverage(start=-1)
    with pytest.raises(MethodError, match=r"average .*ExponentialAverage"):
        Method(parameters=(WeightAverage(), ExponentialAverage()))
    with pytest.raises(MethodError, match=r"average .*EpochAverage"):
        Method(parameters=(WeightAverage(), EpochAverage()))
    with pytest.raises(ValueError, match="decay must lie in"):
        EpochAverage(1.0)
    with pytest.raises(MethodError, match=r"start is 2\b.* run has 2\b"):
        make_job(little, Method(parameters=(WeightAverage(start=2),)))


@pytest.mark.slow
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
