"""The numbers of a protocol from rows made by hand, its file, and a file that was changed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tables import evaluation

from robustly.evidence import EvidenceError, write_evidence
from robustly.evidence.corruption_result import mean_accuracy
from robustly.evidence.protocol_result import (
    Gap,
    ProtocolTerms,
    contradiction,
    protocol_file,
    protocol_files,
    protocol_result,
    read_protocol,
    recomputed,
    write_protocol,
)
from robustly.evidence.protocol_rows import (
    ProtocolRows,
    mean_difference,
    other_test,
    protocol_rows,
    union_difference,
)
from robustly.evidence.unions import read_rows
from robustly.statistics import Difference, Proportion, student_t_95

LINF = evaluation("linf:0.1", [1, 1, 1, 0, 0])
L2 = evaluation("l2:1", [1, 0, 0, 1, 0])
L1 = evaluation("l1:3", [1, 1, 0, 0, 0])
FOUND = {"evaluation": LINF, "evaluation_p_l2": L2, "evaluation_p_l1": L1}
TERMS = ProtocolTerms("unforeseen", "p", "Words.", "of_threats", True, False, (), ("l0:3: why",), ("A note.",))


def test_gaps_mean_worst_and_union_are_counted_from_the_rows() -> None:
    found = protocol_result(TERMS, FOUND, ["evaluation"])
    assert [one.role for one in found.columns] == ["trained", "tested", "tested"]
    assert [one.robust.hits for one in found.columns] == [3, 2, 2]
    assert found.clean == Proportion(5, 5)
    assert found.trained is not None
    assert found.trained.robust == Proportion(3, 5)
    assert [one.gap for one in found.columns] == [
        None,
        Gap(2, 1, 0.2, Difference(2, 1, 5).interval),
        Gap(1, 0, 0.2, Difference(1, 0, 5).interval),
    ]
    assert found.mean == mean_accuracy([1.0, 0.5, 0.0, 0.5, 0.0])
    assert found.worst == "l2:1"
    assert found.union == Proportion(1, 5)


def test_the_mean_of_the_paper_counts_clean_accuracy() -> None:
    terms = replace(TERMS, mean="with_clean", compares=False)
    found = protocol_result(terms, FOUND, [])
    assert found.mean.accuracy == pytest.approx((5 + 3 + 2 + 2) / 20)
    assert found.trained is None
    assert all(one.gap is None and one.role == "tested" for one in found.columns)


def test_without_training_against_a_threat_gaps_are_from_clean_accuracy() -> None:
    found = protocol_result(TERMS, {"evaluation_p_l2": L2}, [])
    assert found.trained is None
    assert found.columns[0].gap is not None
    assert (found.columns[0].gap.only_trained, found.columns[0].gap.only_tested) == (3, 0)


def test_several_threats_of_the_training_count_together() -> None:
    found = protocol_result(TERMS, FOUND, ["evaluation", "evaluation_p_l2"])
    assert found.trained is not None
    assert found.trained.robust == Proportion(1, 5)
    assert found.worst == "l1:3"
    assert found.columns[2].gap is not None
    assert found.columns[2].gap.value == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("found", "trained", "words"),
    [
        ({"evaluation": LINF}, ["evaluation"], "no threat that is tested"),
        ({"evaluation": LINF, "evaluation_b": evaluation("l2:1", [1] * 5, weights="x")}, [], "different models"),
        ({"evaluation": LINF, "evaluation_b": evaluation("l2:1", [1] * 5, sha256="x")}, [], "different images"),
        ({"evaluation": LINF, "evaluation_b": LINF}, [], "one evaluation for each threat"),
    ],
)
def test_evaluations_that_make_no_protocol_are_refused(found: dict, trained: list[str], words: str) -> None:
    with pytest.raises(EvidenceError, match=words):
        protocol_result(TERMS, found, trained)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name, one in FOUND.items():
        write_evidence(one, tmp_path / name)
    write_protocol(tmp_path, protocol_result(TERMS, FOUND, ["evaluation"]))
    return tmp_path


def test_a_file_is_read_as_it_was_written_and_follows_from_its_evaluations(run: Path) -> None:
    assert protocol_files(run) == [protocol_file(run, "p")]
    stated = read_protocol(protocol_file(run, "p"))
    assert stated == protocol_result(TERMS, FOUND, ["evaluation"], stated.created)
    assert recomputed(run, stated) == stated
    assert contradiction(run, stated) == ""


def test_two_models_are_compared_image_by_image(tmp_path: Path) -> None:
    def kept(name: str, linf: list[int], l2: list[int]) -> ProtocolRows:
        for folder, text, rows in (("evaluation", "linf:0.1", linf), ("evaluation_p_l2", "l2:1", l2)):
            write_evidence(evaluation(text, rows), tmp_path / name / folder)
        found = {one: read_rows(tmp_path / name / one) for one in ("evaluation", "evaluation_p_l2")}
        return protocol_rows(tmp_path / name, protocol_result(TERMS, found, ["evaluation"]))

    one, other = kept("one", [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]), kept("other", [1, 0, 1, 1, 0], [1, 1, 0, 0, 1])
    assert one.union.tolist() == [True, True, True, False, False]
    assert one.mean.tolist() == [1, 1, 1, 0, 0], "the mean is over the threats that are not of the training"
    less = union_difference(one, other)
    assert (less.only_first, less.only_second, less.count) == (2, 0, 5)
    mean = mean_difference(one, other)
    assert mean.accuracy == pytest.approx(0.0)
    half = student_t_95(4) * np.std([0, 0, 1, 0, -1], ddof=1) / 5**0.5
    assert mean.interval == (pytest.approx(-half), pytest.approx(half))
    assert mean_difference(one, one).interval == Difference(0, 0, 5).interval
    swapped = mean_difference(kept("more", [1] * 5, [1] * 5), kept("less", [1] * 5, [0] * 5))
    assert swapped.accuracy == 1
    assert swapped.interval == Difference(5, 0, 5).interval
    few = kept("few", [1, 1], [1, 0])
    assert other_test(one, few) == "other images"
    with pytest.raises(EvidenceError, match="have no difference: other images"):
        union_difference(one, few)


def test_a_changed_file_is_noticed(run: Path) -> None:
    file = protocol_file(run, "p")
    content = json.loads(file.read_text())
    content["columns"][1]["robust"] = 4
    content["union"]["robust"] = 2
    content["mean"]["accuracy"] = 0.9
    file.write_text(json.dumps(content))
    assert (
        contradiction(run, read_protocol(file))
        == "protocol_p.json and its evaluations disagree on columns, mean, union"
    )


def test_a_lost_evaluation_is_noticed(run: Path) -> None:
    (run / "evaluation_p_l2" / "summary.json").unlink()
    assert "protocol_p.json cannot be checked" in contradiction(run, read_protocol(protocol_file(run, "p")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["columns"][0].update(evaluation="../other"), "name of an evaluation"),
        (lambda content: content["columns"][0].update(evaluation="evaluation_p_l2"), "each evaluation once"),
        (lambda content: content.update(worst="l7:1"), "worst should be one of the tested threats"),
        (lambda content: content.update(columns=[]), "worst should be one of the tested threats"),
        (lambda content: content["terms"].update(label="q"), "not that of the file"),
        (lambda content: content.update(schema=7), "schema 7"),
        (lambda content: content["columns"][0].update(role="best"), "role should be one of trained, tested"),
        (lambda content: content.pop("union"), "union is missing"),
    ],
)
def test_a_damaged_file_is_refused_with_its_place(run: Path, change, words: str) -> None:
    file = protocol_file(run, "p")
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(EvidenceError, match=words) as refused:
        read_protocol(file)
    assert "protocol_p.json" in str(refused.value)
