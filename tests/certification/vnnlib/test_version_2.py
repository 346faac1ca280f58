"""VNN-LIB 2: linear queries on one network; the rest is named."""

from fractions import Fraction

import pytest
import torch

from robustly.certification.vnnlib import UnsupportedQueryError, VnnlibError, read_vnnlib, witness_text

pytest.importorskip("vnnlib")

HEAD = """; a comment
(vnnlib-version <2.0>)
(declare-network f
  (declare-input X float32 [1,2,2])
  (declare-output Y float32 [1,2])
)
"""
BOX = HEAD + "".join(
    f"(assert (and (>= X[0,{i},{j}] -{i}.{j}) (<= X[0,{i},{j}] 1.5)))\n" for i in (0, 1) for j in (0, 1)
)


def test_elements_are_numbered_in_c_order() -> None:
    query = read_vnnlib(BOX + "(assert (<= (- (* 2.0 Y[0,1]) Y[0,0] 0.5) (- 1.0)))")
    assert (query.version, query.inputs, query.outputs) == (2, 4, 2)
    (case,) = query.cases
    assert case.box.least.tolist() == pytest.approx([0, -0.1, -1, -1.1])
    assert case.specification.rows.tolist() == [[[-1, 2]]]
    assert case.specification.offset.tolist() == [[0.5]]


def test_equal_and_not_equal() -> None:
    query = read_vnnlib(BOX + "(assert (== Y[0,0] 1.0))(assert (!= Y[0,1] 0.0))")
    specification = query.cases[0].specification
    assert specification.disjunct.tolist() == [0, 0, 0, 1, 1, 1]
    assert specification.strict.tolist() == [False, False, True] * 2


def test_scientific_numbers_are_exact() -> None:
    query = read_vnnlib(BOX + "(assert (<= Y[0,0] -2.5e-3))(assert (>= Y[0,0] -1e+2))")
    assert query.cases[0].disjuncts[0][0].left.constant == Fraction(1, 400)
    assert query.cases[0].specification.offset.tolist() == [[pytest.approx(0.0025, abs=1e-18), -100.0]]


def test_numbers_at_the_border_of_what_the_package_reads() -> None:
    text = BOX.replace("; a comment", "; 1e999, \u0663") + f"(assert (<= Y[0,0] {2**63}))(assert (>= Y[0,1] -0.0))"
    constants = [condition.left.constant for condition in read_vnnlib(text).cases[0].disjuncts[0]]
    assert constants == [-(2**63), 0]
    assert read_vnnlib(BOX + "(assert (>= X[0,0,0] 1e308))").remark.startswith("vacuous: the bounds X_0 >= 1e+308")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "(assert (<= X[0,2,0] 1.0))", "p, line 7, column 13: Index out of bounds"),
        (HEAD + "\n(assert (<= Z[0] 1.0))", "p, line 8, column 13: Undeclared variable"),
        (HEAD + "(assert (<= Y[0,0] 1.0)", "p, line 7, column 22: syntax error"),
        ("(vnnlib-version <3.1>)", "p, line 1, column 22: syntax error"),
        (
            HEAD + "(assert (<= Y[0,0] 1.0))",
            "every input needs a lower and an upper bound; missing are X_0 (lower)",
        ),
        (
            HEAD + "(assert (<= Y[0,0] 1e-999))",
            "p, line 7, column 20: the number 1e-999 has an exponent beyond 400",
        ),
        (
            HEAD + "\n(assert (>= X[0,0,0] 1e400))",
            "p, line 8, column 22: the number 1e400 is beyond the range of float64",
        ),
        (
            HEAD + "(assert (or (<= Y[0,0] -1e350) (<= Y[0,1] 0.0)))",
            "p, line 7, column 24: the number -1e350 is beyond",
        ),
        (
            HEAD + "(assert (<= Y[0,0] 1e-310))",
            "p, line 7, column 20: the number 1e-310 is beyond the range of float64",
        ),
        (HEAD + f"(assert (<= Y[0,0] {'9' * 400}))", "p, line 7, column 20: the number 9999"),
        (HEAD + f"(assert (<= Y[0,0] 0.{'9' * 5000}))", "or more than 1000 characters"),
        (HEAD + "(assert (<= Y[0,0] nan))", "p, line 7, column 20: Undeclared variable 'nan'"),
        (
            HEAD + "(assert (<= Y[0,0] \u0663))",
            "p, line 7, column 20: a character that is not ASCII outside comments",
        ),
        (
            BOX.replace("1.5", "1.5e39"),
            "p, line 7, column 46: the bound 1.5e+39 of X_0 is beyond the range of float32",
        ),
    ],
)
def test_a_mistake_has_its_place(text: str, message: str) -> None:
    with pytest.raises(VnnlibError) as refused:
        read_vnnlib(text, "p")
    assert message in str(refused.value)
    assert not isinstance(refused.value, UnsupportedQueryError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOX + "(assert (<= (* Y[0,0] X[0,0,0]) 1.0))", "polynomial term"),
        (
            BOX.replace(
                ")\n(assert", ")\n(declare-network g (equal-to f) (declare-input A float32 [1,2,2]) "
                "(declare-output B float32 [1,2]))\n(assert", 1,
            ),
            "2 networks (f, g)",
        ),
        (
            BOX.replace("(declare-output", "(declare-input Z float32 [1])\n(declare-output"),
            "2 inputs (X, Z)",
        ),
        (BOX.replace("float32", "int64").replace(".0)", ")").replace(".1)", ")").replace("1.5", "1"), "type I64"),
    ],
)  # fmt: skip
def test_other_kinds_are_named(text: str, message: str) -> None:
    with pytest.raises(UnsupportedQueryError) as refused:
        read_vnnlib(text, "p")
    assert message in str(refused.value)


def test_witness_of_version_2() -> None:
    query = read_vnnlib(BOX)
    x, y = torch.tensor([0.0, 0.1, 1.0, -0.5]), torch.tensor([2.0, 1e-3])
    lines = witness_text(query, x, y).splitlines()
    assert lines[0] == "X float32 [1,2,2]"
    assert lines[5] == "Y float32 [1,2]"
    assert torch.tensor([float(line) for line in lines[1:5]]).equal(x)
    assert torch.tensor([float(line) for line in lines[6:]]).equal(y)
