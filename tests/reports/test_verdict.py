"""The sentence of verdict, and the strength of a test, from evidence built by hand."""

import dataclasses

import numpy as np
import pytest

from robustly.evidence import Summary
from robustly.evidence.audit_record import AuditRecord
from robustly.evidence.certified_numbers import CertifiedSummary
from robustly.evidence.provenance import DataRecord, ModelRecord, Plan, SuiteAttack, SuiteRecord, ThreatRecord
from robustly.evidence.summary import AttackSummary, Metrics, WorstCaseSummary
from robustly.reports.comparison_verdict import comparison_verdict, is_undefended
from robustly.reports.run import RunEvidence
from robustly.reports.strength import (
    ASCENT,
    BY_DECISIONS,
    BY_SCORES,
    DRAWS,
    NEAREST,
    TARGETED,
    TRANSFER,
    family,
    strength,
    strength_rows,
)
from robustly.reports.verdict import held, verdict
from robustly.statistics import Proportion

PGD = {"kind": "PGD", "steps": 20, "restarts": 1, "estimator": None}
SQUARE = {"kind": "Square", "queries": 5000, "restarts": 1}
THREAT = ThreatRecord("linf:0.3", "linf", "", (0.0, 1.0), 0.3, "0.3", "input units", "linf")
T = "\u202f"


def evaluation(held=746, clean=980, count=1000, attacks=(("PGD", PGD), ("Square", SQUARE)), **changes):
    """An evaluation in which every attack ran on all correctly classified examples, unless `tried` says less."""
    tried = changes.pop("tried", clean)
    data = changes.pop("data", {})
    part = Proportion(held, count)
    entries = tuple(SuiteAttack(f"a{i}", title, settings, Plan()) for i, (title, settings) in enumerate(attacks))
    numbers = {one.name: AttackSummary(part, part, 1.0, 1.0, 0.0, tried) for one in entries}
    certified = changes.pop("certified", None)
    proved = None if certified is None else CertifiedSummary("IBP", 0.3, Proportion(certified, count))
    metrics = Metrics(Proportion(clean, count), numbers, WorstCaseSummary(part, part), certified=proved)
    classes = tuple(map(str, range(10)))
    record = DataRecord("digits", count, "41" * 32, classes, split="test", trained_on=0, selected_on=0)
    base = Summary(
        model=ModelRecord("net", 10, "9f" * 32),
        data=dataclasses.replace(record, **data),
        threat=THREAT,
        suite=SuiteRecord("mine", "every", 0, 100, entries, ()),
        metrics=metrics,
    )
    return dataclasses.replace(base, **changes)


def audited(passed):
    return AuditRecord(passed, 9, () if passed else ("digest",), "", (), "2026-09-21T14:03:22+00:00", "", "0.1.0")


def evidence(tmp_path, one, name="dynat", **changes):
    run = RunEvidence(tmp_path / name, name, None, None, one, None, None, audit=audited(True))
    return dataclasses.replace(run, **changes)


def test_the_sentence_names_share_examples_attacks_and_threat(tmp_path):
    found = verdict(evidence(tmp_path, evaluation()))
    assert found.sentence == (
        f"dynat holds 74.6{T}% of 1{T}000 test examples of digits against two attacks under linf:0.3; without "
        f"an attack, it classifies 98.0{T}% correctly."
    )
    assert found.doubts == ()
    assert found.sound


@pytest.mark.parametrize(
    ("hits", "count", "words"),
    [
        (0, 1000, f"none of 1{T}000"),
        (50, 50, "all of 50"),
        (1, 10000, f"1 of 10{T}000"),
        (9999, 10000, f"9{T}999 of 10{T}000"),
        (1, 1000, f"0.1{T}% of 1{T}000"),
    ],
)
def test_shares_near_none_and_all_are_not_rounded_away(hits, count, words):
    assert held(Proportion(hits, count)) == words


def test_a_certificate_is_a_lower_bound_in_the_sentence(tmp_path):
    one = evaluation(certified=400)
    sentence = verdict(evidence(tmp_path, one)).sentence
    assert f"dynat is proved robust on 40.0{T}% and holds 74.6{T}% of" in sentence
    assert "; 346 are undecided; without" in sentence
    exact = verdict(evidence(tmp_path, evaluation(certified=746))).sentence
    assert f"dynat holds 74.6{T}% of" in exact
    assert ", and all of these are proved; without" in exact
    masked = verdict(evidence(tmp_path, evaluation(certified=400, masking=("Square broke more.",)))).sentence
    assert f"may be far lower, but not below the proved 40.0{T}%." in masked
    assert "no lower bound" not in strength_rows(strength(one), certified=True)[-1].words
    assert "no lower bound" in strength_rows(strength(one), certified=False)[-1].words
    alone = evaluation(certified=400, attacks=())
    assert "is proved robust on 40.0" in verdict(evidence(tmp_path, alone)).sentence
    assert "no attack ran" in verdict(evidence(tmp_path, alone)).sentence
    assert verdict(evidence(tmp_path, alone)).doubts == ()


def test_a_number_under_suspicion_of_masking_is_not_stated_as_held(tmp_path):
    found = verdict(evidence(tmp_path, evaluation(masking=("Square broke more.",))))
    assert "dynat seems to hold 74.6" in found.sentence
    assert "masking is suspected: its true robust accuracy may be far lower." in found.sentence
    assert not found.sound


def test_nothing_is_claimed_where_no_attack_ran(tmp_path):
    assert "robust accuracy is unknown" in verdict(evidence(tmp_path, None)).sentence
    found = verdict(evidence(tmp_path, evaluation(attacks=())))
    assert found.sentence.startswith("No attack ran on dynat: its robust accuracy is unknown")
    assert found.doubts == ("The test is weak: no attack ran.",)
    failed = verdict(evidence(tmp_path, evaluation(attacks=(("PGD", PGD),), failures={"a0": "out of memory"})))
    assert failed.sentence.startswith("No attack ran on dynat")
    assert "The attack PGD failed and is not part of the result." in failed.doubts


def test_a_network_that_is_never_right_leaves_nothing_to_attack(tmp_path):
    found = verdict(evidence(tmp_path, evaluation(held=0, clean=0, count=500)))
    assert found.sentence == (
        "dynat classifies none of 500 test examples of digits correctly, so there is nothing to attack."
    )
    assert found.doubts == ("Without an attack the network is hardly better than a guess among 10 classes.",)
    assert not found.sound


def test_failed_attacks_audits_and_contradictions_are_doubts(tmp_path):
    one = evaluation(failures={"a1": "out of memory"})
    found = verdict(evidence(tmp_path, one, audit=audited(False), notes=("Sums differ.",)))
    assert "against one attack under" in found.sentence
    assert found.doubts[:3] == (
        "The files of this run contradict each other, so at least one number is wrong.",
        "The audit of the evidence failed: do not rely on these numbers.",
        "The attack Square failed and is not part of the result.",
    )
    assert not found.sound


def test_guessing_few_examples_and_known_images_are_doubts(tmp_path):
    one = evaluation(held=2, clean=6, count=50, data={"trained_on": 7})
    doubts = " ".join(verdict(evidence(tmp_path, one)).doubts)
    assert "hardly better than a guess among 10 classes" in doubts
    assert "7 of 50 test images were trained on, 0 were selected on, so the accuracies may be too high." in doubts
    assert "only 50 examples: the 95 % interval of the worst case is [1.1, 13.5] %." in doubts
    single = verdict(evidence(tmp_path, evaluation(held=0, clean=1, count=1)))
    assert "There is only one example: the 95 % interval of the worst case is [0.0, 79.3] %." in single.doubts
    assert "guess" not in " ".join(verdict(evidence(tmp_path, evaluation())).doubts)


def test_a_network_that_predicts_one_class_has_collapsed(tmp_path, run):
    from robustly.reports import read_run

    whole = read_run(run)
    constant = dataclasses.replace(
        whole.table.examples, clean_prediction=np.full_like(whole.table.examples.clean_prediction, 3)
    )
    table = dataclasses.replace(whole.table, examples=constant)
    found = verdict(dataclasses.replace(whole, table=table))
    assert "predicts class 3 for every one of 200 examples: the network has collapsed" in found.sentence
    assert "holds" not in found.sentence
    assert not found.sound
    assert "collapsed" not in verdict(whole).sentence


def test_families_follow_kind_and_estimator():
    kinds = ["APGD", "TargetedAPGD", "FAB", "SparseRS", "HopSkipJump", "Transfer", "Mine"]
    found = [family({"kind": kind}) for kind in kinds]
    assert found == [ASCENT, ASCENT, NEAREST, BY_SCORES, BY_DECISIONS, TRANSFER, "attack of its user"]
    assert family({**PGD, "estimator": {"kind": "SPSA"}}) == BY_SCORES
    assert family({**PGD, "estimator": {"kind": "Averaged"}}) == ASCENT
    assert family({**PGD, "steps": 0}) == DRAWS
    assert family({}) == "kind not recorded"


def test_every_attack_of_the_package_has_a_family():
    """A new attack needs an entry in FAMILIES, or reports would call it an attack of its user."""
    import importlib
    import pkgutil

    import robustly.attacks
    from robustly.reports.strength import FAMILIES

    kinds = set()
    for module in pkgutil.iter_modules(robustly.attacks.__path__):
        found = vars(importlib.import_module(f"robustly.attacks.{module.name}"))
        own = [one for one in found.values() if isinstance(one, type) and one.__module__.endswith(module.name)]
        kinds |= {one.__name__ for one in own if hasattr(one, "needs") and dataclasses.is_dataclass(one)}
    assert {"PGD", "Transfer"} <= kinds
    assert kinds == set(FAMILIES)


def test_missing_kinds_follow_from_those_that_ran():
    assert strength(evaluation()).missing == (TARGETED, NEAREST, BY_DECISIONS, TRANSFER)
    targeted = evaluation(attacks=(("APGD-T", {"kind": "TargetedAPGD", "targets": 9, "steps": 100}),))
    assert strength(targeted).missing == (NEAREST, BY_SCORES, BY_DECISIONS, TRANSFER)
    rows = {row.title: row.words for row in strength_rows(strength(targeted), certified=False)}
    assert rows["Gradient ascent"] == "APGD-T."
    assert "masked gradients may stay undetected" in rows["Missing"]
    both = {row.title: row.words for row in strength_rows(strength(evaluation()), certified=False)}
    assert "undetected" not in both["Missing"]


def test_weak_tests_are_called_weak(tmp_path):
    def reasons(one):
        return strength(one).weaknesses

    assert reasons(evaluation()) == ()
    fgsm = evaluation(attacks=(("FGSM", {**PGD, "steps": 1}), ("PGD-7", {**PGD, "steps": 7, "restarts": 2})))
    assert reasons(fgsm) == ("no attack took more than 14 gradient steps in all",)
    assert reasons(evaluation(attacks=(("PGD-7", {**PGD, "steps": 7, "restarts": 3}),))) == ()
    assert reasons(evaluation(attacks=(("Square", SQUARE),))) == ("no attack used gradients of the model",)
    turned = dataclasses.replace(THREAT, text="rotation:30", kind="rotation", norm=None)
    draws = ("Random draws", {"kind": "RandomDraws", "draws": 50})
    (alone,) = reasons(evaluation(attacks=(("PGD", PGD),), threat=turned))
    assert alone.startswith("no random draws ran")
    assert reasons(evaluation(attacks=(("PGD", PGD), draws), threat=turned)) == ()
    assert reasons(evaluation(attacks=(("PGD", PGD),))) == (), "balls need none"
    sampled = "no attack ran on more than 40 of the 980 correctly classified examples"
    assert reasons(evaluation(tried=40)) == (sampled,)
    assert verdict(evidence(tmp_path, evaluation(tried=40))).doubts[0] == f"The test is weak: {sampled}."
    seen = evaluation(seen_attacks={"a0": "training", "a1": "training"})
    assert reasons(seen) == ("the model was trained with every kind of attack that ran",)
    alone = verdict(evidence(tmp_path, evaluation(attacks=(("PGD", PGD),))))
    assert alone.doubts == ("All attacks are of one kind (gradient ascent); one of another kind may break more.",)


def test_two_runs_are_compared_in_one_sentence(tmp_path):
    plain = {
        "method": {"labels": None, "inner": None, "loss": {"name": "clean"}, "weights": None, "parameters": {}}
    }
    first = evidence(tmp_path, evaluation(held=1), "standard", config=plain)
    second = evidence(tmp_path, evaluation(), "dynat", config={"method": {"loss": {"name": "dynat"}}})
    found = comparison_verdict([first, second])
    assert found.sentence == (
        f"dynat holds 74.6{T}% of 1{T}000 test examples of digits against two attacks under linf:0.3; standard "
        f"(undefended) 0.1{T}%."
    )
    assert found.doubts == ()
    assert is_undefended(plain)
    assert not is_undefended({"method": {**plain["method"], "inner": {"name": "pgd"}}})
    assert not is_undefended(None)


def test_differences_that_may_be_chance_are_not_stated_as_order(tmp_path):
    near = comparison_verdict([evidence(tmp_path, evaluation(746), "a"), evidence(tmp_path, evaluation(740), "b")])
    assert near.doubts == ("The difference between a and b may be chance: their intervals overlap.",)
    equal = comparison_verdict([evidence(tmp_path, evaluation(746), "a"), evidence(tmp_path, evaluation(746), "b")])
    assert equal.doubts == ("a and b are equal in this number.",)


def test_runs_in_doubt_are_not_ranked(tmp_path):
    masked = evidence(tmp_path, evaluation(held=950, masking=("zero gradients",)), "masked")
    good, low = evidence(tmp_path, evaluation(), "good"), evidence(tmp_path, evaluation(held=100), "low")
    found = comparison_verdict([masked, good, low])
    assert found.sentence.startswith("good holds 74.6")
    assert "masked" not in found.sentence
    assert f"masked is not ranked: gradient masking is suspected (it seems to hold 95.0{T}%)." in found.doubts
    none = comparison_verdict([masked, dataclasses.replace(masked, name="other")])
    assert none.sentence == "No run can be ranked: each of them is in doubt."


def test_runs_tested_differently_are_listed_without_order(tmp_path):
    other = evaluation(held=900, threat=dataclasses.replace(THREAT, text="l2:0.5"))
    found = comparison_verdict([evidence(tmp_path, evaluation(), "a"), evidence(tmp_path, other, "b")])
    assert found.sentence == (
        f"The runs were not tested alike, so they are not ranked: a holds 74.6{T}% of 1{T}000 under linf:0.3; "
        f"b holds 90.0{T}% of 1{T}000 under l2:0.5."
    )
    idle = comparison_verdict([evidence(tmp_path, evaluation(attacks=()), "a"), evidence(tmp_path, other, "b")])
    assert "no attack ran on a; b holds" in idle.sentence
    same = evaluation(attacks=())
    both = comparison_verdict([evidence(tmp_path, same, "a"), evidence(tmp_path, same, "b")])
    assert both.sentence == "No run can be ranked: each of them is in doubt."
    assert "a is not ranked: no attack ran on it." in both.doubts
    failed = evidence(tmp_path, evaluation(failures={"a1": "out of memory"}), "b")
    assert "not ranked" in comparison_verdict([evidence(tmp_path, evaluation(), "a"), failed]).sentence


def test_many_runs_and_runs_without_evaluation_stay_one_sentence(tmp_path):
    runs = [evidence(tmp_path, evaluation(held=100 * i), f"r{i}") for i in range(1, 7)]
    found = comparison_verdict([*runs, evidence(tmp_path, None, "raw")])
    assert found.sentence.startswith(f"Of 6 runs, r6 holds 60.0{T}% of 1{T}000")
    assert found.sentence.endswith(f"the next, r5, 50.0{T}%; the last, r1, 10.0{T}%.")
    assert found.doubts == ("Not evaluated: raw.",)
    assert "None of the 2 runs is evaluated" in comparison_verdict([evidence(tmp_path, None)] * 2).sentence
    one = comparison_verdict([runs[0], evidence(tmp_path, None, "raw")])
    assert one.sentence.startswith("r1 holds 10.0")


def test_the_page_begins_with_the_verdict(tmp_path):
    from robustly.reports import render

    page = render([evidence(tmp_path, evaluation())])
    body = page.partition("<main>")[2]
    assert body.index("dynat holds 74.6") < body.index("Clean accuracy")
    assert "Audit passed: 9 of 9 checks" in body
    assert "out of memory" in render([evidence(tmp_path, evaluation(failures={"a1": "out of memory"}))])
    assert "Audit FAILED: 8 of 9 checks" in render([evidence(tmp_path, evaluation(), audit=audited(False))])
