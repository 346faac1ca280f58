"""Threat models: what a person may write, what is refused and how, and that numbers stay exact."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustly.threats import parse_threat
from robustly.threats.contract import ThreatError
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.lp import NORMS, ThreatModel


@given(st.integers(0, 255))
def test_multiples_of_a_255th_are_exact(n: int) -> None:
    assert parse_epsilon(n / 255) == parse_epsilon(f"{n}/255") == parse_epsilon(f" {n} / 255 ") == Fraction(n, 255)


@pytest.mark.parametrize(
    ("written", "exact"),
    [
        (0.3, Fraction(3, 10)),
        ("0.3", Fraction(3, 10)),
        ("1e-3", Fraction(1, 1000)),
        (0, Fraction(0)),
        ("12", Fraction(12)),
        (0.031, Fraction(31, 1000)),
        ("0.5/255", Fraction(1, 510)),
        (Fraction(1, 3), Fraction(1, 3)),
        (1 / 3, Fraction(1, 3)),
    ],
)
def test_epsilon_as_people_write_it(written: float | str | Fraction, exact: Fraction) -> None:
    assert parse_epsilon(written) == exact


@given(st.floats(0, 1e6))
def test_the_fraction_of_a_float_rounds_to_it(value: float) -> None:
    assert float(parse_epsilon(value)) == value


@given(st.one_of(st.floats(0, 1), st.fractions(0, 1), st.fractions(0, 1, max_denominator=255)))
def test_a_threat_reads_back_from_its_text(epsilon: float | Fraction) -> None:
    threat = ThreatModel("linf", epsilon)
    assert parse_threat(str(threat)) == threat
    assert hash(parse_threat(str(threat))) == hash(threat)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(8, 255), "8/255"),
        (Fraction(1, 2), "0.5"),
        (Fraction(128, 255), "128/255"),
        (Fraction(31, 1000), "0.031"),
        (Fraction(12), "12"),
        (Fraction(1, 3), "85/255"),
        (Fraction(1, 7), "1/7"),
        (Fraction(0), "0"),
    ],
)
def test_the_text_of_a_radius(value: Fraction, text: str) -> None:
    assert fraction_text(value) == text


@pytest.mark.parametrize(
    ("norm", "epsilon", "box", "message"),
    [
        ("linf", 8, (0, 1), "did you mean 8/255"),
        ("linf", "8", (0, 1), "did you mean 8/255"),
        ("linf", 1.5, (0, 1), "did you mean 1.5/255"),
        ("linf", 300, (0, 1), r"wider than the box \[0, 1\]"),
        ("linf", -0.1, (0, 1), "at least 0, got -0.1"),
        ("l2", "-1/2", (0, 1), "at least 0, got -0.5"),
        ("l2", float("nan"), (0, 1), "finite number"),
        ("l2", float("inf"), (0, 1), "finite number"),
        ("l1", "inf", (0, 1), "finite number"),
        ("l1", "1e400", (0, 1), "finite number"),
        ("l1", "1e400/1", (0, 1), "finite number"),
        ("l2", "eight", (0, 1), "such as 0.3 or 8/255, got 'eight'"),
        ("l2", "8/0", (0, 1), "got '8/0'"),
        ("l2", "1/2/3", (0, 1), "got '1/2/3'"),
        ("l2", None, (0, 1), "got None"),
        ("l3", 0.1, (0, 1), "unknown norm 'l3': allowed are linf, l2, l1, l0"),
        ("l0", 2.5, (0, 1), "whole number, got 2.5"),
        ("l0", "8/255", (0, 1), "whole number, got 8/255"),
        ("linf", 0.1, (1, 0), "is empty"),
        ("linf", 0.1, (0, 0), "is empty"),
        ("linf", 0.1, (0, float("nan")), "is empty"),
        ("linf", 0.1, (0, 0.5, 1), "is empty"),
    ],
)
def test_nonsense_is_refused_with_a_hint(norm: str, epsilon: float, box: tuple[float, ...], message: str) -> None:
    with pytest.raises(ThreatError, match=message):
        ThreatModel(norm, epsilon, box)


def test_wide_epsilon_is_no_mistake_where_it_makes_sense() -> None:
    assert ThreatModel("linf", 8, box=(0, 255)).epsilon == 8
    assert ThreatModel("l1", 12).epsilon == 12
    assert ThreatModel("linf", 1).epsilon == 1
    with pytest.raises(ThreatError, match=r"\[-1, 1\].* 2\.5/255"):
        ThreatModel("linf", 2.5, box=(-1, 1))


def test_a_size_below_all_floats_is_zero() -> None:
    """Its exact fraction has a denominator of a billion digits."""
    assert ThreatModel("linf", "1e-999999999").epsilon == 0
    assert ThreatModel("linf", "1e-300").epsilon > 0


@pytest.mark.parametrize("text", ["linf", "8/255", "", "linf=8/255", "l2 0.5"])
def test_a_threat_without_colon_shows_the_form(text: str) -> None:
    with pytest.raises(ThreatError, match="KIND:SIZE"):
        parse_threat(text)


def test_text_of_a_threat_may_be_sloppy() -> None:
    assert parse_threat(" LINF : 8/255") == ThreatModel("linf", 8 / 255)
    assert str(parse_threat("l0:10")) == "l0:10"


@pytest.mark.parametrize(
    ("norm", "epsilon", "message"),
    [
        ("l2", torch.zeros(2, 1), "per-pixel epsilons are possible under linf only"),
        ("linf", torch.tensor(0.1), r"must be \(N,\), got \(\)"),
        ("linf", torch.tensor([0.1, -0.1]), "at least 0, got -0.1"),
        ("linf", torch.tensor([0.1, float("nan")]), "finite"),
        ("l2", torch.tensor([0.1, float("inf")]), "at least 0, got inf"),
        ("linf", torch.tensor([0.1, 8.0]), "did you mean 8/255"),
        ("l0", torch.tensor([1.0, 2.5]), "whole number"),
    ],
)
def test_per_example_epsilon_is_checked_like_any_other(norm: str, epsilon: torch.Tensor, message: str) -> None:
    with pytest.raises(ThreatError, match=message):
        ThreatModel(norm, epsilon)


def test_per_example_epsilon() -> None:
    threat = ThreatModel("linf", torch.tensor([0.1, 0.2, 0.3]))
    x = torch.full((3, 2), 0.5)
    assert threat.contains(x + 0.25, x).tolist() == [False, False, True]
    assert torch.allclose(threat.project(x + 1, x), torch.tensor([[0.6, 0.6], [0.7, 0.7], [0.8, 0.8]]))
    assert threat.select(torch.tensor([2, 0])).contains(x[:2] + 0.25, x[:2]).tolist() == [True, False]
    assert threat.select(torch.tensor([False, True, False])) == ThreatModel("linf", torch.tensor([0.2]))
    with pytest.raises(ThreatError, match="3 entries for 2 images"):
        threat.around(x[:2])
    assert ThreatModel("l0", torch.tensor([1, 2])).project(x[:2] + 0.1, x[:2]).ne(x[:2]).sum(1).tolist() == [1, 2]
    nobody = ThreatModel("l2", torch.zeros(0))
    assert nobody.project(x[:0], x[:0]).shape == (0, 2)


def test_equality_and_hash() -> None:
    exact = ThreatModel("linf", "8/255")
    assert exact == ThreatModel("linf", 8 / 255)
    assert len({exact, ThreatModel("linf", Fraction(8, 255))}) == 1
    assert exact != ThreatModel("l2", "8/255")
    assert exact != ThreatModel("linf", "7/255")
    assert exact != ThreatModel("linf", "8/255", box=(-1, 1))
    assert exact != "linf:8/255"
    rows = torch.tensor([0.1, 0.2])
    assert ThreatModel("l2", rows) == ThreatModel("l2", rows.clone())
    assert ThreatModel("l2", rows) != ThreatModel("l2", rows.flip(0))
    assert ThreatModel("l2", rows) != ThreatModel("l2", 0.1)


def test_with_epsilon_keeps_norm_and_box() -> None:
    threat = ThreatModel("l1", 3, box=(-1, 1)).with_epsilon("1/2")
    assert (threat.norm, threat.epsilon, threat.box) == ("l1", Fraction(1, 2), (-1.0, 1.0))


@pytest.mark.parametrize("norm", NORMS)
def test_words_say_the_radius_and_the_scale(norm: str) -> None:
    words = ThreatModel(norm, 1).words()
    assert " 1 " in words
    assert words.endswith(".")
    assert ("pixels may change" in words) == (norm == "l0")


def test_a_threat_times_three_stays_a_threat() -> None:
    assert float(ThreatModel("linf", 0.4).scaled(3.0).epsilon) == 1.0, "no wider than the box"
    assert float(ThreatModel("l2", 0.5).scaled(3.0).epsilon) == 1.5
    assert float(ThreatModel("l0", 3).scaled(1.5).epsilon) == 5
    each = ThreatModel("linf", torch.tensor([0.1, 0.5])).scaled(3.0).epsilon
    assert torch.allclose(torch.as_tensor(each), torch.tensor([0.3, 1.0]))
