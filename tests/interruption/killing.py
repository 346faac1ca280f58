"""Commands in forked processes that are killed by SIGKILL at a chosen file operation.

A server process imports the package once and forks for every command, so that a killed command costs little.
"""

import builtins
import importlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OPERATIONS = (
    "replace", "rename", "unlink", "remove", "rmdir", "mkdir", "link", "symlink", "truncate", "ftruncate", "pwrite",
    "fsync",
)  # fmt: skip
WRITES = set("wax+")


@dataclass(frozen=True)
class Operation:
    """A file operation of a command.

    Args:
        name: function of `os`, or "open" for writing.
        file: the file's name.
        had_effect: whether the disk may differ after it. Not after one that failed, wrote through or locked.
        is_file: whether a file is written through, whose content a kill may have cut off.
    """

    name: str
    file: str
    had_effect: bool
    is_file: bool


@dataclass(frozen=True)
class Ended:
    """A command that ended: its exit code (negative: the signal that killed it), output, and file operations."""

    code: int
    output: str
    operations: tuple[Operation, ...]


class Commands:
    """The server, seen from the tests."""

    def __init__(self) -> None:
        words = [sys.executable, __file__]
        variables = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )

    def run(
        self,
        words: list[str],
        folder: Path,
        *,
        kill_at: int = -1,
        cut: bool = False,
        by: int = signal.SIGKILL,
        batch_size: int = 8,
    ) -> Ended:
        """Run a command in a folder.

        Args:
            words: the words after `robustly`.
            folder: working folder.
            kill_at: number of the file operation before which it is killed; none if negative.
            cut: whether the file of that operation is cut in half first, as if it were killed while it is written.
            by: number of the signal that it gets there.
            batch_size: the batch size that a measurement finds; other sizes and precisions give other numbers.
        """
        asked = {"words": words, "folder": str(folder), "batch_size": batch_size}
        asked |= {"kill_at": kill_at, "cut": cut, "by": by}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        found = json.loads(self._process.stdout.readline())
        operations = tuple(Operation(**one) for one in found["operations"])
        return Ended(found["code"], found["output"], operations)

    def close(self) -> None:
        """End the server."""
        self._process.communicate()


def points(operations: tuple[Operation, ...]) -> list[tuple[int, bool]]:
    """Where to kill: before each operation whose predecessor changed the disk, and within each write."""
    found = [
        (number, False) for number, _ in enumerate(operations) if number == 0 or operations[number - 1].had_effect
    ]
    found += [(number, True) for number, one in enumerate(operations) if one.is_file]
    return sorted(found)


def _serve() -> None:
    asked_by, answered_to = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    _import_everything()
    for line in asked_by:
        answered_to.write(json.dumps(_forked(**json.loads(line))) + "\n")
        answered_to.flush()


def _import_everything() -> None:
    import lightning_fabric.strategies.ddp  # noqa: F401
    import torch
    import torch._dynamo

    from robustly.cli import analyse, audit, compare, diagnose, evaluate, report, sweep, train  # noqa: F401

    for name in ("pyarrow.dataset", "pandas"):  # pyarrow imports them at its first call, pandas if it is installed
        with suppress(ImportError):
            importlib.import_module(name)
    torch.set_num_threads(1)


def _forked(words: list[str], folder: str, batch_size: int, kill_at: int, cut: bool, by: int) -> dict[str, Any]:
    log, output = (os.memfd_create(name) for name in ("log", "output"))
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.chdir(folder)
            os.dup2(output, 1)
            os.dup2(output, 2)
            code = _command(words, batch_size, _Counter(log, kill_at, cut, by))
            sys.stdout.flush()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    operations = [json.loads(line) for line in _read(log).splitlines()]
    text = _read(output)
    for number in (log, output):
        os.close(number)
    return {"code": os.waitstatus_to_exitcode(status), "output": text, "operations": operations}


def _read(number: int) -> str:
    return os.pread(number, 10_000_000, 0).decode("utf-8", "replace")


def _command(words: list[str], batch_size: int, counter: "_Counter") -> int:
    from robustly.cli import main, sweep, sweep_run
    from robustly.evaluation import evaluate
    from robustly.evaluation.batch_size import Tuning

    evaluate.__globals__["measure"] = lambda target, known=None: Tuning(
        batch_size, 1.0, 0.5 if batch_size == 8 else None
    )

    def in_this_process(cell: Any, stop: Any, environment: Any) -> str:
        """The commands of a cell, so that the operations of a run and its sweep are one sequence."""
        for one in cell.commands:
            code = main(one)
            if code:
                return f"exit code {code}"
        return ""

    sweep.carry_out = sweep_run.carry_out = in_this_process
    with counter.counting():
        return main(words)


class _Counter:
    """Count file operations, write them down, and kill the process before one of them."""

    def __init__(self, log: int, kill_at: int, cut: bool, by: int) -> None:
        self._log, self._kill_at, self._cut, self._by = log, kill_at, cut, by
        self._count = 0
        self._write, self._truncate, self._stat = os.write, os.truncate, os.stat

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Patch the file operations of this process, which ends soon."""
        for name in OPERATIONS:
            setattr(os, name, self._counted(name, getattr(os, name), lambda *_: True))
        os.open = self._counted("open", os.open, lambda path, flags, *_: bool(flags & os.O_CREAT))  # type: ignore[assignment]
        opened = self._counted(
            "open",
            io.open,
            lambda path, mode="r", *_: isinstance(path, str | os.PathLike) and bool(WRITES & set(mode)),
        )
        io.open = builtins.open = opened  # type: ignore[assignment]
        yield

    def _counted(
        self, name: str, operation: Callable[..., Any], changes: Callable[..., bool]
    ) -> Callable[..., Any]:
        def counted(*words: Any, **named: Any) -> Any:
            positional = (*words, *(named[key] for key in ("mode", "flags") if key in named))
            if not changes(*positional):
                return operation(*words, **named)
            where = self._where(words[0])
            is_file = name == "fsync" and Path(where).is_file()
            if self._count == self._kill_at:
                if self._cut:
                    self._truncate(where, self._stat(where).st_size // 2)
                self._count += 1
                os.kill(os.getpid(), self._by)
            self._count += 1
            had_effect = name != "fsync" and not where.endswith(".lock")
            try:
                return operation(*words, **named)
            except OSError:
                had_effect = False
                raise
            finally:
                one = Operation(name, Path(where).name, had_effect, is_file)
                self._write(self._log, (json.dumps(asdict(one)) + "\n").encode())

        return counted

    @staticmethod
    def _where(path: Any) -> str:
        return str(Path(f"/proc/self/fd/{path}").readlink()) if isinstance(path, int) else os.fspath(path)


if __name__ == "__main__":
    _serve()
