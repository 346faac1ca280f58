"""Processes that run the same command share its parts: results, errors, and other work than that of process 0."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

from robustly.attacks import PGD, AttackResult
from robustly.data import Splits
from robustly.evaluation import confirmation, evaluate, members
from robustly.evaluation.members import Member
from robustly.evaluation.parts import ALONE, Arrays, Crew, Task
from robustly.evaluation.stages import EvaluationError
from robustly.processes import Group, ProcessError
from robustly.threats import ThreatModel

TASK = Task("prediction")


def inputs(count: int) -> list[Arrays]:
    return [{"n": np.array([number])} for number in range(count)]


def squared(part: Arrays) -> Arrays:
    return {"square": part["n"] ** 2, "empty": np.zeros((0, 3), np.float32)}


def together(size: int, run: Callable[[Crew, int], object], store: object = None) -> list[object]:
    """What each of several threads, which stand for processes, returns or raises."""
    store = store or HashStore()
    found: list[object] = [None] * size

    def one(rank: int) -> None:
        try:
            found[rank] = run(Member(Group(rank, size, store)), rank)
        except Exception as error:
            found[rank] = error

    for rank in range(1, size):
        store.set(f"pulse/{rank}", "1")
    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_process_gets_the_results_of_one(size: int, count: int) -> None:
    calls: list[int] = []

    def counted(part: Arrays) -> Arrays:
        calls.append(int(part["n"][0]))
        return squared(part)

    def run(crew: Crew, rank: int) -> object:
        first = [*crew.share(TASK, inputs(count), counted, lambda done: None)]
        later = [*crew.share(TASK, first, lambda part: {"n": part["square"] + 1}, lambda done: None)]
        return first, later

    alone = [*ALONE.share(TASK, inputs(count), squared, lambda done: None)]
    for first, later in together(size, run):
        assert all(one["square"] == other["square"] for one, other in zip(first, alone, strict=True))
        assert [int(one["n"][0]) for one in later] == [n * n + 1 for n in range(count)]
        assert all(one["empty"].shape == (0, 3) and one["empty"].flags.writeable for one in first)
    if count > 1:
        assert sorted(calls) == list(range(count)), "each part is computed once"


def test_the_error_is_that_of_the_first_part_that_fails_in_every_process() -> None:
    def work(part: Arrays) -> Arrays:
        number = int(part["n"][0])
        if number in (3, 5):
            time.sleep(0.2 if number == 3 else 0)
            raise KeyError(f"image {number}")
        return squared(part)

    for error in together(3, lambda crew, rank: [*crew.share(TASK, inputs(9), work, lambda done: None)]):
        assert isinstance(error, KeyError)
        assert error.args == ("image 3",)


def test_results_larger_than_a_value_of_the_store_are_whole() -> None:
    def work(part: Arrays) -> Arrays:
        return {"x": np.random.default_rng(int(part["n"][0])).random(1_500_000)}

    first = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))

    def run(crew: Crew, rank: int) -> object:
        return [np.array_equal(one["x"], work({"n": np.array([n])})["x"])
                for n, one in enumerate(crew.share(TASK, inputs(2), work, lambda done: None))]  # fmt: skip

    assert together(2, run, first) == [[True, True]] * 2


def test_received_results_do_not_stay_in_the_store() -> None:
    store = HashStore()

    def run(crew: Crew, rank: int) -> object:
        for _ in range(6):
            assert len([*crew.share(TASK, inputs(4), squared, lambda done: None)]) == 4
            crew.first(lambda: 0)
            time.sleep(0.05)
        return None

    assert together(2, run, store) == [None, None]
    assert not store.check(["0/0"])
    assert not store.check(["3/2/0"])


def test_a_number_is_that_of_process_0() -> None:
    found = together(3, lambda crew, rank: [crew.first(lambda: rank + 7), crew.first(lambda: rank + 1)])
    assert found == [[7, 1]] * 3


def test_other_work_than_that_of_process_0_is_refused() -> None:
    def run(crew: Crew, rank: int) -> object:
        return [*crew.share(TASK, inputs(4 + rank), squared, lambda done: None)]

    first, second = together(2, run)
    assert len(first) == 4  # type: ignore[arg-type]
    assert isinstance(second, ProcessError)
    assert "its files or settings differ" in str(second)


def test_a_lost_device_is_not_an_error_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(device: object) -> None:
        raise members.DeviceError("the device cuda:0 does not answer any more")

    monkeypatch.setattr(members, "check_device", lost)
    monkeypatch.setattr(members.torch.cuda, "is_available", lambda: True)

    def work(part: Arrays) -> Arrays:
        raise RuntimeError("CUDA error: unspecified launch failure")

    (found,) = together(1, lambda crew, rank: [*crew.share(TASK, inputs(3), work, lambda done: None)])
    assert str(found) == "the device cuda:0 does not answer any more"


def test_an_evaluation_ends_with_its_device(
    monkeypatch: pytest.MonkeyPatch, digits: Splits, digit_net: nn.Module
) -> None:
    """An attack that raises an error is a result, unless the device is lost."""

    def fails(*arguments: object) -> AttackResult:
        raise RuntimeError("an operation is not implemented")

    def loses(*arguments: object) -> AttackResult:
        raise RuntimeError("CUDA error: unspecified launch failure")

    few, threat = digits.test.select(torch.arange(4)), ThreatModel("linf", 0.1)
    monkeypatch.setattr(confirmation, "_attacked", fails)
    with pytest.raises(EvaluationError, match="every attack failed"):
        evaluate(digit_net, few, threat, PGD(1), batch_size=4, curve="off")
    monkeypatch.setattr(confirmation, "_attacked", loses)
    with pytest.raises(members.DeviceError, match="does not answer any more"):
        evaluate(digit_net, few, threat, PGD(1), batch_size=4, curve="off")
