"""Parts as tasks of a cluster: each result is taken once, and finished parts are not carried out again.

Threads stand for the workers of the cluster.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robustly.evaluation import ray_crew
from robustly.evaluation.checkpoint import Speed
from robustly.evaluation.parts import ALONE, Arrays, Task, WorkError
from robustly.evaluation.ray_crew import RayCrew
from robustly.evaluation.ray_tasks import Outcome, Sent
from robustly.ray_cluster import NO_NODE, RETRIES, Cluster, Room
from robustly.ray_connection import ClusterError

TASK = Task("attack", "pgd", "8/255")
Answer = Callable[[Arrays], Outcome]


def squared(part: Arrays) -> Arrays:
    return {"square": part["rows"] ** 2, "empty": np.zeros((0, 3), np.float32)}


def inputs(count: int) -> list[Arrays]:
    return [{"rows": np.arange(number, number + 3)} for number in range(count)]


class TaskError(Exception):
    """As Ray raises it where a task cannot be begun."""

    cause = ModuleNotFoundError("No module named 'robustly'")


class Workers:
    """The package ray, with threads in place of workers; it records what it is given."""

    def __init__(self, answer: Answer, room: int = 2) -> None:
        self.answer, self.room = answer, room
        self.begun: list[int] = []
        self.seconds: list[float | None] = []
        self.cancelled = 0
        self.exceptions = SimpleNamespace(RayTaskError=TaskError, RayError=LookupError)
        self._pool = ThreadPoolExecutor(room)

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": float(self.room)}}]

    def remote(self, **options: int) -> Callable[[object], SimpleNamespace]:
        assert options == {"max_retries": RETRIES, "num_cpus": 1, "num_gpus": 0}
        return lambda function: SimpleNamespace(remote=self._begin)

    def _begin(self, sent: object, speed: Speed, task: Task, size: int, part: Arrays) -> Future[Outcome]:
        self.begun.append(int(part["rows"][0]))
        self.seconds.append(task.seconds)
        assert (sent, speed.batch_size, size) == (SENT, 3, self.room)
        return self._pool.submit(self.answer, part)

    def wait(self, references: list[Future[Outcome]], num_returns: int, timeout: float) -> tuple[list[Any], None]:
        return [*wait(references, timeout, FIRST_COMPLETED).done], None

    def get(self, reference: Future[Outcome]) -> Outcome:
        return reference.result()

    def cancel(self, reference: object, force: bool) -> None:
        self.cancelled += 1


SENT = Sent("subject", "images", "code", 1)


def crew_of(workers: Workers, folder: Path) -> RayCrew:
    crew = RayCrew(Cluster(workers), folder, lambda: SENT, images=12)
    crew.begin("identity", Speed(3, half_pays=False))
    return crew


def same(found: Iterator[Arrays], count: int) -> bool:
    alone = list(ALONE.share(TASK, inputs(count), squared))
    return all(
        one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
        for one, other in zip(found, alone, strict=True)
    )


def here(part: Arrays) -> Arrays:
    raise AssertionError("the parts are carried out by workers")


@pytest.mark.parametrize("count", [2, 7])
def test_results_are_those_of_one_process_and_each_part_is_begun_once(tmp_path: Path, count: int) -> None:
    workers, shown = Workers(lambda part: Outcome(squared(part))), []
    assert same(crew_of(workers, tmp_path).share(TASK, inputs(count), here, shown.append), count)
    assert sorted(workers.begun) == list(range(count))
    assert shown == list(range(1, count + 1))


def test_a_single_part_needs_no_cluster(tmp_path: Path) -> None:
    workers = Workers(lambda part: Outcome(error="never"))
    assert same(crew_of(workers, tmp_path).share(TASK, inputs(1), squared), 1)
    assert workers.begun == []


def test_finished_parts_are_not_begun_again(tmp_path: Path) -> None:
    def stops(part: Arrays) -> Outcome:
        if part["rows"][0] == 3:
            raise LookupError("the worker died")
        return Outcome(squared(part))

    with pytest.raises(ClusterError, match=r"lost a task 4 times .*the same command continues from the finished"):
        list(crew_of(Workers(stops, room=1), tmp_path).share(TASK, inputs(5), here))
    workers = Workers(lambda part: Outcome(squared(part)))
    crew = crew_of(workers, tmp_path)
    assert len(list(crew.finished(TASK, inputs(5)))) == 3
    assert same(crew.share(TASK, inputs(5), here), 5)
    assert sorted(workers.begun) == [3, 4]
    crew.forget_parts()
    assert list(crew.finished(TASK, inputs(5))) == []


def test_a_part_that_a_worker_refuses_is_begun_elsewhere(tmp_path: Path) -> None:
    refusals = ["on the node a the device cuda does not answer any more"] * RETRIES

    def sometimes(part: Arrays) -> Outcome:
        if part["rows"][0] == 2 and refusals:
            return Outcome(refusal=refusals.pop())
        return Outcome(squared(part))

    workers = Workers(sometimes)
    assert same(crew_of(workers, tmp_path).share(TASK, inputs(5), here), 5)
    assert workers.begun.count(2) == RETRIES + 1
    assert len(workers.begun) == 5 + RETRIES


def test_workers_that_all_refuse_end_the_command_with_the_reason(tmp_path: Path) -> None:
    workers = Workers(lambda part: Outcome(refusal="on the node a the code of robustly differs"), room=1)
    with pytest.raises(ClusterError, match="cannot take part: on the node a the code of robustly differs"):
        list(crew_of(workers, tmp_path).share(TASK, inputs(3), here))
    assert len(workers.begun) == RETRIES + 1


def test_a_worker_without_the_package_ends_the_command_with_the_reason(tmp_path: Path) -> None:
    def missing(part: Arrays) -> Outcome:
        raise TaskError

    with pytest.raises(ClusterError, match=r"cannot take part .ModuleNotFoundError: No module named 'robustly'"):
        list(crew_of(Workers(missing), tmp_path).share(TASK, inputs(3), here))


def test_an_error_of_the_work_ends_the_task_and_the_others_are_cancelled(tmp_path: Path) -> None:
    workers = Workers(lambda part: Outcome(error="KeyError: 'weights'"), room=2)
    with pytest.raises(WorkError, match="KeyError: 'weights'"):
        list(crew_of(workers, tmp_path).share(TASK, inputs(4), here))
    assert workers.cancelled >= 1


def test_each_part_of_a_task_with_a_time_limit_gets_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]

    def slow(part: Arrays) -> Outcome:
        now[0] += 4
        return Outcome(squared(part))

    monkeypatch.setattr(ray_crew, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None))
    workers = Workers(slow, room=1)
    list(crew_of(workers, tmp_path).share(Task("attack", "pgd", "8/255", 10.0), inputs(4), here))
    assert workers.seconds == [10.0, 6.0, 2.0, 0.0]


def test_fewer_batches_than_tasks_are_said(tmp_path: Path) -> None:
    crew = crew_of(Workers(lambda part: Outcome(), room=4), tmp_path)  # says nothing: 4 batches of 3
    with pytest.warns(UserWarning, match="12 images in batches of 6 are 2 parts for 4 tasks at a time"):
        crew.begin("identity", Speed(6, half_pays=False))


def test_an_object_store_without_room_is_one_sentence() -> None:
    def put(value: object) -> None:
        raise LookupError("out of disk")

    ray = SimpleNamespace(put=put, exceptions=SimpleNamespace(RayError=LookupError))
    with pytest.raises(ClusterError, match="takes no more: out of disk"):
        Cluster(ray).put(1)


def test_a_cluster_without_nodes_is_given_up_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slots = [0.0], [2]
    monkeypatch.setattr("robustly.ray_cluster.time.monotonic", lambda: now[0])
    nodes = lambda: [{"Alive": True, "Resources": {"CPU": float(slots[0])}}]  # noqa: E731
    room = Room(Cluster(SimpleNamespace(nodes=nodes)))
    assert room.slots() == 2
    slots[0], now[0] = 0, NO_NODE
    assert room.slots() == 0
    slots[0], now[0] = 1, NO_NODE + 1
    assert room.slots() == 1, "a node has joined"
    slots[0], now[0] = 0, 2 * NO_NODE + 2
    with pytest.raises(ClusterError, match="no node of the Ray cluster has had room"):
        room.slots()


def test_slots_count_the_room_of_each_node() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 5.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {}},
    ]
    ray = SimpleNamespace(nodes=lambda: nodes)
    assert Cluster(ray, threads=1).slots() == 8
    assert Cluster(ray, threads=2).slots() == 3, "a task does not span nodes"
    assert Cluster(ray, threads=1, gpus=1).slots() == 2


def test_a_lost_connection_is_one_sentence_and_finished_parts_are_kept(tmp_path: Path) -> None:
    class Lost(Workers):
        def wait(self, references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], None]:
            if len(self.begun) > 2:
                raise ConnectionError("Failed to reconnect within\nthe grace period")
            return super().wait(references, num_returns, timeout)

        def cancel(self, reference: object, force: bool) -> None:
            raise AssertionError("Ray would start a cluster here for it")

        def is_initialized(self) -> bool:
            return False

    words = r"the connection to the Ray cluster is lost \(Failed to reconnect within the grace period\); the same"
    with pytest.raises(ClusterError, match=words):
        list(crew_of(Lost(lambda part: Outcome(squared(part)), room=1), tmp_path).share(TASK, inputs(5), here))
    workers = Workers(lambda part: Outcome(squared(part)))
    assert same(crew_of(workers, tmp_path).share(TASK, inputs(5), here), 5)
    assert sorted(workers.begun) == [2, 3, 4]
