"""Normal form: cases, boxes around and inside decimals, and exact checks of counterexamples."""

from decimal import Decimal
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from robustly.certification.vnnlib import UnsupportedQueryError, VnnlibError, read_vnnlib

HEAD = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1"))
BOX = HEAD + "(assert (and (<= 0 X_0 1) (<= 0 X_1 1)))\n"


def test_two_boxes_in_one_assertion() -> None:
    text = (
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (or (and (<= X_0 -1)(>= X_0 -2)(>= Y_0 0)) "
        "(and (<= X_0 2)(>= X_0 1)(>= Y_0 0))))"
    )
    cases = read_vnnlib(text).cases
    assert [(float(case.box.lower), float(case.box.upper)) for case in cases] == [(-2, -1), (1, 2)]
    assert all(case.specification.rows.tolist() == [[[-1.0]]] for case in cases)


def test_cases_with_the_same_box_are_one() -> None:
    low, high = "(and (<= X_0 0.25) (<= Y_0 Y_1))", "(and (>= X_0 0.75) (<= Y_0 Y_1))"
    again = "(and (<= X_0 0.9) (<= X_0 0.25) (>= Y_0 7))"
    cases = read_vnnlib(f"{BOX}(assert (or {low} {high} {again}))").cases
    assert [case.specification.disjuncts for case in cases] == [2, 1]
    assert cases[0].box.upper.tolist() == [0.25, 1]
    assert cases[1].box.lower.tolist() == [0.75, 0]


def test_property_6_of_acas_xu_has_two_boxes_of_four(shared_data: Path) -> None:
    query = read_vnnlib(shared_data / "verify/acasxu/vnnlib/prop_6.vnnlib.gz")
    assert [case.specification.disjunct.tolist() for case in query.cases] == [[0, 1, 2, 3]] * 2
    assert query.cases[0].specification.rows[0, 2].tolist() == [-1, 0, 0, 1, 0]


LEAVES = [f"(<= {left} {right})" for left, right in (("X_0", "0.5"), ("Y_0", "Y_1"), ("0.25", "X_1"), ("Y_1", "0"))]
FORMULAS = st.recursive(
    st.sampled_from(LEAVES),
    lambda part: st.builds(
        lambda name, parts: f"({name} {' '.join(parts)})",
        st.sampled_from(["and", "or"]),
        st.lists(part, min_size=1, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(FORMULAS)
def test_nesting_in_any_order_keeps_its_meaning(formula: str) -> None:
    query = read_vnnlib(f"{BOX}(assert {formula})")
    code = formula
    for leaf in LEAVES:
        _, left, right = leaf.strip("()").split()
        code = code.replace(leaf, f"({left} <= {right})")
    for truth in product([0.0, 1.0], [0.0, 1.0], [-1.0, 1.0], [-1.0, 0.0, 1.0]):
        names = dict(zip(("X_0", "X_1", "Y_0", "Y_1"), truth, strict=True))
        x, y = torch.tensor(truth[:2]), torch.tensor(truth[2:])
        assert any(case.violated(x, y) for case in query.cases) == evaluated(code, names)


def evaluated(code: str, names: dict[str, float]) -> bool:
    """Value of a formula in prefix notation, by a reader of its own."""
    words = code.replace("(", " ( ").replace(")", " ) ").split()

    def read(at: int) -> tuple[bool, int]:
        if words[at + 2] == "<=":
            sides = [
                names.get(words[at + i], 0.0) if "_" in words[at + i] else float(words[at + i]) for i in (1, 3)
            ]
            return sides[0] <= sides[1], at + 5
        name, at, parts = words[at + 1], at + 2, []
        while words[at] != ")":
            part, at = read(at)
            parts.append(part)
        return (all if name == "and" else any)(parts), at + 1

    return read(0)[0]


@settings(max_examples=60)
@example(Decimal("0.01953125"), Decimal("1e-9"), "<")  # a float32 number on the border, and none inside
@given(st.decimals(-10, 10, places=12), st.decimals(0, 1, places=9), st.sampled_from(["<", "<="]))
def test_boxes_enclose_decimals_and_witnesses_are_inside(low: object, width: object, sign: str) -> None:
    lower, upper = Fraction(str(low)), Fraction(str(low)) + Fraction(str(width))
    text = (
        "(declare-const X_0 Real)(declare-const Y_0 Real)"
        f"(assert ({sign} X_0 (+ {low} {width})))(assert ({sign} {low} X_0))"
    )
    query = read_vnnlib(text.replace("E", "e"))
    if not query.cases:
        assert sign == "<"
        assert lower == upper
        return
    box = query.cases[0].box
    assert Fraction(float(box.lower)) <= lower
    assert Fraction(float(box.upper)) >= upper
    least, most = Fraction(float(box.least)), Fraction(float(box.most))
    inside = lower < least < upper if sign == "<" else lower <= least <= upper
    if least == most and not inside:  # no float32 number is between the bounds
        assert least in (
            Fraction(float(np.float32(one))) for one in (float(lower), float(upper), float(lower + upper) / 2)
        )
        assert box.lower <= box.least.double() <= box.upper
        return
    before = float(np.nextafter(np.float32(float(box.least)), np.float32(-np.inf)))
    after = float(np.nextafter(np.float32(float(box.most)), np.float32(np.inf)))
    if sign == "<=":
        assert Fraction(before) < lower <= least
        assert most <= upper < Fraction(after)
    else:
        assert Fraction(before) <= lower < least
        assert most < upper <= Fraction(after)


def test_decimals_that_are_no_floats() -> None:
    (case,) = read_vnnlib(f"{BOX}(assert (and (>= X_0 0.1) (<= X_0 0.7) (= X_1 0.1)))").cases
    assert float(case.box.least[0]) == float(np.float32(0.1)) > 0.1
    assert float(np.float32(0.7)) < 0.7
    assert float(case.box.most[0]) == float(np.float32(0.7))
    assert case.box.lower[1] <= 0.1 < float(np.float32(0.1)) <= case.box.upper[1]
    assert case.box.least[1] == case.box.most[1] == torch.tensor(0.1)


@pytest.mark.parametrize(
    ("assertions", "words"),
    [
        ("(assert (>= X_0 2))", "X_0 >= 2.0 and X_0 <= 1.0"),
        ("(assert (< X_1 0))", "X_1 >= 0.0 and X_1 <= 0.0"),
        ("(assert (or (>= X_0 2) (<= X_1 -1)))", "contradict"),
        ("(assert (>= X_0 1e350))", "X_0 >= 1.00000e+350 and X_0 <= 1.0 contradict"),
        ("(assert (<= X_1 -1e400))", "X_1 >= 0.0 and X_1 <= -1.00000e+400 contradict"),
        ("(assert (>= X_0 1e39))", "X_0 >= 1e+39 and X_0 <= 1.0 contradict"),
        ("(assert (>= (* 1e-300 X_0) 1e400))", "X_0 >= 1.00000e+700 and X_0 <= 1.0 contradict"),
        ("(assert (or (>= X_0 1e400) (<= X_1 -1e400)))", "contradict"),
        ("(assert (<= 1e400 0))", "its conditions contradict"),
        ("(assert (<= 1 0))", "its conditions contradict"),
        ("(assert (or))", "its conditions contradict"),
    ],
)
def test_contradictions_are_vacuous(assertions: str, words: str) -> None:
    query = read_vnnlib(BOX + assertions)
    assert query.cases == ()
    assert query.remark.startswith("vacuous: ")
    assert words in query.remark


def test_inputs_without_bounds_are_listed() -> None:
    with pytest.raises(VnnlibError, match=r"missing are X_0 \(upper\), X_1 \(lower\), X_1 \(upper\)$"):
        read_vnnlib(HEAD + "(assert (>= X_0 0))(assert (<= Y_0 0))")
    with pytest.raises(VnnlibError, match=r"missing are X_1 \(upper\)"):
        read_vnnlib(HEAD + "(assert (<= 0 X_0 1))(assert (>= X_1 0))(assert (or (<= X_1 1) (<= Y_0 0)))")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("1e39", r"p, line 5, column 37: the bound 1e\+39 of X_1 is beyond the range of float32"),
        ("1e400", r"p, line 5, column 37: the bound 1\.00000e\+400 of X_1 is beyond the range of float32"),
        ("(* 1e30 1e20)", r"p: the bound 1e\+50 of X_1 is beyond the range of float32"),
    ],
)
def test_a_bound_beyond_float32_has_its_place(written: str, message: str) -> None:
    with pytest.raises(VnnlibError, match=message):
        read_vnnlib(BOX.replace("X_1 1)", f"X_1 {written})"), "p")


@pytest.mark.parametrize("bound", ["(>= X_0 -1e400)", "(<= X_0 1e350)", "(<= X_0 3.5e38)", "(>= X_0 -0.0)"])
def test_a_bound_beyond_a_tighter_one_changes_nothing(bound: str) -> None:
    for text in (f"{HEAD}(assert {bound})" + BOX[len(HEAD) :], f"{BOX}(assert (or (and {bound} (<= Y_0 0))))"):
        (case,) = read_vnnlib(f"{text}(assert (<= Y_0 0))").cases
        assert case.box.lower.tolist() == [0, 0]
        assert case.box.upper.tolist() == [1, 1]
        assert not torch.signbit(case.box.lower).any()


def test_a_wide_bound_of_all_cases_is_replaced_by_that_of_each() -> None:
    text = (
        BOX.replace("X_0 1)", "X_0 1e400)")
        + "(assert (or (and (<= X_0 2) (<= Y_0 0)) (and (<= X_0 3) (<= Y_1 0))))"
    )
    assert [case.box.upper.tolist() for case in read_vnnlib(text).cases] == [[2, 1], [3, 1]]
    (case,) = read_vnnlib(f"{BOX}(assert (or (>= X_0 1e400) (<= Y_0 0) (and (<= X_1 -1e350) (<= Y_1 0))))").cases
    assert case.specification.rows.tolist() == [[[1, 0]]]


@pytest.mark.parametrize(
    "condition", ["(<= Y_0 1e400)", "(>= Y_0 -1e400)", "(<= (* 1e400 Y_0) 0)", "(<= Y_0 (- 1e101))"]
)
def test_conditions_on_outputs_beyond_float64_are_not_supported(condition: str) -> None:
    with pytest.raises(
        UnsupportedQueryError, match=r"p, line 6, column \d+: a condition has a number beyond 1e\+100"
    ):
        read_vnnlib(f"{BOX}(assert {condition})", "p")
    with pytest.raises(VnnlibError, match=r"p, line 6, column 17: expected X_i, Y_j or a number .* found 'nan'"):
        read_vnnlib(f"{BOX}(assert (<= Y_0 nan))", "p")


def test_numbers_smaller_than_float64_are_rounded_outwards() -> None:
    (case,) = read_vnnlib(f"{BOX}(assert (<= X_0 1e-400))(assert (<= (* 1e-400 Y_0) 1e-400))").cases
    assert case.box.upper[0] == 5e-324
    assert case.specification.offset.tolist() == [[-5e-324]]
    assert case.inexact is not None
    assert case.inexact.tolist() == [[5e-324, 0]]
    (case,) = read_vnnlib(f"{BOX}(assert (<= Y_0 -0.0))").cases
    assert case.violated(torch.zeros(2), torch.tensor([-0.0, 0.0]))


def test_a_property_without_outputs_is_violated_by_every_input() -> None:
    query = read_vnnlib(BOX)
    assert "every input in the box violates it" in query.remark
    assert bool(query.cases[0].specification.violated(torch.tensor([[5.0, 5.0]], dtype=torch.float64)))
    assert query.cases[0].violated(torch.tensor([0.5, 0.5]), torch.zeros(2))


def test_conditions_on_inputs_become_rows_over_inputs() -> None:
    (case,) = read_vnnlib(f"{BOX}(assert (<= (+ X_0 X_1) 1))(assert (>= Y_0 X_1))").cases
    assert case.reads_inputs
    assert case.specification.rows[0].tolist() == [[0, 0, 1, 1], [-1, 0, 0, 1]]
    y = torch.tensor([1.0, 0.0])
    assert case.violated(torch.tensor([0.5, 0.5]), y)
    assert not case.violated(torch.tensor([0.5, 0.50001]), y)
    assert not case.violated(torch.tensor([1.5, -0.5]), y)


def test_factors_that_are_no_floats_have_error_bounds_and_offsets_are_rounded_down() -> None:
    (case,) = read_vnnlib(f"{BOX}(assert (<= (* 0.1 Y_0) (+ Y_1 0.3)))").cases
    row, offset = case.specification.rows[0, 0], case.specification.offset[0, 0]
    assert case.inexact is not None
    error = abs(Fraction(float(row[0])) - Fraction(1, 10))
    assert error <= Fraction(float(case.inexact[0, 0])) < 2 * error
    assert case.inexact[0, 1] == 0
    assert Fraction(float(offset)) <= Fraction(-3, 10) < Fraction(float(np.nextafter(float(offset), 1)))


def test_counterexamples_are_checked_without_rounding() -> None:
    (case,) = read_vnnlib(f"{BOX}(assert (<= Y_0 0.1))").cases
    x, tenth = torch.tensor([0.5, 0.5]), torch.tensor([0.1, 0.0])
    assert not case.violated(x, tenth)  # float32(0.1) is above 0.1
    assert case.violated(x, torch.nextafter(tenth, torch.tensor(-1.0)))
    assert not case.violated(x, torch.tensor([float("nan"), 0.0]))
    (strict,) = read_vnnlib(f"{BOX}(assert (< Y_0 0.5))").cases
    assert not strict.violated(x, torch.tensor([0.5, 0.0]))


def test_inputs_are_moved_into_the_written_box() -> None:
    (case,) = read_vnnlib(f"{BOX}(assert (and (<= X_0 0.3) (<= Y_0 0)))").cases
    moved = case.clamped(torch.tensor([[[0.3, 2.0]]]))
    assert moved.dtype == torch.float32
    assert Fraction(float(moved[0, 0])) <= Fraction(3, 10)
    assert moved[0, 1] == 1


def test_a_file_from_windows(tmp_path: Path) -> None:
    file = tmp_path / "p.vnnlib"
    file.write_bytes(b"\xef\xbb\xbf" + f"{BOX}(assert (<= Y_0 0))".replace("\n", "\r\n").encode())
    assert len(read_vnnlib(file).cases) == 1


def test_too_many_boxes_are_refused_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = " ".join(f"(and (<= X_0 0.{place}) (<= Y_0 0))" for place in range(1, 6))
    monkeypatch.setattr("robustly.certification.vnnlib.query.LARGEST_BOXES", 10)
    assert len(read_vnnlib(f"{BOX}(assert (or {boxes}))").cases) == 5
    with pytest.raises(UnsupportedQueryError, match="6 boxes of 2 inputs; the most bounds of all boxes are 10"):
        read_vnnlib(f"{BOX}(assert (or (<= X_0 0.6) {boxes}))")
