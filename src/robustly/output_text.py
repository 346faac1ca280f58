"""Names and numbers of files as text that is safe on a terminal and in a spreadsheet."""

import math
import unicodedata
from collections.abc import Iterable

REPLACEMENT = "?"
"""Shown instead of a character that would control the terminal."""
LONGEST_REASON = 160
"""Characters of an error's message that `first_line` returns."""
LONGEST_LIST = 6
"""Names of a list that `listed` returns."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain_text(text: str, kept: str = "") -> str:
    """Text without characters that control a terminal or change the direction of writing.

    These are the control characters of ASCII and Latin-1, line separators, marks of direction, and halves of
    surrogate pairs. Each is replaced by `REPLACEMENT`.

    Args:
        text: any text, such as a name in a file from others.
        kept: control characters that may stay, such as a newline.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one in kept or not _controls(one) else REPLACEMENT for one in text)


def one_line(text: str) -> str:
    """Text on one line: white space joined, control characters replaced."""
    return plain_text(" ".join(text.split()))


def first_line(error: BaseException) -> str:
    """First line of an error's message that is not empty, at most `LONGEST_REASON` characters; else its class."""
    return _first_line(error) or type(error).__name__


def typed_line(error: BaseException) -> str:
    """Class of an error and `first_line` of its message, as `ValueError: it is empty`."""
    line, name = _first_line(error), type(error).__name__
    return f"{name}: {line}" if line else name


def listed(names: Iterable[str]) -> str:
    """The first `LONGEST_LIST` names of a list, separated by commas, and the number of the others."""
    every = list(names)
    more = f" and {len(every) - LONGEST_LIST} more" if len(every) > LONGEST_LIST else ""
    return ", ".join(every[:LONGEST_LIST]) + more


def csv_cell(value: object) -> str:
    """Text of a CSV cell that a spreadsheet does not take for a formula.

    Text that begins with one of `= + - @`, a tab or a carriage return gets a leading apostrophe. Numbers stay
    numbers.
    """
    text = plain_text(str(value), kept="\t\r\n")
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), "")[:LONGEST_REASON]


def _controls(character: str) -> bool:
    kind = unicodedata.category(character)
    marks = unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return kind in ("Cc", "Cs", "Zl", "Zp") or marks


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and text == text.strip()
    except ValueError:
        return False
