"""The audit of certificates: forged verdicts, radii and counterexamples fail, with and without new numbers."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from half_space import HalfSpaceDecision, HalfSpaceProof, StraightAcross, distance, target
from robustly.certification import CertificateResult
from robustly.evaluation import Sampling, Suite, audit, evaluate
from robustly.evaluation.audit import proofs
from robustly.evaluation.audit.certificates import _form_problem
from robustly.evaluation.audit.proofs import draw
from robustly.evidence import Evidence, StoredImages, Verdict, read_evidence, write_evidence
from robustly.evidence.metrics import metrics
from robustly.evidence.schema import CertificateColumns, column_fields
from robustly.randomness import KeyedGenerator
from staged_certificate import StagedCertificate

SUITE = Suite(
    "certified",
    {"across": StraightAcross()},
    certificates={"proof": HalfSpaceProof(), "decision": HalfSpaceDecision()},
    curve="across",
)


def evaluated(suite: Suite) -> Evidence:
    here = target()
    return evaluate(here.model, here.data, here.threat, suite, batch_size=7)


@pytest.fixture(scope="module")
def honest() -> Evidence:
    return evaluated(SUITE)


@pytest.fixture
def folder(honest: Evidence, tmp_path: Path) -> Path:
    write_evidence(honest, tmp_path)
    return tmp_path


def failed(folder: Path, suite: Suite = SUITE) -> str:
    checks = audit(folder, target(), suite).checks
    return "; ".join(f"{check.name}: {check.problem}" for check in checks if not check.passed)


def reseal(evidence: Evidence, folder: Path) -> None:
    """Update numbers so that they agree with forged rows."""
    curve = evidence.summary.metrics.security_curve
    assert curve is not None
    numbers = metrics(
        evidence.table,
        certificates=evidence.summary.terms,
        classes=evidence.summary.data.classes,
        limit=evidence.summary.threat.limit,
        curve=list(zip(curve.epsilon_text, curve.epsilon, strict=True)),
    )
    write_evidence(replace(evidence, summary=replace(evidence.summary, metrics=numbers)), folder)


def test_honest_certificates_pass(folder: Path) -> None:
    assert not failed(folder)
    names = [check.name for check in audit(folder, target(), SUITE).checks]
    assert {"certificate decision: counterexamples", "certificate proof: 20 of 20 proofs repeated"} <= set(names)


def verify_a_falsified_row(columns: CertificateColumns) -> None:
    row = np.flatnonzero(columns.falsified)[0]
    columns.verdict[row] = Verdict.VERIFIED


def verify_an_unknown_row(columns: CertificateColumns) -> None:
    columns.verdict[np.flatnonzero(columns.verdict == Verdict.UNKNOWN)[0]] = Verdict.VERIFIED


def lengthen(columns: CertificateColumns) -> None:
    columns.radius[columns.verified] *= 1.5


def shorten_below_the_threat(columns: CertificateColumns) -> None:
    columns.radius[columns.verified] = 0.1


def spoil_a_radius(columns: CertificateColumns) -> None:
    columns.radius[0] = np.nan


def another_class(columns: CertificateColumns) -> None:
    columns.prediction[columns.verified] = 1 - columns.prediction[columns.verified]


def prove_and_falsify(columns: CertificateColumns) -> None:
    columns.lower_bound[columns.falsified] = 1.0


def verify_with_a_negative_bound(columns: CertificateColumns) -> None:
    columns.lower_bound[columns.verified] = -1.0


def name_a_class_that_is_not_predicted(columns: CertificateColumns) -> None:
    row = np.flatnonzero(~columns.verified)[0]
    columns.prediction[row], columns.radius[row] = 1 - columns.prediction[row], 0.01


def reach_beyond_a_counterexample(columns: CertificateColumns) -> None:
    unknown = np.flatnonzero(
        (columns.verdict == Verdict.UNKNOWN) & (columns.prediction == target().data.labels.numpy())
    )
    columns.radius[unknown[np.argmin(columns.radius[unknown])]] = 0.19


def negative_work(columns: CertificateColumns) -> None:
    columns.work[3] = -1


def endless(columns: CertificateColumns) -> None:
    columns.seconds[3] = np.inf


def falsify_without_an_image(columns: CertificateColumns) -> None:
    columns.verdict[np.flatnonzero(columns.verified)[0]] = Verdict.FALSIFIED


@pytest.mark.parametrize(
    ("name", "change", "check"),
    [
        ("proof", verify_an_unknown_row, "certificate proof: verdicts follow from the rows: 1 are verified"),
        ("decision", verify_a_falsified_row, "certificate decision: counterexamples: 1 rows"),
        ("proof", lengthen, "certificate proof: "),
        ("decision", lengthen, "certificate decision: "),
        ("proof", shorten_below_the_threat, "smaller radius than the threat"),
        ("proof", spoil_a_radius, "negative, infinite or not a number"),
        ("proof", another_class, "verified with another class"),
        ("decision", prove_and_falsify, "falsified and proved at once"),
        ("decision", verify_with_a_negative_bound, "verified without a positive bound"),
        ("proof", name_a_class_that_is_not_predicted, "1 have a radius of another class"),
        ("proof", reach_beyond_a_counterexample, "1 examples are certified by proof at a size"),
        ("proof", negative_work, "work is negative"),
        ("proof", endless, "a duration is negative or infinite"),
        ("proof", falsify_without_an_image, "1 rows are falsified without a counterexample"),
        ("decision", falsify_without_an_image, "1 rows do not agree with the counterexamples"),
    ],
)
def test_a_forged_row_fails(
    folder: Path, name: str, change: Callable[[CertificateColumns], None], check: str
) -> None:
    evidence = read_evidence(folder)
    change(evidence.table.certificates[name])
    reseal(evidence, folder)
    assert check in failed(folder)


def test_a_verified_row_that_an_attack_broke_is_a_contradiction(folder: Path) -> None:
    evidence = read_evidence(folder)
    columns, attack = evidence.table.certificates["proof"], evidence.table.attacks["across"]
    row = np.flatnonzero(attack.broken & attack.tried)[0]
    columns.verdict[row], columns.radius[row] = Verdict.VERIFIED, 0.2
    reseal(evidence, folder)
    assert "no example both certified and broken: 1 examples are certified by proof" in failed(folder)


def test_a_radius_beyond_the_counterexample_of_another_certificate_fails(tmp_path: Path) -> None:
    suite = replace(SUITE, attacks={}, curve=None)
    here = target()
    evidence = evaluate(here.model, here.data, here.threat, suite, batch_size=7)
    reach_beyond_a_counterexample(evidence.table.certificates["proof"])
    write_evidence(evidence, tmp_path)
    assert "broken: 1 radii of proof reach beyond a counterexample, first id 1" in failed(tmp_path, suite)


def originals(stored: StoredImages) -> StoredImages:
    rows = stored.ids - 100
    return replace(stored, images=target().data.floats()[rows].numpy())


def far_away(stored: StoredImages) -> StoredImages:
    return replace(stored, images=np.clip(stored.images + 0.2, 0, 1))


def one_less(stored: StoredImages) -> StoredImages:
    return stored.only(np.arange(len(stored)) > 0)


@pytest.mark.parametrize("change", [originals, far_away, one_less])
def test_a_forged_counterexample_fails(folder: Path, change: Callable[[StoredImages], StoredImages]) -> None:
    evidence = read_evidence(folder)
    kept = {"decision": change(evidence.images.certificates["decision"])}
    reseal(replace(evidence, images=replace(evidence.images, certificates=kept)), folder)
    assert "certificate decision: counterexamples" in failed(folder)


@dataclass(frozen=True)
class RiskyProof:
    """The same proof, but wrong with some probability."""

    failure_probability: float
    certifies: str = "model"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **rest: Any) -> CertificateResult:
        return replace(HalfSpaceProof()(model, x, y, **rest), failure_probability=self.failure_probability)


def test_a_smaller_failure_probability_or_another_classifier_fails(folder: Path) -> None:
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    summary["certificates"][0]["certifies"] = "another classifier"
    file.write_text(json.dumps(summary))
    assert "names two classifiers" in failed(folder)
    risky = replace(SUITE, certificates={**SUITE.certificates, "proof": RiskyProof(0.01)})
    here = target()
    write_evidence(evaluate(here.model, here.data, here.threat, risky, batch_size=7), folder)
    assert not failed(folder, risky)
    summary = json.loads(file.read_text())
    summary["certificates"][0]["failure_probability"] = 0.001
    file.write_text(json.dumps(summary))
    assert "its failure probability is 0.01, not 0.001" in failed(folder, risky)


def test_certified_accuracy_is_recounted(folder: Path) -> None:
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    summary["certified"]["robust"] += 1
    summary["certificates"][1]["verdicts"]["verified"] += 1
    file.write_text(json.dumps(summary))
    problem = failed(folder)
    assert "certified.robust" in problem
    assert "certificates[1].verdicts.verified" in problem


STAGED = Suite("staged", {"across": StraightAcross()}, certificates={"staged": StagedCertificate(30)})


def staged_folder(tmp_path: Path, suite: Suite = STAGED) -> Path:
    write_evidence(evaluated(suite), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("column", "text", "problem"),
    [
        ("stage", "<b>crown</b>", "the name of a stage"),
        ("stage", "x" * 41, "the name of a stage"),
        ("reason", "\x1b[2J", "not printable"),
        ("reason", "x" * 201, "too long"),
    ],
)
def test_forged_texts_fail(tmp_path: Path, column: str, text: str, problem: str) -> None:
    evidence = read_evidence(staged_folder(tmp_path))
    columns = evidence.table.certificates["staged"]
    texts = np.where(columns.open, text, getattr(columns, column))
    assert columns.open.any()
    found = _form_problem(replace(columns, **{column: texts}))
    assert problem in found
    assert not _form_problem(columns)
    decided = replace(columns, reason=np.where(columns.verified, "too hard", columns.reason))
    assert "a decided row has a reason" in _form_problem(decided)


def test_proofs_are_repeated_with_more_work_and_the_guarantee_states_how_many(tmp_path: Path) -> None:
    result = audit(staged_folder(tmp_path), target(), STAGED)
    assert result.passed, result
    (title,) = [check.name for check in result.checks if "proofs repeated" in check.name]
    verified = int(read_evidence(tmp_path).table.certificates["staged"].verified.sum())
    assert title == f"certificate staged: {verified} of {verified} proofs repeated with 4 times the work"
    assert f" {verified} of {verified} proofs of staged were repeated with 4 times the work." in result.guarantee


def test_a_proof_that_more_work_does_not_give_fails(tmp_path: Path) -> None:
    """The certificate overstates distances by a third; without its attack nothing else would show it."""
    wrong = StagedCertificate(1000, inflated=1.34)
    suite = Suite("staged", {"halfway": StraightAcross(0.5)}, certificates={"staged": wrong})
    folder = staged_folder(tmp_path, suite)
    right = StagedCertificate(1000)(*call(), threat=target().threat, generator=KeyedGenerator(0, target().data.ids))
    false = (
        read_evidence(folder).table.certificates["staged"].verified & (right.verdict != Verdict.VERIFIED).numpy()
    )
    assert false.any()
    assert f"{int(false.sum())} are not reproduced (ids " in failed(folder, suite)


def call() -> tuple[nn.Module, Tensor, Tensor]:
    here = target()
    return here.model, here.data.floats(), here.data.labels


def test_a_sample_has_every_stage_and_its_size_does_not_depend_on_the_evidence(tmp_path: Path) -> None:
    columns = read_evidence(staged_folder(tmp_path)).table.certificates["staged"]
    many = CertificateColumns(
        **{name: np.tile(getattr(columns, name), 50) for name in column_fields(CertificateColumns)}
    )
    sampling = Sampling(share=0.2, confidence=0.9, seed=3)
    order = sampling.order(1000)
    drawn = draw(many, order, sampling)
    assert drawn.claims == int(many.verified.sum())
    assert len(drawn.sample) == sampling.size(drawn.claims) < 15
    assert many.verified[drawn.sample].all()
    assert set(many.stage[drawn.each_stage]) == set(many.stage[many.verified])
    dear = replace(many, work=many.work * 10**6, seconds=many.seconds * 10**6)
    np.testing.assert_array_equal(draw(dear, order, sampling).sample, drawn.sample)
    assert len(draw(many, order, replace(sampling, everything=True)).sample) == drawn.claims


def test_an_audit_without_time_states_that_it_proved_too_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = staged_folder(tmp_path)
    monkeypatch.setattr(proofs, "SECONDS", 0.0)
    result = audit(folder, target(), STAGED)
    assert result.passed
    assert " 2 of 6 proofs of staged were repeated" in result.guarantee
    assert "too few for a statement on the others" in result.guarantee
    result = audit(folder, target(), STAGED, sampling=Sampling(everything=True))
    assert " 6 of 6 proofs of staged were repeated with 4 times the work." in result.guarantee


def test_a_radius_that_is_stated_beyond_the_threat_is_proved_at_that_radius(tmp_path: Path) -> None:
    """Verified rows prove their full distance, not only epsilon; an unknown row proves a radius below it."""
    evidence = read_evidence(staged_folder(tmp_path))
    columns = evidence.table.certificates["staged"]
    far = distance(target().model, target().data.floats())[0].double().numpy()
    columns.radius[columns.verified] = (far * 0.7).clip(0.2)[columns.verified]
    for row in np.flatnonzero(columns.open):
        columns.radius[row] = 0.01
    write_evidence(evidence, tmp_path)
    assert not failed(tmp_path, STAGED)
    wrong = np.flatnonzero(columns.verified)[0]
    columns.radius[wrong] = far[wrong] * 1.01
    write_evidence(evidence, tmp_path)
    assert f"1 are not reproduced (ids {evidence.table.examples.id[wrong]})" in failed(tmp_path, STAGED)
