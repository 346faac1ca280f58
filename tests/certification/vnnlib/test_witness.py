"""Printed counterexamples are the float32 values, digit by digit."""

import re
from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from robustly.certification.vnnlib import read_vnnlib, result_word, witness_text

TEXT = "(declare-const X_0 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)(assert (<= -1 X_0 1))"


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_what_is_printed_is_the_value(values: list[float]) -> None:
    x, y = torch.tensor(values[:1]), torch.tensor(values[1:])
    written = witness_text(read_vnnlib(TEXT), x, y)
    pairs = re.findall(r"\(([XY]_\d+) ([-+.e0-9]+)\)", written)
    assert [name for name, _ in pairs] == ["X_0", "Y_0", "Y_1"]
    assert [Fraction(text) for _, text in pairs] == [Fraction(value) for value in values]
    assert written.startswith("((X_0 ")
    assert written.endswith("))\n")


def test_words() -> None:
    assert [result_word(word, 2) for word in ("sat", "timeout")] == ["sat", "timed-out"]
    assert result_word("timeout", 1) == "timeout"
