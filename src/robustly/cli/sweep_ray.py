"""The runs of a sweep as tasks on a Ray cluster: the only file that knows Ray."""

import importlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from robustly.cli.sweep_run import PATIENCE, Launch, carry_out, stopped_by_signals

RETRIES = 3


def run_on_ray(
    launches: Sequence[Launch],
    address: str,
    needs_gpu: Callable[[Launch], bool],
    progress: Callable[[Launch, str], None],
) -> None:
    """Carry out all runs on a cluster; every node sees the sweep's folder under the same path.

    A run whose node or worker dies is started again elsewhere, from its last checkpoint.

    Args:
        launches: what to do; each takes as many CPUs as it has threads.
        address: of the cluster; "local" starts one here, "" means this machine's, or a local one.
        needs_gpu: whether a run takes a GPU, where the cluster has any.
        hear: told of every run that ended, with why it failed.

    Raises:
        ValueError: Ray is not installed, the cluster cannot be reached or has no node for a run.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ValueError("--ray needs the package ray: pip install 'robustly[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless somebody asks for it
    try:
        ray.init(address=address or None, log_to_driver=False, logging_level="ERROR", configure_logging=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster at {address or 'hand'}: {error}") from None
    try:
        gpus = check_room(ray, max(launch.threads for launch in launches))
        task = ray.remote(_task)
        pending = {}
        with stopped_by_signals():  # not earlier: Ray sets handlers of its own as it starts
            try:
                for launch in launches:
                    room = {"num_cpus": launch.threads, "num_gpus": int(gpus and needs_gpu(launch))}
                    pending[task.options(max_retries=RETRIES, **room).remote(launch)] = launch
                while pending:
                    for done in ray.wait(list(pending), timeout=1.0)[0]:
                        progress(pending.pop(done), _result(ray, done))
            except BaseException:
                _cancel(ray, list(pending))
                raise
    finally:
        ray.shutdown()


def _task(launch: Launch) -> str:
    """On the node. A cancelled task gets KeyboardInterrupt, which stops its children."""
    before = signal.pthread_sigmask(
        signal.SIG_UNBLOCK, {signal.SIGINT}
    )  # Ray blocks it, children would inherit that
    try:
        return carry_out(launch, threading.Event())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_room(ray: Any, threads: int) -> bool:
    """Whether a cluster has GPUs.

    Raises:
        ValueError: no node is large enough, so that Ray would let a run wait for ever.
    """
    widest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if threads > widest:
        raise ValueError(f"no node of the Ray cluster has {threads} CPUs for a run (the largest has {widest:g})")
    return bool(ray.cluster_resources().get("GPU", 0))


def _result(ray: Any, done: Any) -> str:
    try:
        return str(ray.get(done))
    except ray.exceptions.RayError as error:
        return f"Ray: {' '.join(str(error).split())[:300]}"


def _cancel(ray: Any, pending: list[Any]) -> None:
    for reference in pending:
        ray.cancel(reference)
    ray.wait(pending, num_returns=len(pending), timeout=2 * PATIENCE)
