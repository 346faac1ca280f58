"""The union over threats, from tables made by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import evaluation

from robustly.evidence import EvidenceError
from robustly.evidence.records import from_json, to_json
from robustly.evidence.unions import ThreatUnion, union_of_threats
from robustly.statistics import Proportion


def test_the_union_holds_what_is_unbroken_under_every_threat() -> None:
    linf, l2, l1 = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 1, 0, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0]
    found = union_of_threats([evaluation("linf:0.1", linf), evaluation("l2:0.5", l2), evaluation("l1:12", l1)])
    assert [one.robust.hits for one in found.threats] == [3, 4, 4]
    assert [one.text for one in found.threats] == ["linf:0.1", "l2:0.5", "l1:12"]
    assert found.union == Proportion(1, 8)
    assert found.average.accuracy == pytest.approx(11 / 24)
    low, high = found.average.interval
    assert low < 11 / 24 < high
    assert found.clean == Proportion(8, 8)
    plain = to_json(found)
    assert plain["union"]["interval"] == list(Proportion(1, 8).interval)
    assert from_json(ThreatUnion, plain, "analysis.json") == found


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"weights": "x"}, "different models"),
        ({"sha256": "x"}, "different images"),
        ({"first_id": 1}, "differ in the examples' ids"),
    ],
)
def test_evaluations_of_different_things_have_no_union(other: dict[str, object], words: str) -> None:
    with pytest.raises(EvidenceError, match=words):
        union_of_threats([evaluation("linf:0.1", [1, 0]), evaluation("l2:1", [1, 0], **other)])  # type: ignore[arg-type]


def test_other_labels_have_no_union() -> None:
    one, other = evaluation("linf:0.1", [1, 0]), evaluation("l2:1", [1, 0])
    other.table.examples.label[0] = 1
    with pytest.raises(EvidenceError, match="differ in the examples' labels"):
        union_of_threats([one, other])


def test_a_union_needs_two_threats() -> None:
    one = evaluation("linf:0.1", [1, 0])
    with pytest.raises(EvidenceError, match="at least two"):
        union_of_threats([one])
    with pytest.raises(EvidenceError, match="one evaluation for each threat"):
        union_of_threats([one, one])


@given(st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=2, max_size=4))
def test_the_union_is_at_most_every_accuracy_and_the_mean(held: list[list[int]]) -> None:
    found = union_of_threats([evaluation(f"l2:{number + 1}", one) for number, one in enumerate(held)])
    single = [one.robust.share for one in found.threats]
    assert found.union.share <= min(single) <= found.average.accuracy + 1e-12
    assert found.union.hits >= 6 - sum(6 - sum(one) for one in held), "no more are lost than each threat breaks"
