"""Functions shared by tests of commands."""

import threading
from collections.abc import Mapping

import pytest

from robustly.cli import main
from robustly.experiments.sweeps import Cell


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a refused command: one sentence, no traceback."""
    assert main(list(words)) == 2
    said = capsys.readouterr().err
    assert said.startswith("robustly: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said


def in_process(cell: Cell, stop: threading.Event, environment: Mapping[str, str]) -> str:
    """Carry out a cell of a sweep in this process, without the start of others."""
    for words in cell.commands:
        if main(words) != 0:
            return f"{words[0]} failed"
    return ""
