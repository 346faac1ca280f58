"""Certificates in an evaluation: verdicts, counterexamples, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from half_space import (
    SUITE,
    THREAT,
    HalfSpaceDecision,
    HalfSpaceProof,
    StraightAcross,
    distance,
    half_space,
    images,
)
from robustly.certification import CertificateResult, Verdict
from robustly.evaluation import EvaluationError, Suite, evaluate
from robustly.evaluation.recording import certificate_columns
from robustly.evidence import Evidence, read_evidence, write_evidence
from robustly.randomness import KeyedGenerator
from staged_certificate import SPENT, StagedCertificate


def evaluated(decision: HalfSpaceDecision) -> Evidence:
    suite = Suite("both", {"across": StraightAcross()}, certificates={"decision": decision}, curve="across")
    return evaluate(half_space(), images(), THREAT, suite, batch_size=7)


def test_every_verdict_of_a_complete_verifier_is_recorded() -> None:
    evidence = evaluated(HalfSpaceDecision())
    columns, table = evidence.table.certificates["decision"], evidence.table
    far = distance(half_space(), images().floats())[0].numpy()
    expected = table.correct & (far > 0.2)
    np.testing.assert_array_equal(columns.verified, expected)
    np.testing.assert_array_equal(columns.falsified, ~expected)
    np.testing.assert_array_equal(columns.falsified, table.worst_case.broken)
    assert (columns.lower_bound[expected] > 0).all()
    certified = evidence.summary.metrics.certified
    assert certified is not None
    assert certified.robust.hits == int(expected.sum()) == evidence.summary.metrics.worst_case.robust.hits
    (numbers,) = evidence.summary.metrics.certificates
    verified = int(expected.sum())
    rest = {"unknown": 0, "timeout": 0, "error": 0}
    assert numbers.verdicts == {"verified": verified, "falsified": len(expected) - verified, **rest}
    assert (numbers.terms.certifies, numbers.terms.failure_probability) == ("model", 0.0)


def test_counterexamples_are_stored_and_break_the_model() -> None:
    evidence = evaluated(HalfSpaceDecision())
    stored, falsified = evidence.images.certificates["decision"], evidence.table.certificates["decision"].falsified
    np.testing.assert_array_equal(stored.ids, evidence.table.examples.id[falsified])
    rows = torch.from_numpy(stored.ids - 100)
    shown = torch.from_numpy(stored.images)
    assert (half_space()(shown).argmax(1) != images().labels[rows]).all()
    assert THREAT.contains(shown, images().floats(rows)).all()


def test_a_counterexample_that_does_not_hold_makes_the_verdict_unknown() -> None:
    honest = evaluated(HalfSpaceDecision())
    falsified = honest.table.certificates["decision"].falsified

    def not_moved(found: CertificateResult, x: Tensor) -> CertificateResult:
        return replace(found, counterexample=x)

    with pytest.warns(UserWarning, match=r"5 counterexamples .*'decision'"):
        evidence = evaluated(HalfSpaceDecision(spoil=not_moved))
    columns = evidence.table.certificates["decision"]
    correct = evidence.table.correct
    np.testing.assert_array_equal(columns.falsified, falsified & ~correct)
    assert (columns.verdict[falsified & correct] == Verdict.UNKNOWN).all()
    assert len(evidence.images.certificates["decision"]) == int((falsified & ~correct).sum())

    def too_far(found: CertificateResult, x: Tensor) -> CertificateResult:
        return replace(found, counterexample=found.counterexample + 0.3)

    with pytest.warns(UserWarning, match="counterexamples of the certificate"):
        evidence = evaluated(HalfSpaceDecision(spoil=too_far))
    assert not evidence.table.certificates["decision"].falsified.any()


def verified_everywhere(found: CertificateResult, x: Tensor) -> CertificateResult:
    return replace(found, verdict=torch.full_like(found.verdict, Verdict.VERIFIED))


def test_a_certificate_that_an_attack_refutes_is_refused() -> None:
    with pytest.raises(EvaluationError, match="a certificate is wrong"):
        evaluated(HalfSpaceDecision(spoil=verified_everywhere))


def test_two_certificates_that_contradict_each_other_are_refused() -> None:
    suite = Suite(
        "two", {}, certificates={"a": HalfSpaceDecision(), "b": HalfSpaceDecision(spoil=verified_everywhere)}
    )
    with pytest.raises(EvaluationError, match="a certificate is wrong"):
        evaluate(half_space(), images(), THREAT, suite, batch_size=7)


@pytest.mark.parametrize(
    "decision",
    [
        HalfSpaceDecision(spoil=lambda found, x: replace(found, counterexample=None)),
        HalfSpaceDecision(certifies="another classifier"),
    ],
)
def test_falsified_examples_need_a_counterexample_and_a_proof_about_the_model(decision: HalfSpaceDecision) -> None:
    with pytest.raises(EvaluationError, match=r"falsified.* counterexample"):
        evaluated(decision)


def test_verdicts_and_radii_do_not_depend_on_batch_size() -> None:
    suite = replace(SUITE, certificates={"proof": HalfSpaceProof(), "decision": HalfSpaceDecision()})
    one, other = (evaluate(half_space(), images(), THREAT, suite, batch_size=size) for size in (3, 20))
    for name in suite.certificates:
        mine, theirs = one.table.certificates[name], other.table.certificates[name]
        np.testing.assert_array_equal(mine.verdict, theirs.verdict)
        np.testing.assert_allclose(mine.radius, theirs.radius, rtol=1e-5)


def test_stages_work_and_reasons_are_recorded_and_survive_the_disk(tmp_path: Path) -> None:
    suite = Suite("staged", {"across": StraightAcross()}, certificates={"staged": StagedCertificate(30)})
    evidence = evaluate(half_space(), images(), THREAT, suite, batch_size=7)
    write_evidence(evidence, tmp_path)
    columns = read_evidence(tmp_path).table.certificates["staged"]
    expected = StagedCertificate(30)(
        half_space(), images().floats(), images().labels, threat=THREAT, generator=KeyedGenerator(0, images().ids)
    )
    assert tuple(columns.stage) == expected.stage
    assert tuple(columns.reason) == expected.reason
    np.testing.assert_array_equal(columns.work, expected.work)
    np.testing.assert_array_equal(columns.seconds, expected.seconds)
    np.testing.assert_array_equal(columns.reason == SPENT, columns.open)
    (numbers,) = read_evidence(tmp_path).summary.metrics.certificates
    assert list(numbers.stages) == ["attack", "ibp", "crown", "branch"]
    assert numbers.stages["attack"].falsified == numbers.stages["attack"].count == int(columns.falsified.sum())
    assert numbers.reasons == {SPENT: int(columns.open.sum())}
    interval = evidence.summary.metrics.interval
    assert interval is not None
    assert interval.attacked.hits - interval.certified.hits == interval.undecided > 0


def test_texts_of_a_certificate_are_one_for_each_example_and_printable() -> None:
    part = StagedCertificate()(
        half_space(), images().floats(), images().labels, threat=THREAT, generator=KeyedGenerator(0, images().ids)
    )
    with pytest.raises(ValueError, match="stage has 2 texts for 20 examples"):
        replace(part, stage=("a", "b"))
    columns = certificate_columns(replace(part, reason=("\x1b[2Jone\ntwo " + "x" * 999,) * 20))
    assert set(columns.reason) == {("?[2Jone two " + "x" * 999)[:200]}
