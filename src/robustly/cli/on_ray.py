"""`--on ray`: the parts of one evaluation as tasks of a Ray cluster."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from robustly.cli.arguments import in_shards, processes_in
from robustly.cli.evaluate_plan import PlannedEvaluation
from robustly.cli.evaluate_together import PARTS, Request, suite_of
from robustly.cli.subject import Subject
from robustly.cli.together import warn_beside
from robustly.evaluation.crew import Leads
from robustly.evaluation.ray_crew import RayCrew
from robustly.evaluation.ray_tasks import Sent, send, send_images
from robustly.evaluation.ray_tasks import Subject as Evaluated
from robustly.experiments.locks import partial_of
from robustly.experiments.overrides import pairs_of
from robustly.ray_cluster import Cluster, check_room
from robustly.ray_connection import check_address, connected
from robustly.runtime import place_in_cluster

OPTION = "--on"


def check_on(address: str, overrides: Sequence[str]) -> None:
    """Refuse an address, other processes beside the cluster, or a cluster that does not answer.

    Args:
        address: the word after `--on`.
        overrides: settings of the command line.

    Raises:
        ValueError: the word is neither `ray` nor `ray://HOST:PORT`; several processes too; Ray is not installed.
        ClusterError: nothing answers at the address.
    """
    if address != "ray" and not address.startswith("ray://"):
        raise ValueError(f"--on takes ray or ray://HOST:PORT, got {address!r}")
    if processes_in(overrides) > 1:
        raise ValueError(f"{OPTION} {address} shares the work in the cluster: leave out --runtime.processes")
    in_shards(pairs_of(overrides), f"{OPTION} {address} shares batches, each with the whole weights")
    if place_in_cluster() is not None:
        raise ValueError(f"{OPTION} {address} needs one process, not several of torchrun or SLURM")
    check_address(address, OPTION)


def threads_of_workers() -> int:
    """Threads and CPUs of a task: OMP_NUM_THREADS, else 1."""
    given = os.environ.get("OMP_NUM_THREADS", "1")
    return int(given) if given.isdecimal() and int(given) else 1


@contextmanager
def cluster_at(address: str) -> Iterator[Cluster]:
    """Connect to a Ray cluster.

    Raises:
        ValueError: see `connected`; no node has room for a task.
    """
    threads = threads_of_workers()
    with connected(address, OPTION) as ray:
        check_room(ray, threads)
        yield Cluster(ray, threads)


class OnRay:
    """A Ray cluster for the evaluations of one command; connected when the first one begins.

    Args:
        address: `ray` or `ray://HOST:PORT`.
        request: arguments of the command.
    """

    def __init__(self, address: str, request: Request) -> None:
        self._address, self._request = address, request
        self._cluster: Cluster | None = None
        self._held = ExitStack()

    def divided(self, subject: Subject) -> Subject:
        """The same: every task has the whole model."""
        return subject

    def leaders(self, plans: Sequence[PlannedEvaluation], subject: Subject) -> Mapping[Path, Leads]:
        """Connect, and return the leader of each evaluation by its folder.

        Args:
            plans: evaluations on the same images.
            subject: model and images.

        Raises:
            ValueError: the cluster has no device of the kind of this machine.
            ClusterError: it does not answer.
        """
        if self._cluster is None:
            connected = self._held.enter_context(cluster_at(self._address))
            self._cluster = with_device(connected, needs_gpu=subject.device.type == "cuda")
            if connected.has_gpus and subject.device.type == "cpu":
                warn_beside(
                    "the cluster has GPUs and this process computes on the CPU, so its workers do too: start the "
                    "command where there is a GPU, or give several runs"
                )
        images: list[Any] = []

        def sent(plan: PlannedEvaluation, cluster: Cluster) -> Sent:
            if not images:
                images.append(send_images(cluster, subject.data))
            suite = suite_of(plan, subject, self._request.extended)
            settings = plan.config.evaluation
            evaluated = Evaluated(subject.model, plan.config.threat, suite, settings.curve, plan.config.seed)
            return send(cluster, evaluated, images[0])

        return {
            plan.target: RayCrew(
                self._cluster,
                partial_of(plan.target) / PARTS,
                partial(sent, plan, self._cluster),
                len(subject.data),
            )
            for plan in plans
        }

    def close(self) -> None:
        """Leave the cluster."""
        self._held.close()


def with_device(cluster: Cluster, needs_gpu: bool) -> Cluster:
    """The cluster with tasks that take a GPU if they need one.

    Raises:
        ValueError: there is none.
    """
    if needs_gpu and not cluster.has_gpus:
        raise ValueError("no node of the Ray cluster has a GPU: give --runtime.device cpu")
    return Cluster(cluster.ray, cluster.threads, int(needs_gpu))
