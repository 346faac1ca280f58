"""Names from files on terminals and in spreadsheets."""

import io

import pytest
from rich.table import Table

from robustly.cli.terminal import PlainConsole
from robustly.output_text import csv_cell, first_line, listed, one_line, plain_text, typed_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "?[31mred?"),
        ("a\nb\tc", "a?b?c"),
        ("\x9b2J", "?2J"),
        ("a\u202eb\u2066c\ud800\u2028", "a?b?c??"),
        ("naïve 数据 \U0001f600", "naïve 数据 \U0001f600"),
    ],
)
def test_control_characters_are_replaced(text: str, shown: str) -> None:
    assert plain_text(text) == shown
    assert plain_text("a\nb", kept="\n") == "a\nb"


def test_a_sentence_is_one_line() -> None:
    assert one_line("a\n  b\x1b[2J\r\n") == "a b?[2J"


@pytest.mark.parametrize(
    ("message", "line"),
    [("no room", "no room"), ("\n \n  it is\nbroken", "it is"), ("x" * 500, "x" * 160), ("\u2028b", "b")],
)
def test_the_reason_of_an_error_is_one_line(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
    assert typed_line(ValueError(message)) == f"ValueError: {line}"


@pytest.mark.parametrize("message", ["", " \n\t\n"])
def test_an_error_without_a_message_is_named_by_its_class(message: str) -> None:
    assert first_line(ZeroDivisionError(message)) == "ZeroDivisionError"
    assert typed_line(ZeroDivisionError(message)) == "ZeroDivisionError"


def test_a_long_list_is_cut_and_counted() -> None:
    assert [listed("abcdefgh"[:length]) for length in (0, 1, 6, 7, 8)] == [
        "",
        "a",
        "a, b, c, d, e, f",
        "a, b, c, d, e, f and 1 more",
        "a, b, c, d, e, f and 2 more",
    ]
    assert listed(name for name in ("x", "y")) == "x, y"


def test_a_console_prints_no_escapes_of_names() -> None:
    stream = io.StringIO()
    console = PlainConsole(width=80)
    console.file = stream
    console.print("name \x1b[2J\x9b1m")
    console.print("\x1b]0;title\x07", markup=False, highlight=False, soft_wrap=True)
    table = Table(title="t\x1b[1m")
    table.add_column("c\x1b[1m")
    table.add_row("cell\x1b[5m\nnext")
    console.print(table)
    assert not [one for one in stream.getvalue() if one != "\n" and not one.isprintable()]
    assert "cell?" in stream.getvalue()


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+SUM(A1)", "'+SUM(A1)"),
        ("@x", "'@x"),
        ("\tx", "'\tx"),
        ("-x", "'-x"),
        ("-1.5", "-1.5"),
        ("+3", "+3"),
        (-2, "-2"),
        ("-inf", "'-inf"),
        ("a=b", "a=b"),
        ("\x1b=1", "?=1"),
        ("", ""),
    ],
)
def test_formulas_become_text(value: object, cell: str) -> None:
    assert csv_cell(value) == cell
