"""Functions shared by tests of commands."""

import pytest

from robustly.cli import main


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a refused command: one sentence, no traceback."""
    assert main(list(words)) == 2
    said = capsys.readouterr().err
    assert said.startswith("robustly: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said
