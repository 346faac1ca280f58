"""Answers to a list of instances as they come: a live table on a terminal, plain lines elsewhere."""

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from robustly.certification.answers import WORDS
from robustly.certification.instances import Instance
from robustly.cli.verifying_results import Result
from robustly.output_text import plain_text

COLOURS = {"unsat": "green", "sat": "yellow", "timeout": "magenta", "unknown": "magenta", "error": "red"}
_REST = 8  # lines of the terminal for header, totals and the prompt


class Answers:
    """The answers so far, printed as lines.

    Args:
        console: where to print.
        total: number of instances.
        earlier: answers of an earlier run.
    """

    def __init__(self, console: Console, total: int, earlier: Sequence[Result]) -> None:
        self._console, self._total = console, total
        self._results = list(earlier)
        self._running: dict[tuple[str, str], tuple[Instance, float]] = {}

    def started(self, one: Instance) -> None:
        """Show an instance as running."""
        self._running[one.key] = one, time.monotonic()

    def finished(self, result: Result) -> None:
        """Show an answer."""
        self._running.pop(result.key, None)
        self._results.append(result)
        if not self._console.is_terminal or result.is_wrong:
            self._console.print(self._line(result), style="bold red" if result.is_wrong else "", markup=False)

    def totals(self) -> str:
        """One line on all answers."""
        results = self._results
        counts = Counter(result.result for result in results)
        parts = ", ".join(f"{counts[word]} {word}" for word in WORDS)
        line = f"{len(results)} of {self._total}: {parts}"
        if results:
            seconds = [result.seconds for result in results]
            line += f"; median {statistics.median(seconds):.2f} s, sum {sum(seconds):.0f} s"
        checked = [result for result in results if result.expected]
        if checked:
            right = sum(result.result == result.expected for result in checked)
            wrong = sum(result.is_wrong for result in checked)
            line += f"; {right} of {len(checked)} as expected, " + (f"{wrong} WRONG" if wrong else "none wrong")
        return line

    def table(self) -> Group:
        """The last answers and the running instances, and the totals."""
        drawn = Table(box=SIMPLE, padding=(0, 1, 0, 0), expand=True)
        for name in ("network", "property"):
            drawn.add_column(name, overflow="ellipsis", no_wrap=True, ratio=3)
        for name in ("answer", "seconds", "stage", "domains"):
            drawn.add_column(name, justify="left" if name in {"answer", "stage"} else "right", no_wrap=True)
        running = list(self._running.values())
        room = max(1, self._console.height - _REST - len(running))
        for result in self._results[-room:]:
            answer = Text(result.result, COLOURS[result.result])
            if result.is_wrong:
                answer = Text(f"{result.result} WRONG", "bold reverse red")
            work = str(result.work) if result.work else ""
            drawn.add_row(*_names(result), answer, f"{result.seconds:.2f}", Text(result.stage), work)
        for one, began in running:
            drawn.add_row(*_names(one), Text("...", "dim"), f"{time.monotonic() - began:.0f}", "", "")
        return Group(drawn, Text(self.totals()))

    def _line(self, result: Result) -> str:
        network, property_ = (text.plain for text in _names(result))
        wrong = f"WRONG (expected {result.expected}): " if result.is_wrong else ""
        how = f"  {result.stage} {result.work}" if result.stage else ""
        reason = f"  ({result.reason})" if result.reason else ""
        return (
            f"{wrong}[{len(self._results)}/{self._total}] {result.result:7} {result.seconds:8.2f} s  {network}  "
            f"{property_}{how}{plain_text(reason)}"
        )


@contextmanager
def watched(console: Console, total: int, earlier: Sequence[Result]) -> Iterator[Answers]:
    """Show answers while the block runs; at its end, or when it is interrupted, print the totals."""
    answers = Answers(console, total, earlier)
    if earlier:
        console.print(f"{len(earlier)} of {total} answers are there already", markup=False)
    try:
        if console.is_terminal:
            with Live(
                get_renderable=answers.table, console=console, refresh_per_second=4, vertical_overflow="crop"
            ):
                yield answers
        else:
            yield answers
    finally:
        for result in earlier:
            if result.is_wrong:
                console.print(answers._line(result), style="bold red", markup=False)
        if not console.is_terminal:  # the table has them
            console.print(answers.totals(), markup=False)


def _names(one: Instance | Result) -> tuple[Text, Text]:
    network, property_ = (Path(name.removesuffix(".gz")).stem for name in (one.onnx, one.vnnlib))
    return Text(plain_text(network)), Text(plain_text(property_))
