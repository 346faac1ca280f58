"""The numbers of a table, counted by hand, and what contradicts a certificate."""

from dataclasses import replace

import numpy as np
import pytest
from tables import attack, certificate, examples, worst_case

from robustly.evidence import EvidenceTable, Verdict
from robustly.evidence.certified_numbers import CertificateTerms, RobustInterval, StageSummary
from robustly.evidence.metrics import certified_at, contradiction_problem, contradictions, metrics
from robustly.evidence.schema import CertificateColumns, CurveColumns
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
    assert contradictions(table, "c", MODEL).tolist() == [bool(one) for one in refuted]
    assert not contradictions(table, "c", SMOOTHED).any(), "it speaks of another classifier"
    assert ("by c at a size" in contradiction_problem(table, {"c": MODEL})) == any(refuted)


def test_a_counterexample_of_one_certificate_contradicts_another() -> None:
    two = {
        "proof": certificate([U, U, V, V, U], [0.0, 0.0, 0.1, 0.1, 0.0], [0, 1, 0, 1, 1]),
        "search": certificate([U, U, U, F, U], [0.0] * 5, [0, 1, 0, 1, 1]),
    }
    table = replace(TABLE, certificates=two)
    assert contradictions(table, "proof", MODEL).tolist() == [False, False, False, True, False]
    assert not contradictions(table, "search", MODEL).any()
    assert "1 examples are certified by proof" in contradiction_problem(table, {"search": MODEL, "proof": MODEL})


def test_an_image_of_the_curve_refutes_a_radius() -> None:
    """Row 2 broke at the size 0.05 of the curve, where no attack was run at full size."""
    table = replace(TABLE, certificates={"c": certificate([U] * 5, [0.0, 0.0, 0.06, 0.0, 0.0], [0, 1, 0, 1, 1])})
    assert not contradictions(table, "c", MODEL).any()
    broke = replace(table, curve=CurveColumns(np.array([INF, 0.0, 0.05, INF, NAN], dtype=np.float32)))
    assert contradictions(broke, "c", MODEL).tolist() == [False, False, True, False, False]


def test_a_proof_that_may_be_wrong_is_refused_only_beyond_chance() -> None:
    table = replace(TABLE, certificates={"c": certificate([V, U, V, V, U], [0.1] * 5, [0, 1, 0, 1, 1])})
    terms = {risk: {"c": CertificateTerms("model", risk)} for risk in (0.0, 1e-9, 0.01)}
    assert contradiction_problem(table, terms[0.0]).endswith("broken")
    assert "failure probability of 1e-09" in contradiction_problem(table, terms[1e-9])
    assert not contradiction_problem(table, terms[0.01])
    interval = metrics(table, certificates=terms[0.01], classes=(), limit=0.1, curve=[]).interval
    assert interval is not None
    assert (interval.certified.hits, interval.attacked.hits) == (2, 2), "a broken row is not certified"


def staged(verdict: list[Verdict], stage: list[str], reason: list[str]) -> CertificateColumns:
    plain = certificate(verdict, [0.1 * (one == V) for one in verdict], [0, 1, 0, 1, 1])
    seconds = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
    return replace(
        plain, stage=np.array(stage), reason=np.array(reason), work=np.arange(5), seconds=seconds
    )  # fmt: skip


def test_the_interval_counts_counterexamples_of_certificates_as_broken() -> None:
    """Rows 0, 1 and 4 are broken or misclassified, row 2 is proved, row 3 has a counterexample or stays open."""
    open_, refuted = staged([U, F, V, U, U], [""] * 5, [""] * 5), staged([U, F, V, F, U], [""] * 5, [""] * 5)
    for columns, attacked, undecided in ((open_, 2, 1), (refuted, 1, 0)):
        table = replace(TABLE, certificates={"c": columns})
        found = metrics(table, certificates={"c": MODEL}, classes=(), limit=0.1, curve=[])
        assert found.interval == RobustInterval(Proportion(1, 5), Proportion(attacked, 5), undecided, 0.1, 0.0)
        assert found.worst_case.robust == Proportion(2, 5)
        other = metrics(table, certificates={"c": SMOOTHED}, classes=(), limit=0.1, curve=[])
        assert other.interval is None
    two = replace(TABLE, certificates={"a": open_, "b": staged([U, F, U, V, U], [""] * 5, [""] * 5)})
    risky = {"a": CertificateTerms("model", 0.25), "b": CertificateTerms("model", 0.5)}
    joint = metrics(two, certificates=risky, classes=(), limit=0.1, curve=[]).interval
    assert joint == RobustInterval(Proportion(2, 5), Proportion(2, 5), 0, 0.1, 0.75)
    unknown = {"a": CertificateTerms("model", None), "b": CertificateTerms("model", 0.5)}
    joint = metrics(two, certificates=unknown, classes=(), limit=0.1, curve=[]).interval
    assert joint is not None
    assert joint.failure_probability is None


def test_stages_and_reasons_are_counted_from_the_rows() -> None:
    timeout = Verdict.TIMEOUT
    columns = staged(
        [U, F, V, V, timeout], ["zonotope", "attack", "ibp", "alpha", "alpha"], ["no budget", "", "", "", "time"]
    )
    table = replace(TABLE, certificates={"c": columns})
    (found,) = metrics(table, certificates={"c": MODEL}, classes=(), limit=0.1, curve=[]).certificates
    assert list(found.stages.items()) == [
        ("attack", StageSummary(1, 0, 1, 1, 1.0)),
        ("ibp", StageSummary(1, 1, 0, 2, 2.0)),
        ("alpha", StageSummary(2, 1, 0, 7, 12.0)),
        ("zonotope", StageSummary(1, 0, 0, 0, 0.5)),
    ]
    assert found.reasons == {"no budget": 1, "time": 1}
    columns.seconds[3] = NAN
    (found,) = metrics(table, certificates={"c": MODEL}, classes=(), limit=0.1, curve=[]).certificates
    assert found.stages["alpha"].seconds is None


def test_a_radius_that_is_less_than_the_size_does_not_reach_it() -> None:
    size = 0.1
    radii = [float(np.float32(size)), size, float(np.nextafter(size, 0)), 0.0, 1.0]
    columns = certificate([U] * 5, radii, [0, 1, 0, 1, 1])
    assert certified_at(TABLE, columns, size).tolist() == [True, False, False, False, True]
