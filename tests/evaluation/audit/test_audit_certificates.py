"""The audit of certificates: forged verdicts, radii and counterexamples fail, with and without new numbers."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from half_space import HalfSpaceDecision, HalfSpaceProof, StraightAcross, target
from robustly.certification import CertificateResult
from robustly.evaluation import Suite, audit, evaluate
from robustly.evidence import Evidence, StoredImages, Verdict, read_evidence, write_evidence
from robustly.evidence.metrics import metrics
from robustly.evidence.schema import CertificateColumns

SUITE = Suite(
    "certified",
    {"across": StraightAcross()},
    certificates={"proof": HalfSpaceProof(), "decision": HalfSpaceDecision()},
    curve="across",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    here = target()
    write_evidence(evaluate(here.model, here.data, here.threat, SUITE, batch_size=7), tmp_path)
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
    assert {"certificate decision: counterexamples", "certificate decision", "certificate proof"} <= set(names)


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
        ("proof", spoil_a_radius, "negative or not a number"),
        ("proof", another_class, "verified with another class"),
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
