"""Progress of an evaluation: a live bar on a terminal, a line that changes in a notebook, a few lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as LiveBar

from robustly.evaluation.target import Progress, no_progress
from robustly.output_text import plain_text

_SECONDS = 0.2
"""Shortest time between two texts in a notebook."""
LINE_SECONDS = 30.0
"""Shortest time between two lines in a file."""


@contextmanager
def evaluation_progress(console: Console) -> Iterator[Progress]:
    """Callback for `evaluate` that shows the finished examples of each attack."""
    line = None if console.quiet else _notebook_line()
    if line is not None:
        began, end = time.monotonic(), "stopped after"
        try:
            yield _in_notebook(line)
            end = "finished in"
        finally:
            line.update({"text/plain": f"evaluation {end} {time.monotonic() - began:.0f} s"}, raw=True)
    elif console.is_terminal:
        with LiveBar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        ) as bar:
            yield _in_terminal(bar)
    elif console.quiet:
        yield no_progress
    else:
        yield _in_lines(console)


def _in_terminal(bar: LiveBar) -> Progress:
    tasks: dict[str, Any] = {}

    def progress(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bar.add_task(plain_text(name), total=total)
        bar.update(tasks[name], completed=done, total=total)

    return progress


def _in_lines(console: Console) -> Progress:
    """Plain lines for files: none in the first seconds, so that short evaluations print nothing."""
    shown = [time.monotonic()]

    def progress(name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - shown[0] >= LINE_SECONDS:
            shown[0] = now
            console.print(f"{plain_text(name)}: {done} of {total}", highlight=False, soft_wrap=True, markup=False)

    return progress


def _in_notebook(line: Any) -> Progress:
    shown = [0.0]

    def progress(name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - shown[0] < _SECONDS:
            return
        shown[0] = now
        line.update({"text/plain": f"{plain_text(name)}: {done} of {total}"}, raw=True)

    return progress


def _notebook_line() -> Any:
    """A display of IPython whose text can be changed; None outside of notebooks."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display  # noqa: PLC0415 only in a notebook, where it is imported already

    return display({"text/plain": "evaluation begins"}, raw=True, display_id=True)  # type: ignore[no-untyped-call]
