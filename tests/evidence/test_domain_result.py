"""Accuracy by domain: counts, gaps with their intervals, pairs that do not belong together, the protocol."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import evaluation

from robustly.evidence import Evidence, EvidenceError, unions, write_evidence
from robustly.evidence.domain_names import STRIDE
from robustly.evidence.domain_protocol import PROTOCOL_SCHEMA, ProtocolFile, protocol
from robustly.evidence.domains import (
    SPLITS,
    DomainResult,
    domain_result,
    domains_problem,
    result_of_folders,
    source_folder,
    write_domains,
)
from robustly.evidence.partial_unions import union_of_folders
from robustly.evidence.records import from_json, to_json
from robustly.statistics import Proportion, difference_interval

NAMES = ("photo", "art", "ink")


def on(held: dict[str, list[int]], split: str, left_out: str = "ink", **changes: Any) -> Evidence:
    """An evaluation on some domains; `held` has the unbroken examples by domain."""
    found = evaluation(
        changes.pop("threat", "linf:0.1"), [one for some in held.values() for one in some], **changes
    )
    places = [NAMES.index(name) + 1 for name, some in held.items() for _ in some]
    ids = found.table.examples.id + [place * STRIDE for place in places]
    table = replace(found.table, examples=replace(found.table.examples, id=ids))
    settings = {"domains": [f"{name}=/data/{name}" for name in NAMES], "leave_out": left_out}
    data = replace(found.summary.data, split=split, settings=settings)
    return replace(found, table=table, summary=replace(found.summary, data=data))


TARGET = on({"ink": [1, 0, 0, 0, 0]}, SPLITS["target"])
SOURCE = on({"photo": [1, 1, 0, 0], "art": [1, 1, 1, 1, 1, 0]}, SPLITS["source"])


def rows_of(one: Evidence) -> unions.Tested:
    return unions.Tested(one.table, one.summary)


def result(target: Evidence = TARGET, source: Evidence = SOURCE) -> DomainResult:
    return domain_result(rows_of(target), rows_of(source), {})


def test_accuracies_are_counted_by_the_ids() -> None:
    found = result()
    assert found.left_out == "ink"
    assert [(one.name, one.robust.hits, one.robust.count) for one in found.sources] == [
        ("photo", 2, 4),
        ("art", 5, 6),
    ]
    assert found.source.robust == Proportion(7, 10)
    assert found.target.robust == Proportion(1, 5)
    assert found.target.clean == Proportion(5, 5)
    assert found.robust_gap.difference == pytest.approx(0.5)
    assert found.clean_gap.difference == 0
    assert found.certified_gap is None


@pytest.mark.parametrize(
    ("target", "source", "words"),
    [
        (SOURCE, TARGET, "parts of the domains"),
        (TARGET, TARGET, "parts of the domains"),
        (TARGET, on({"photo": [1], "art": [1]}, SPLITS["source"], weights="other"), "weights"),
        (TARGET, on({"photo": [1], "art": [1]}, SPLITS["source"], threat="linf:0.2"), "threats"),
        (TARGET, on({"photo": [1], "art": [1]}, SPLITS["source"], left_out="art"), "domains"),
        (TARGET, on({"photo": [1]}, SPLITS["source"]), "of all other domains"),
        (TARGET, on({"photo": [1], "art": [1], "ink": [1]}, SPLITS["source"]), "of all other domains"),
        (on({"art": [1]}, SPLITS["target"]), SOURCE, "not of the target ink"),
        (on({"ink": [1]}, SPLITS["target"], left_out="oil"), SOURCE, "does not state its domains"),
    ],
)
def test_evaluations_that_do_not_belong_together_are_refused(
    target: Evidence, source: Evidence, words: str
) -> None:
    with pytest.raises(EvidenceError, match=words):
        result(target, source)


def test_an_evaluation_without_domains_has_no_result(tmp_path: Path) -> None:
    write_evidence(evaluation("linf:0.1", [1, 0]), tmp_path / "evaluation")
    assert result_of_folders(tmp_path / "evaluation") is None


def test_written_numbers_that_differ_from_the_evaluations_are_found(tmp_path: Path) -> None:
    target = tmp_path / "evaluation"
    write_evidence(TARGET, target)
    assert result_of_folders(target) is None
    write_evidence(SOURCE, source_folder(target))
    found = result_of_folders(target)
    assert found is not None
    assert domains_problem(target) == "", "nothing is written yet"
    write_domains(target, found)
    assert domains_problem(target) == ""
    write_domains(target, replace(found, target=replace(found.target, robust=Proportion(5, 5))))
    assert "states another target than the evaluations" in domains_problem(target)
    write_domains(target, found)
    write_evidence(on({"photo": [1], "art": [1]}, SPLITS["source"]), source_folder(target))
    assert "another sources, source, robust_gap, evaluations" in domains_problem(target).replace("clean_gap, ", "")


def test_evaluations_on_sources_are_no_part_of_a_union(tmp_path: Path) -> None:
    folders = [
        tmp_path / name for name in ("evaluation", "evaluation_l2", "evaluation_source", "evaluation_l2_source")
    ]
    parts = [TARGET, on({"ink": [1, 1, 1, 0, 0]}, SPLITS["target"], threat="l2:0.1"), SOURCE, SOURCE]
    for folder, one in zip(folders, parts, strict=True):
        write_evidence(one, folder)
    union, left_out = union_of_folders(folders)
    assert union is not None
    assert union.union == Proportion(1, 5)
    assert left_out == ()


def test_the_interval_of_a_difference_is_that_of_newcombe() -> None:
    # Newcombe 1998, table II, method 10: 56/70 - 48/80 and 9/10 - 3/10
    assert difference_interval(Proportion(56, 70), Proportion(48, 80)) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference_interval(Proportion(9, 10), Proportion(3, 10)) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert difference_interval(Proportion(10, 10), Proportion(0, 10)) == pytest.approx((0.6075, 1.0), abs=5e-5)


SHARES = st.integers(1, 300).flatmap(lambda count: st.builds(Proportion, st.integers(0, count), st.just(count)))


@given(SHARES, SHARES)
def test_the_interval_holds_the_difference_and_turns_with_its_sign(one: Proportion, other: Proportion) -> None:
    low, high = difference_interval(one, other)
    assert -1 <= low <= one.share - other.share + 1e-12
    assert one.share - other.share - 1e-12 <= high <= 1
    assert difference_interval(other, one) == pytest.approx((-high, -low))


def test_the_protocol_has_the_mean_and_the_worst_target() -> None:
    first = result()
    second = result(
        on({"art": [1, 1, 0, 0]}, SPLITS["target"], left_out="art"),
        on({"photo": [1, 0], "ink": [0, 0]}, SPLITS["source"], left_out="art"),
    )
    found = protocol("trades", [first, second])
    assert [row.left_out for row in found.rows] == ["ink", "art"]
    assert found.missing == ("photo",)
    assert found.mean["target robust"].accuracy == pytest.approx((0.2 + 0.5) / 2)
    assert found.mean["source robust"].accuracy == pytest.approx((0.7 + 0.25) / 2)
    assert found.worst["target robust"].accuracy == pytest.approx(0.2)
    assert set(found.worst) == {"target clean", "target robust"}
    assert found.rows[0].numbers["target robust"].interval == pytest.approx(Proportion(1, 5).interval)
    file = ProtocolFile(PROTOCOL_SCHEMA, (found,))
    assert from_json(ProtocolFile, to_json(file), "file") == file


def test_several_seeds_are_averaged_without_an_interval() -> None:
    other = result(on({"ink": [1, 1, 1, 1, 1]}, SPLITS["target"]))
    (row,) = protocol("trades", [result(), other]).rows
    assert row.seeds == 2
    assert row.numbers["target robust"].accuracy == pytest.approx(0.6)
    assert row.numbers["target robust"].interval is None
