"""Processes that share an evaluation return what one process returns, and none of its parts is lost."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore  # type: ignore[attr-defined]

from robustly.evaluation.checkpoint import Speed
from robustly.evaluation.crew import Leader, serve
from robustly.evaluation.parts import ALONE, Arrays, Task, WorkError
from robustly.processes import Group, ProcessError

pytestmark = pytest.mark.slow

TASK = Task("attack", "pgd", "8/255")
SPEED = Speed(4, half_pays=False)


def squared(part: Arrays) -> Arrays:
    return {"square": part["rows"] ** 2, "empty": np.zeros((0, 3), np.float32)}


def inputs(count: int) -> list[Arrays]:
    return [{"rows": np.arange(number, number + 3)} for number in range(count)]


def shared(
    folder: Path, size: int, parts: list[Arrays], works: list[Callable[[Arrays], Arrays]]
) -> tuple[list[Arrays], list[int]]:
    """Results of a task among threads that stand for processes, and the numbers of finished parts on the way."""
    store, shown = HashStore(), []
    threads = [
        threading.Thread(
            target=serve, args=(Group(rank, size, store), folder, "one", lambda speed, task, n=rank: works[n], 0)
        )
        for rank in range(1, size)
    ]
    for rank, thread in enumerate(threads, 1):
        store.set(f"pulse/{rank}", "1")
        thread.start()
    leader = Leader(Group(0, size, store), folder)
    leader.begin("one", SPEED)
    try:
        return list(leader.share(TASK, parts, works[0], shown.append)), shown
    finally:
        leader.end()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9), st.integers(1, 4))
def test_any_number_of_processes_returns_the_parts_in_order_and_computes_each_once(
    tmp_path_factory: pytest.TempPathFactory, count: int, size: int
) -> None:
    calls: list[int] = []

    def counted(part: Arrays) -> Arrays:
        calls.append(int(part["rows"][0]))
        return squared(part)

    parts = inputs(count)
    found, shown = shared(tmp_path_factory.mktemp("parts"), size, parts, [counted] * size)
    alone = list(ALONE.share(TASK, parts, squared, lambda number: None))
    assert len(found) == len(alone) == count
    for one, other in zip(found, alone, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)
    assert sorted(calls) == list(range(count))
    assert all(0 <= number <= count for number in shown)


def test_a_slow_process_keeps_no_part_waiting(tmp_path: Path) -> None:
    """The slow one takes one part, the other all that are left."""
    taken: dict[str, int] = {"slow": 0, "fast": 0}

    def work(name: str, seconds: float) -> Callable[[Arrays], Arrays]:
        def run(part: Arrays) -> Arrays:
            taken[name] += 1
            time.sleep(seconds)
            return squared(part)

        return run

    shared(tmp_path, 2, inputs(12), [work("fast", 0.02), work("slow", 1.0)])
    assert taken["slow"] <= 1
    assert taken["fast"] >= 11


def test_finished_parts_are_not_computed_again(tmp_path: Path) -> None:
    """A task is known by its inputs, whichever processes worked on it."""

    def stops(part: Arrays) -> Arrays:
        if part["rows"][0] == 4:
            raise KeyboardInterrupt
        return squared(part)

    leader = Leader(Group(0, 1, HashStore()), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        list(leader.share(TASK, inputs(6), stops, lambda number: None))
    calls: list[int] = []

    def counted(part: Arrays) -> Arrays:
        calls.append(int(part["rows"][0]))
        return squared(part)

    found = list(Leader(Group(0, 1, HashStore()), tmp_path).share(TASK, inputs(6), counted, lambda number: None))
    assert calls == [4, 5]
    assert [part["square"][0] for part in found] == [0, 1, 4, 9, 16, 25]
    calls.clear()
    other = Task("attack", "pgd", "4/255")
    list(Leader(Group(0, 1, HashStore()), tmp_path).share(other, inputs(6), counted, lambda number: None))
    assert calls == [0, 1, 2, 3, 4, 5], "another radius is another task"


def test_a_damaged_part_is_computed_again(tmp_path: Path) -> None:
    list(Leader(Group(0, 1, HashStore()), tmp_path).share(TASK, inputs(3), squared, lambda number: None))
    (damaged,) = tmp_path.glob("*/000001.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:20])
    found = list(Leader(Group(0, 1, HashStore()), tmp_path).share(TASK, inputs(3), squared, lambda number: None))
    assert [part["square"][0] for part in found] == [0, 1, 4]


def test_an_error_of_another_process_is_that_of_the_task(tmp_path: Path) -> None:
    def fails(part: Arrays) -> Arrays:
        raise KeyError("weights")

    def waits(part: Arrays) -> Arrays:
        time.sleep(0.3)
        return squared(part)

    with pytest.raises(WorkError, match="KeyError: 'weights'"):
        shared(tmp_path, 2, inputs(4), [waits, fails])


def test_another_evaluation_is_refused_by_name() -> None:
    store = HashStore()
    leader = Leader(Group(0, 2, store), Path("nowhere"))
    leader.begin('{"weights": "ab", "seed": 0}', SPEED)
    serve(Group(1, 2, store), Path("nowhere"), '{"weights": "cd", "seed": 0}', lambda speed, task: squared, 0)
    with pytest.raises(ProcessError, match="process 1 of 2 cannot take part: its weights differ from those"):
        Group(0, 2, store).check()


def test_a_process_without_signs_of_life_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("robustly.processes.time.monotonic", lambda: now[0])
    group = Group(0, 2, HashStore())
    group.check()
    now[0] = 299.0
    group.check()  # a process may need minutes to begin
    group.store.set("pulse/1", "1")
    group.check()
    now[0] = 358.0
    group.check()
    now[0] = 360.0
    with pytest.raises(ProcessError, match="process 1 of 2 has stopped; the same command continues"):
        group.check()
    group.store.set("pulse/1", "2")
    group.check()


def test_processes_go_on_to_the_next_evaluation_once_one_has_ended(tmp_path: Path) -> None:
    store, helped = HashStore(), [0, 0]

    def work_of(number: int) -> Callable[[Arrays], Arrays]:
        def work(part: Arrays) -> Arrays:
            helped[number] += 1
            return squared(part)

        return work

    def slow(part: Arrays) -> Arrays:
        time.sleep(0.1)
        return squared(part)

    def other() -> None:
        for number in range(2):
            serve(Group(1, 2, store), tmp_path, "one", lambda speed, task: work_of(number), number)  # noqa: B023

    store.set("pulse/1", "1")
    thread = threading.Thread(target=other)
    thread.start()
    for number in range(2):
        leader = Leader(Group(0, 2, store), tmp_path, number)
        leader.begin("one", SPEED)
        task = Task("attack", "pgd", str(number))
        assert len(list(leader.share(task, inputs(6), slow, lambda done: None))) == 6
        leader.end()
    thread.join(20)
    assert not thread.is_alive()
    assert min(helped) >= 1
