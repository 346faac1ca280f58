"""Choices by measuring, their cache, and the training step."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from robustly.data import Augmentation, Splits
from robustly.evaluation import EvaluationTarget
from robustly.evaluation.batch_size import measure
from robustly.models import ModelConfig, build_model
from robustly.performance import (
    Choices,
    Meter,
    Passes,
    PassTime,
    cache_folder,
    choose,
    keep,
    kept,
    key_of,
    measure_step,
)
from robustly.performance.choices import thread_counts
from robustly.performance.step_times import in_larger_batch
from robustly.performance.timing import BenchError, Spread
from robustly.runtime import Runtime, RuntimeConfig
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    AuxiliaryNetwork,
    DynatLoss,
    GuideLabels,
    Job,
    Method,
    OptimizerConfig,
    PGDInner,
    ScheduleConfig,
    TrainingConfig,
)
from robustly.training.cost import step_cost
from trial_runs import digits as small_digits

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CHOICES = Choices(64, "channels_last", 0.4, 2, 0.7)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTLY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def net(width: float, seed: int = 0) -> nn.Module:
    return build_model(ModelConfig(width=width), seed=seed)


def test_choices_are_kept_for_the_machine_and_the_shapes_of_the_model(cache: Path) -> None:
    key = key_of(net(0.25), (1, 28, 28), CPU)
    assert kept(key) is None
    path = keep(key, CHOICES)
    assert path.is_relative_to(cache)
    assert kept(key) == CHOICES
    assert key_of(net(0.25, seed=1), (1, 28, 28), CPU) == key  # other weights
    others = [key_of(net(0.5), (1, 28, 28), CPU), key_of(net(0.25), (1, 28, 32), CPU)]
    others += [key_of(net(0.25).double(), (1, 28, 28), CPU), key_of(net(0.25), (1, 28, 28), torch.device("cuda"))]
    assert len({key, *others}) == 5
    assert [kept(one) for one in others] == [None] * 4


def test_the_key_depends_on_the_threads() -> None:
    before, now = key_of(net(0.25), (1, 28, 28), CPU), torch.get_num_threads()
    try:
        torch.set_num_threads(now + 1)
        assert key_of(net(0.25), (1, 28, 28), CPU) != before
    finally:
        torch.set_num_threads(now)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1}', '{"schema": 2}', "\x00"])
def test_a_damaged_file_is_none(content: str) -> None:
    keep("key", CHOICES).write_text(content)
    assert kept("key") is None


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("batch_size", "64"), ("threads", True), ("batch_size", 1e9)]
)
def test_wrong_values_in_the_cache_are_none(name: str, value: object) -> None:
    path = keep("key", CHOICES)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert kept("key") is None


def test_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("ROBUSTLY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "robustly"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "robustly"


def passes(**seconds: dict[int, float]) -> Passes:
    """Passes to the input with these seconds per image, by precision and batch size."""
    return Passes(
        tuple(
            PassTime("input_backward", precision, layout, size, Spread(*[factor * one * size] * 3, 3))
            for precision, sizes in seconds.items()
            for size, one in sizes.items()
            for layout, factor in (("contiguous", 1.0), ("channels_last", 0.9))
        )
    )


@pytest.mark.parametrize(
    ("float32", "bfloat16", "size", "gain"),
    [
        ({1: 9.0, 32: 5.0, 128: 4.9, 256: 4.87}, {}, 32, None),  # larger batches hardly help
        ({1: 9.0, 32: 5.0, 128: 4.0, 256: 4.1}, {}, 128, None),
        ({1: 1.0, 32: 5.0}, {}, 32, None),  # one image at a time only if there is no other size
        ({1: 1.0}, {1: 0.5}, 1, 0.5),
        ({32: 5.0, 128: 5.0}, {32: 4.0, 128: 2.0}, 128, 0.4),
        ({32: 5.0}, {32: 10.0}, 32, 2.0),
    ],
)
def test_the_smallest_batch_that_is_fast(
    float32: dict[int, float], bfloat16: dict[int, float], size: int, gain: float | None
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    found = choose(
        model, lambda n: torch.zeros(n, 1, 2, 2), passes(float32=float32, bfloat16=bfloat16), Meter(), seconds=0
    )
    assert (found.batch_size, found.layout) == (size, "channels_last")
    assert found.bfloat16 == (None if gain is None else pytest.approx(gain))


def test_threads_are_those_of_before_after_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustly.performance.choices.thread_counts", lambda now: [now, now + 1])
    now = torch.get_num_threads()
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    found = choose(model, lambda n: torch.zeros(n, 1, 2, 2), passes(float32={8: 1.0}), Meter(), seconds=0)
    assert torch.get_num_threads() == now
    assert found.threads in (now, now + 1)
    assert found.threads_gain is not None
    assert found.threads_gain <= 1


def test_thread_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    assert thread_counts(3) == [1, 2, 3, 4, 6]


def test_an_evaluation_takes_a_known_batch_size(digit_net: nn.Module, digits: Splits) -> None:
    target = EvaluationTarget(digit_net, digits.test, ThreatModel("linf", 0.1))
    found = measure(target, known=7)
    assert found.batch_size == 7
    assert found.half_seconds is not None
    assert measure(target, known=5000).batch_size == len(digits.test)


def job(method: Method) -> Job:
    splits = small_digits(100)
    return Job(
        method=method,
        model=build_model(ModelConfig(width=0.25, image_size=(16, 16)), seed=1),
        networks={
            name: AuxiliaryNetwork(build_model(ModelConfig(width=0.25, image_size=(16, 16)), seed=2))
            for name in method.networks
        },
        train=splits.train,
        validation=splits.validation,
        threats=(ThreatModel("linf", 0.1),),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.005),
        schedule=ScheduleConfig(),
        training=TrainingConfig(epochs=6, batch_size=20, validation_steps=3),
        augmentation=Augmentation(),
    )


@pytest.mark.parametrize(
    "method",
    [
        Method(),
        Method(inner=PGDInner(steps=2, relative_step_size=0.35), loss=AdversarialLoss()),
        Method(labels=GuideLabels(), inner=PGDInner(steps=2, relative_step_size=0.35), loss=DynatLoss()),
    ],
    ids=["standard", "PGD-AT", "DYNAT-Inner"],
)
def test_a_training_step_beside_its_passes(method: Method) -> None:
    one = job(method)
    found = measure_step(one, Runtime(RuntimeConfig(device="cpu")), Meter(), per_image=1e-5, seconds=1.0)
    cost = step_cost(method, one.training.epochs, (), one.threats)
    assert (found.forwards, found.backwards) == (cost.forwards, cost.backwards)
    assert (found.batch_size, found.wanted) == (20, 20)
    assert 0.1 < found.ratio.median < 30
    assert found.data.median < found.seconds.median
    assert found.run.median == pytest.approx(found.epoch.median * one.training.epochs)
    assert found.epoch.median > found.seconds.median * len(one.train) / 20
    weights = sum(p.numel() for p in one.model.parameters()) * 4
    assert found.memory > 3 * weights  # weights, gradients, and two moments of AdamW


def test_warnings_of_a_job_are_not_repeated(recwarn: pytest.WarningsRecorder) -> None:
    plain = job(Method())
    with pytest.warns(UserWarning, match="training never reaches all of it"):
        ramped = replace(plain, training=replace(plain.training, epsilon_ramp=9.0))
    recwarn.clear()
    measure_step(ramped, Runtime(RuntimeConfig(device="cpu")), Meter(), per_image=1e-3, seconds=0.1)
    assert [str(one.message) for one in recwarn if "epsilon" in str(one.message)] == []


def test_a_step_that_takes_too_long_is_measured_with_fewer_images() -> None:
    found = measure_step(job(Method()), Runtime(RuntimeConfig(device="cpu")), Meter(), per_image=1e-3, seconds=0.1)
    assert (found.batch_size, found.wanted) == (6, 20)  # 2 passes of 1 ms, 8 times with the bare passes
    with pytest.raises(BenchError, match=r"it would take about 32 s: raise --seconds"):
        measure_step(job(Method()), Runtime(RuntimeConfig(device="cpu")), Meter(), per_image=1.0, seconds=0.1)


def test_a_larger_batch_shares_the_time_that_does_not_depend_on_its_images() -> None:
    fixed, each = 3.0, 0.5  # seconds of a step and of an image in it
    seconds = {count: fixed + each * count for count in (4, 12, 48)}
    factor = in_larger_batch(4, seconds[4], 12, seconds[12], 48)
    assert factor * seconds[12] / 12 == pytest.approx(seconds[48] / 48)
    assert in_larger_batch(4, 4.0, 12, 12.0, 48) == 1  # no such time
    assert in_larger_batch(4, 1.0, 12, 12.0, 48) == 1  # nor a negative one
    assert in_larger_batch(4, 12.0, 12, 12.0, 48) == pytest.approx((12 + 0.5 * 36) / 48)  # at most half


def test_the_epoch_of_a_step_with_fewer_images_is_that_of_the_whole_batch() -> None:
    class Clock(Meter):
        def seconds(self, work: Callable[[], object]) -> float:
            counted.clear()
            work()
            return 3.0 + 0.5 * max(counted, default=0)

    counted: list[int] = []
    one = job(Method())
    one.model.register_forward_pre_hook(lambda network, given: counted.append(len(given[0])))
    found = measure_step(one, Runtime(RuntimeConfig(device="cpu")), Clock(), per_image=1e-3, seconds=0.1)
    assert (found.batch_size, found.wanted) == (6, 20)
    assert found.seconds.median == 6.0 + 3.0  # with its data
    step = (3.0 + 0.5 * 20) / 20  # for an image of a whole batch, where one of the six takes 1 s
    validation = (3 + 3) * len(one.validation)  # passes of 1 s
    assert found.epoch.median == pytest.approx(9.0 / 6 * step * len(one.train) + validation)
