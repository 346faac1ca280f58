"""What tests of commands share."""

import pytest

from robustly.cli import main


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a refused command says: one sentence, no traceback."""
    assert main(list(words)) == 2
    said = capsys.readouterr().err
    assert said.startswith("robustly: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said
