"""Places in the text of a property, for messages."""

import re
from fractions import Fraction

LONGEST_NUMBER = 1000
"""Most characters of a number."""

_NUMBER = re.compile(r";[^\n]*|(?<![\w.])(?P<number>(?:\d[\d.]*|\.\d+)(?:[eE][-+]?\d{1,9})?)(?![\w.])")


def line_and_column(text: str, at: int) -> str:
    """The place of a character as `, line 3, column 8`; both count from 1."""
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return f", line {line}, column {column}"


def place_of_number(text: str, value: Fraction) -> str:
    """The place of the first number of this magnitude, as `line_and_column` has it; empty if none is written.

    Args:
        text: contents of the file.
        value: the number, of either sign.
    """
    for match in _NUMBER.finditer(text):
        word = match["number"]
        if word is not None and len(word) <= LONGEST_NUMBER and word.count(".") <= 1 and _equal(word, abs(value)):
            return line_and_column(text, match.start())
    return ""


def _equal(word: str, value: Fraction) -> bool:
    exponent = re.split("[eE]", word)[1:]
    return (not exponent or abs(int(exponent[0])) <= LONGEST_NUMBER) and Fraction(word) == value
