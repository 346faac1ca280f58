"""The numbers of a table, counted by hand, and what contradicts a certificate."""

from dataclasses import replace

import numpy as np
import pytest
from tables import attack, certificate, examples, worst_case

from robustly.evidence import EvidenceTable, Verdict
from robustly.evidence.metrics import contradictions, metrics
from robustly.evidence.schema import CurveColumns
from robustly.evidence.summary import CertificateTerms
from robustly.statistics import Proportion

MODEL, SMOOTHED = CertificateTerms("model"), CertificateTerms("the smoothed model", 0.001)
V, U, F = Verdict.VERIFIED, Verdict.UNKNOWN, Verdict.FALSIFIED
NAN, INF = float("nan"), float("inf")

# labels 0 0 0 1 1; the second example is misclassified without an attack
TABLE = EvidenceTable(
    examples([0, 0, 0, 1, 1], [0, 1, 0, 1, 1]),
    {
        "pgd": attack(
            5, broken=[1, 1, 0, 0, 0], broken_8bit=[0, 1, 0, 0, 0], tried=[1, 0, 1, 1, 1],
            distance=[0.1] + [NAN] * 4, forwards=[2, 0, 4, 4, 4], backwards=[1, 0, 3, 3, 3],
            passes_8bit=[3, 0, 0, 0, 0],
        ),
        "cw": attack(
            5, broken=[1, 1, 0, 0, 1], broken_8bit=[1, 1, 0, 0, 1], tried=[1, 0, 1, 1, 1], invalid=[0, 0, 0, 0, 1],
            distance=[0.05] + [NAN] * 4,
        ),
    },
    worst_case([1, 1, 0, 0, 1]),
    {
        "bounds": certificate([U, U, V, V, U], [0.01, 0.5, 0.1, 0.1, 0.0], [0, 1, 0, 1, 1]),
        "smooth": certificate([V, U, V, U, V], [0.1, 0.5, 0.3, 0.05, 0.1], [0, 1, 0, 1, 1]),
    },
    CurveColumns(np.array([0.05, 0.0, INF, INF, NAN], dtype=np.float32)),
)  # fmt: skip
POINTS = [("0", 0.0), ("0.05", 0.05), ("0.1", 0.1), ("0.2", 0.2)]


def test_the_numbers_of_a_table_made_by_hand() -> None:
    found = metrics(
        TABLE,
        certificates={"bounds": MODEL, "smooth": SMOOTHED},
        classes=("cat", "dog", "owl"),
        limit=0.1,
        curve=POINTS,
    )
    assert found.clean == Proportion(4, 5)
    assert (found.worst_case.robust, found.worst_case.robust_8bit) == (Proportion(2, 5), Proportion(2, 5))
    pgd = found.attacks["pgd"]
    assert (pgd.robust, pgd.robust_8bit, pgd.tried) == (Proportion(3, 5), Proportion(4, 5), 4)
    assert (pgd.mean_forwards, pgd.mean_backwards, pgd.mean_passes_8bit) == (3.5, 2.5, 0.75)
    assert found.invalid == 1
    assert [(one.name, one.clean, one.robust) for one in found.per_class] == [
        ("cat", Proportion(2, 3), Proportion(1, 3)),
        ("dog", Proportion(2, 2), Proportion(1, 2)),
    ]
    curve = found.security_curve
    assert curve is not None
    assert (curve.count, curve.epsilon_text) == (4, ("0", "0.05", "0.1", "0.2"))
    assert curve.accuracy == (0.75, 0.5, 0.5, 0.5)
    assert (curve.low[1], curve.high[1]) == Proportion(2, 4).interval
    assert curve.certified == (4 / 5, 2 / 5, 2 / 5, 0.0), "the misclassified row's radius is of another class"


def test_certified_accuracy_counts_verified_rows_of_the_model_only() -> None:
    terms = {"bounds": MODEL, "smooth": SMOOTHED}
    found = metrics(TABLE, certificates=terms, classes=("cat", "dog"), limit=0.1, curve=[])
    assert found.certified is not None
    assert (found.certified.name, found.certified.robust) == ("bounds", Proportion(2, 5))
    assert [(one.name, one.terms, one.robust.hits) for one in found.certificates] == [
        ("bounds", MODEL, 2),
        ("smooth", SMOOTHED, 3),
    ]
    assert found.certificates[0].verdicts == {"unknown": 3, "verified": 2, "falsified": 0, "timeout": 0, "error": 0}
    # a radius alone is not a verdict
    long = certificate([U, U, V, U, U], [0.5] * 5, [0, 1, 0, 1, 1])
    table = replace(TABLE, certificates={"bounds": long})
    found = metrics(table, certificates={"bounds": MODEL}, classes=("cat", "dog"), limit=0.1, curve=[])
    assert found.certified is not None
    assert found.certified.robust == Proportion(1, 5)
    both = replace(
        TABLE, certificates={"bounds": TABLE.certificates["bounds"], "other": TABLE.certificates["smooth"]}
    )
    joint = metrics(both, certificates={"bounds": MODEL, "other": MODEL}, classes=(), limit=0.1, curve=[]).certified
    assert joint is not None
    assert (joint.name, joint.robust) == ("bounds or other", Proportion(4, 5))


def test_without_attacks_and_certificates_there_are_none_of_their_numbers() -> None:
    table = EvidenceTable(TABLE.examples, {}, worst_case([0, 1, 0, 0, 0]))
    found = metrics(table, certificates={}, classes=("cat", "dog"), limit=0.1, curve=POINTS)
    assert (found.attacks, found.certified, found.certificates, found.security_curve) == ({}, None, (), None)
    assert found.invalid == 0


@pytest.mark.parametrize(
    ("verdict", "radius", "refuted"),
    [
        ([U, U, U, U, U], [0.0] * 5, [0, 0, 0, 0, 0]),
        ([U, U, V, V, U], [0.04, 0.0, 0.1, 0.1, 0.0], [0, 0, 0, 0, 0]),
        ([U, U, U, U, U], [0.06, 0.0, 0.1, 0.1, 0.0], [1, 0, 0, 0, 0]),  # an image lies at 0.05
        ([V, U, U, U, U], [0.05, 0.0, 0.0, 0.0, 0.0], [1, 0, 0, 0, 0]),  # verified, and broken
        ([U, U, U, U, V], [0.0, 0.0, 0.0, 0.0, 0.1], [0, 0, 0, 0, 0]),  # no output, no image
    ],
)
def test_contradictions_of_certificates_and_attacks(
    verdict: list[Verdict], radius: list[float], refuted: list[int]
) -> None:
    table = replace(TABLE, certificates={"c": certificate(verdict, radius, [0, 1, 0, 1, 1])})
    assert contradictions(table, {"c": MODEL}).tolist() == [bool(one) for one in refuted]
    assert not contradictions(table, {"c": SMOOTHED}).any(), "it speaks of another classifier"


def test_a_counterexample_of_one_certificate_contradicts_another() -> None:
    two = {
        "proof": certificate([U, U, V, V, U], [0.0, 0.0, 0.1, 0.1, 0.0], [0, 1, 0, 1, 1]),
        "search": certificate([U, U, U, F, U], [0.0] * 5, [0, 1, 0, 1, 1]),
    }
    table = replace(TABLE, certificates=two)
    assert contradictions(table, {"proof": MODEL, "search": MODEL}).tolist() == [False, False, False, True, False]
