"""Commands that tests start in processes of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(
    *words: str, command: str = "evaluate", launcher: tuple[str, ...] = (), variables: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a command; the variables are added to the environment."""
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "robustly", command, *words],
        env=ENVIRONMENT | (variables or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(process: int) -> list[int]:
    """Processes that a process has started to evaluate with it."""
    found = []
    for item in Path("/proc").iterdir():
        if item.name.isdigit():
            try:
                parent = int((item / "stat").read_text().rpartition(")")[2].split()[1])
                words = (item / "cmdline").read_text()
            except OSError:
                continue
            if parent == process and "spawn_main" in words:
                found.append(int(item.name))
    return found


def wait_for(is_there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while not is_there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
