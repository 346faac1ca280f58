"""Text of VNN-LIB 1: what is read, and mistakes with line and column."""

import gzip
from fractions import Fraction
from pathlib import Path

import pytest

from robustly.certification.vnnlib import UnsupportedQueryError, VnnlibError, read_vnnlib
from robustly.certification.vnnlib.parser import parse

HEAD = "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOX = HEAD + "(assert (<= X_0 1))\n(assert (>= X_0 0))\n"


def rows(condition: str) -> list[tuple[list[float], float, bool]]:
    """Rows, offset and strictness of an assertion on the outputs."""
    (case,) = read_vnnlib(f"{BOX}(assert {condition})").cases
    specification = case.specification
    return [
        (row.tolist(), float(offset), bool(strict))
        for row, offset, strict in zip(
            specification.rows[0], specification.offset[0], specification.strict, strict=True
        )
    ]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("(<= Y_0 Y_1)", [([1, -1], 0, False)]),
        ("(>= Y_0 Y_1)", [([-1, 1], 0, False)]),
        ("(< Y_0 2)", [([1, 0], -2, True)]),
        ("(> Y_0 -2e1)", [([-1, 0], -20, True)]),
        ("(= Y_0 .5)", [([1, 0], -0.5, False), ([-1, 0], 0.5, False)]),
        ("(<= 0 Y_0 Y_1)", [([-1, 0], 0, False), ([1, -1], 0, False)]),
        ("(<= (+ Y_0 (* 2 Y_1) 1.) (- 3 Y_0))", [([2, 2], -2, False)]),
        ("(<= (- Y_0) (/ Y_1 4))", [([-1, -0.25], 0, False)]),
        ("(<= (* (- 3 1) (* 2 Y_0)) +8)", [([4, 0], -8, False)]),
        ("(and (<= Y_0 1) (and) true (<= Y_1 1))", [([1, 0], -1, False), ([0, 1], -1, False)]),
    ],
)
def test_conditions(condition: str, expected: list[tuple[list[float], float, bool]]) -> None:
    assert rows(condition) == expected


def test_comments_and_statements_of_other_tools_are_ignored() -> None:
    text = '; (assert (<= X_0\n(set-logic QF_LRA) (set-info :source "a ( ; b")' + BOX + "; end\n(check-sat)(exit)"
    assert len(read_vnnlib(text + "(declare-fun Y_2 () Real)").cases) == 1


def test_a_bound_is_read_the_same_in_every_spelling() -> None:
    plain = parse(BOX, "p").formula
    spaced = parse(HEAD + "( assert\n(<=\tX_0 ; one\n 1.0 ) )(assert (<= 0e0 X_0))", "p").formula
    assert [part.left for part in plain.parts] == [part.left for part in spaced.parts]
    assert plain.parts[0].left.constant == Fraction(-1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(assert (<= X_0 1)", "line 1, column 1: this '(' is not closed"),
        (BOX + "(assert (<= Y_0 Y_2))", "line 6, column 17: Y_2 is not declared before this place"),
        (BOX + "\n  (assert (<= Y_0 (* Y_0 Y_1)))", "line 7, column 19: a product of two variables"),
        (
            BOX + "(assert (=> (<= Y_0 1) (<= Y_1 1)))",
            "line 6, column 9: unknown condition '=>'; allowed are and, or,",
        ),
        (BOX + "(assert (<= Y_0 1,5))", "line 6, column 17: expected X_i, Y_j or a number"),
        (
            BOX + "(assert (<= Y_0 1e999999999))",
            "line 6, column 17: expected X_i, Y_j or a number with an exponent",
        ),
        (
            BOX + f"(assert (<= Y_0 {'9' * 5000}))",
            "line 6, column 17: expected X_i, Y_j or a number with an exponent",
        ),
        (BOX + f"(assert (<= X_0 1e{'9' * 5000}))", "to 400 and at most 1000 characters, found '1e999"),
        (BOX + "(assert (<= Y_0 \u0663))", "line 6, column 17: expected X_i, Y_j or a number"),
        (BOX + "(assert (<= Y_0))", "line 6, column 9: '<=' takes two sides, found 1"),
        (BOX + "(assert)", "line 6, column 1: assert takes one condition, found 0"),
        (BOX + "(assert Y_0)", "line 6, column 9: expected '(', found 'Y_0'"),
        (BOX + "(assert ((<= Y_0 1)))", "line 6, column 10: expected a name"),
        (BOX + "(assert ())", "line 6, column 9: an empty parenthesis"),
        (BOX + "(assert (<= Y_0 (/ 1 0)))", "line 6, column 22: division by a variable or by 0"),
        (BOX + ")", "line 6, column 1: expected '(', found ')'"),
        (BOX + '(set-info "a)', "line 6, column 11: a quoted text does not end"),
        (BOX + "(declare-const Y_1 Real)", "line 6, column 16: Y_1 is declared twice"),
        (BOX + "(declare-const Z Real)", "line 6, column 16: variable 'Z'; the names are X_0"),
        (BOX + "(declare-const Y_3 Int)", "line 6, column 20: type 'Int'; the only type is Real"),
        (BOX + "(declare-const Y_3 Real)", "p: Y_2 is not declared (1 missing below Y_4)"),
        (BOX + "(minimize Y_0)", "line 6, column 1: unknown statement 'minimize'"),
        (BOX + "(assert " + 300 * "(and " + 300 * ")" + ")", "line 6, column 1004: more than 200 parentheses"),
        ("", "p: no variable X_0 is declared"),
        ("\x00\x00", "line 1, column 1: expected '(', found"),
    ],
)
def test_a_mistake_has_its_place(text: str, message: str) -> None:
    with pytest.raises(VnnlibError) as refused:
        read_vnnlib(text, "p")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_explosion_is_refused_before_it_happens() -> None:
    both = "(assert (or (<= Y_0 0) (<= Y_1 0)))\n"
    assert read_vnnlib(BOX + 5 * both).cases[0].specification.disjuncts == 32
    with pytest.raises(UnsupportedQueryError, match="expand to 1099511627776 disjuncts"):
        read_vnnlib(BOX + 40 * both)
    with pytest.raises(UnsupportedQueryError, match=r"more than 10\^15 disjuncts"):
        read_vnnlib(BOX + 400 * both)


def test_gzipped_files_are_read_as_they_are(tmp_path: Path) -> None:
    packed, damaged, binary = (tmp_path / name for name in ("p.vnnlib.gz", "d.vnnlib.gz", "b.vnnlib"))
    packed.write_bytes(gzip.compress(BOX.encode()))
    damaged.write_bytes(packed.read_bytes()[:-9])
    binary.write_bytes(b"\xff\xfe(assert")
    assert read_vnnlib(packed).inputs == 1
    with pytest.raises(VnnlibError, match=r"d\.vnnlib\.gz: damaged gzip file"):
        read_vnnlib(damaged)
    with pytest.raises(VnnlibError, match=r"b\.vnnlib: not a text file"):
        read_vnnlib(binary)
