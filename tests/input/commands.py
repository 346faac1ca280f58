"""Run a command in this process, and check how it refuses bad input."""

import contextlib
import io

from robustly.cli import main
from robustly.output_text import plain_text

LONGEST = 1200


def said(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    return code, out.getvalue(), err.getvalue()


def refusal(*words: str) -> str:
    """The one sentence with which a command refuses its input: exit code 2, no traceback, nothing but text."""
    code, out, err = said(*words)
    assert code == 2, (words, code, out[-500:], err[-2000:])
    check_sentence(err)
    check_plain(out)
    return err


def check_sentence(err: str) -> None:
    """Check that standard error is one printable sentence, apart from warnings."""
    lines = [line for line in err.split("\n")[:-1] if not line.startswith("warning: ")]
    assert err.endswith("\n")
    assert len(lines) == 1, err[-2000:]
    assert lines[0].startswith("robustly: ")
    assert plain_text(lines[0]) == lines[0], ascii(lines[0])
    assert len(lines[0]) <= LONGEST
    assert len(lines[0]) > 25, err


def check_plain(out: str) -> None:
    """Check that a text has no characters that control a terminal."""
    assert plain_text(out, kept="\n\t") == out, ascii(out[:2000])
