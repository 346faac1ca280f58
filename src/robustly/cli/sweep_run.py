"""One run of a sweep as child processes, so that a crash or a lack of memory costs that run only."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from robustly.experiments.run_folder import EVALUATION
from robustly.experiments.sweep_folders import state_of

if sys.platform != "win32":
    import fcntl

LOG = "output.log"
LOCK = ".lock"
PATIENCE = 15.0


@dataclass(frozen=True)
class Launch:
    """What is to be done for one run; it travels to other machines as it is.

    Args:
        name: the run's name.
        folder: its folder, from the root, with its settings in it.
        evaluate: whether it is evaluated after training.
        threads: threads that it computes with, unless it began with another number.
        trust_code: whether models that its settings name may be imported.
        started_in: the folder where `robustly sweep` was started.
    """

    name: str
    folder: Path
    evaluate: bool
    threads: int
    trust_code: bool
    started_in: Path


def carry_out(
    launch: Launch,
    stop: threading.Event,
    environment: dict[str, str] | None = None,
    waits: Callable[[], None] | None = None,
) -> str:
    """Train what is not trained, evaluate what is not evaluated; waits for another process that is at it already.

    Args:
        launch: what to do.
        stop: when set, the children are stopped; what they saved is kept.
        environment: variables of the children beside those of this process.
        waits: told once if another process is at it.

    Returns:
        Why it failed; empty if all is done, or if it was stopped.
    """
    try:
        with _alone_with(launch.folder, stop, waits or _nothing) as lock:
            return "" if lock is None else _train_and_evaluate(launch, lock, stop, environment or {})
    except (ValueError, OSError) as error:
        return str(error)


def _nothing() -> None:
    pass


def _train_and_evaluate(launch: Launch, lock: int, stop: threading.Event, environment: dict[str, str]) -> str:
    state = state_of(launch.folder, launch.evaluate)
    if state.state == "diverged":
        return state.message
    # the last bits of sums depend on the number of threads: a run ends with the number that it began with
    threads = str(state.threads or launch.threads)
    variables = {**os.environ, **environment, "OMP_NUM_THREADS": threads, "COLUMNS": "120"}
    trust = ["--trust-code"] if launch.trust_code else []
    if state.state in ("waiting", "unfinished"):
        words = ["train", "--resume", str(launch.folder), *trust]
        reason = _child(words, launch, variables, lock, stop)
        if reason or stop.is_set() or not launch.evaluate:
            return reason
    if state_of(launch.folder, launch.evaluate).state == "trained":
        half_written = ["--overwrite"] if (launch.folder / EVALUATION).exists() else []
        words = ["evaluate", str(launch.folder), *half_written, *trust]
        reason = _child(words, launch, variables, lock, stop)
        return f"evaluation: {reason}" if reason else ""
    return ""


@contextmanager
def _alone_with(folder: Path, stop: threading.Event, waits: Callable[[], None]) -> Iterator[int | None]:
    """A lock that the children inherit: it outlives this process for as long as one of them works in the folder.

    So nobody trains a run twice at a time, not even after a sweep was killed whose children went on.
    """
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        tell = waits
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell()
                tell = _nothing
                if stop.wait(0.5):
                    yield None
                    return
            else:
                yield lock
                return
    finally:
        os.close(lock)


def _child(words: list[str], launch: Launch, variables: dict[str, str], lock: int, stop: threading.Event) -> str:
    """Run `robustly` with its output in the run's folder; returns why it failed."""
    with (launch.folder / LOG).open("ab") as log:
        log.write(f"$ robustly {' '.join(words)}\n".encode())
        log.flush()
        began = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "robustly", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            cwd=launch.started_in,
            pass_fds=(lock,),
            process_group=0,  # Ctrl-C in a terminal reaches this process only, which then stops each child once
        )
        try:
            while process.poll() is None:
                if stop.wait(0.1):
                    _end(process)
                    return ""
        except BaseException:
            _end(process)
            raise
    return "" if process.returncode == 0 else _reason(launch.folder / LOG, began, process.returncode)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a child and all of its own to stop, as Ctrl-C does; insist after a while."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(PATIENCE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
        return


def _reason(log: Path, began: int, code: int) -> str:
    """Why a child failed: its own sentence, its last words, or the signal that ended it."""
    with log.open("rb") as content:
        content.seek(began)
        lines = [line.strip() for line in content.read().decode(errors="replace").splitlines() if line.strip()]
    if code < 0:
        hint = ": was there too little memory?" if -code == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{hint}"
    said = [line.removeprefix("robustly: ") for line in lines if line.startswith("robustly: ")]
    return said[-1] if said else f"exit code {code}: {lines[-1] if lines else 'no output'}"


def _hear_nothing(number: int, frame: FrameType | None) -> None:
    pass


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal stop a sweep as Ctrl-C does: the children must not stay behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # started in the background: children would inherit the deafness, and they are stopped by that signal
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _hear_nothing)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
