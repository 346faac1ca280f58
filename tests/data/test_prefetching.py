"""The next batch is prepared while one is used: order, errors, early ends, and the same training."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.data import Augmentation, Batch, batches
from robustly.data.prefetching import prefetched
from robustly.models import ModelConfig, build_model
from robustly.runtime import Runtime, RuntimeConfig
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    Job,
    Method,
    OptimizerConfig,
    PGDInner,
    ScheduleConfig,
    TrainingConfig,
    train,
)
from robustly.training.engine import stepping
from robustly.training.engine.loop import FINAL
from trial_runs import digits as small_digits

CPU = torch.device("cpu")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


@settings(max_examples=30)
@given(st.lists(st.integers(), max_size=12))
def test_items_come_in_their_order(items: list[int]) -> None:
    assert list(prefetched(iter(items), CPU, lambda item: ())) == items
    assert threads() == []


def test_the_next_item_is_prepared_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(begun):
            event.set()
            yield number

    for number in prefetched(items(), CPU, lambda item: ()):
        if number + 1 < len(begun):
            assert begun[number + 1].wait(10)


def test_only_a_few_items_exist_at_a_time() -> None:
    prepared: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            prepared.append(number)
            yield number

    for number in prefetched(items(), CPU, lambda item: ()):
        assert len(prepared) <= number + 3
        if number == 5:
            threading.Event().wait(0.2)  # time for too many
            assert len(prepared) <= 8


def test_an_error_is_raised_at_its_item() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    seen: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(prefetched(items(), CPU, lambda item: ()))
    assert threads() == []
    iterator = prefetched(items(), CPU, lambda item: ())
    assert [next(iterator), next(iterator)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(iterator)


@pytest.mark.parametrize("used", [0, 1, 3])
def test_the_thread_ends_with_a_caller_that_leaves_early(used: int) -> None:
    iterator = prefetched(iter(range(1000)), CPU, lambda item: ())
    for _ in range(used):
        next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert threads() == []
    with pytest.raises(KeyboardInterrupt):
        _interrupted()
    assert threads() == []


def _interrupted() -> None:
    for number in prefetched(iter(range(1000)), CPU, lambda item: ()):
        if number == 2:
            raise KeyboardInterrupt


def test_batches_are_the_same() -> None:
    data = small_digits(50).train
    plain = batches(data, 16, seed=1, epoch=2)
    for one, other in zip(plain, prefetched(batches(data, 16, seed=1, epoch=2), CPU, Batch.tensors), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one.tensors(), other.tensors(), strict=True))


def test_a_run_with_images_on_the_disk_is_that_of_images_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits, used = small_digits(70), []

    def watched(*arguments: object) -> object:
        used.append(1)
        return prefetched(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stepping, "prefetched", watched)
    for name in ("memory", "disk"):
        job = Job(
            method=Method(inner=PGDInner(steps=1), loss=AdversarialLoss()),
            model=build_model(ModelConfig(width=0.25, dropout=0.2, image_size=(16, 16)), seed=0),
            train=replace(splits.train, on_disk=name == "disk"),
            validation=splits.validation,
            threats=(ThreatModel("linf", 0.1),),
            optimizer=OptimizerConfig(name="sgd", learning_rate=0.05),
            schedule=ScheduleConfig(),
            training=TrainingConfig(epochs=2, batch_size=32, validation_steps=1),
            augmentation=Augmentation(pad_crop=2, flip=True),
        )
        (tmp_path / name).mkdir()
        train(job, Runtime(RuntimeConfig(device="cpu")), tmp_path / name, config_digest="")
        assert len(used) == (0 if name == "memory" else 2)
    assert (tmp_path / "memory" / FINAL).read_bytes() == (tmp_path / "disk" / FINAL).read_bytes()
    assert threads() == []
