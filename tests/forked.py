"""Commands in processes forked from a server that has imported everything.

A start costs a tenth of a second, not four. A process that such a command starts by `spawn` is forked from the same
server. What it is to do reaches it as with `spawn`: pickled. Tests of kills, of Ctrl-C and of launchers start
Python anew as well.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import start_processes

IMPORTED = [
    "lightning_fabric.strategies.ddp", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.run",
    "pyarrow.dataset",
    *(f"robustly.cli.{name}" for name in ("analyse", "audit", "certify", "diagnose", "evaluate", "predict")),
    "robustly.cli.train",
]  # fmt: skip
METHOD = "forkserver" if sys.platform == "linux" and sys.version_info < (3, 14) else "spawn"


def context() -> BaseContext:
    """What makes processes; the server starts with the first one."""
    made = multiprocessing.get_context(METHOD)
    if METHOD == "forkserver":
        made.set_forkserver_preload(IMPORTED)
    return made


def spawn(function: Callable[..., None], args: tuple[Any, ...], nprocs: int) -> None:
    """Stand in for `torch.multiprocessing.spawn`: call a function in several processes, which get their numbers."""
    context()
    start_processes(function, args, nprocs, start_method=METHOD)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code, output and errors."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Command:
    """A command of robustly that runs in a forked process, in a session of its own.

    Args:
        process: the process.
        folder: where its output and its errors are, until they are read.
    """

    process: BaseProcess
    folder: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 400) -> tuple[str, str]:
        """Wait until the command has ended; returns its output and its errors."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"the command still runs after {timeout} s"
        output, errors = ((self.folder / name).read_text() for name in ("output", "errors"))
        shutil.rmtree(self.folder)
        return output, errors

    def wait(self) -> Ended:
        """Wait until the command has ended."""
        output, errors = self.communicate()
        assert self.returncode is not None
        return Ended(self.returncode, output, errors)


def fork(*words: str, command: str = "evaluate", variables: dict[str, str] | None = None) -> Command:
    """Start a command; the variables are added to the environment of the tests."""
    folder = Path(tempfile.mkdtemp(prefix="command"))
    arguments = ([command, *words], os.environ | (variables or {}), folder)
    process = context().Process(target=_carry_out, args=arguments)  # type: ignore[attr-defined]
    process.start()
    return Command(process, folder)


def fork_by_torchrun(
    *words: str, command: str = "evaluate", variables: dict[str, str] | None = None, place: Path | None = None
) -> Command:
    """Start a command in two processes of torchrun's agent, which forks them; their outputs are mixed.

    Args:
        words: the words after the command.
        command: the command.
        variables: added to the environment.
        place: the working folder, from which modules are imported too.
    """
    folder = Path(tempfile.mkdtemp(prefix="command"))
    arguments = ([command, *words], os.environ | (variables or {}), folder, place)
    process = context().Process(target=_launch, args=arguments)  # type: ignore[attr-defined]
    process.start()
    return Command(process, folder)


def _launch(words: Sequence[str], variables: dict[str, str], folder: Path, place: Path | None) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.setsid()
    if place is not None:
        os.chdir(place)
        sys.path.insert(0, str(place))
    _print_to(folder)
    _fork_for_spawn()
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id=folder.name, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.02, start_method="spawn",
    )  # fmt: skip
    elastic_launch(config, _carry_out)(words, variables, folder, True)


def _carry_out(words: Sequence[str], variables: dict[str, str], folder: Path, by_agent: bool = False) -> None:
    from robustly.cli import main

    if not by_agent:
        os.setsid()
        os.environ.clear()
    os.environ |= variables
    _print_to(folder)
    _fork_for_spawn()
    sys.argv = ["robustly", *words]
    code = main()
    sys.stdout.flush()
    sys.exit(code)


def _print_to(folder: Path) -> None:
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)


def _fork_for_spawn() -> None:
    """Let processes that this one starts by `spawn` be forked from the server."""
    if METHOD == "forkserver":
        forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined, method-assign]
        made = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
        made["spawn"] = made["forkserver"]
