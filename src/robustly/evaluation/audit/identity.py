"""Audit of the provenance: files, weights, images, diagnostics, threat, suite and originals."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from robustly.evaluation.audit.check import Check, disagree, first_id, placed
from robustly.evaluation.recording import as_array, data_record, model_record, suite_record, threat_record
from robustly.evaluation.suites.suite import Suite, settings
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Evidence, EvidenceTable, Finding, Summary
from robustly.evidence.schema import IMAGES, SUMMARY, TABLE
from robustly.files import file_sha256
from robustly.models import weights_hash


def files_check(folder: Path, summary: Summary) -> Check:
    """Check that the files have the hashes that the summary states."""
    wrong = [name for name in (TABLE, IMAGES) if file_sha256(folder / name) != summary.files.get(name)]
    return Check(f"the files are those that {SUMMARY} names", f"changed: {', '.join(wrong)}" if wrong else "")


def identity_checks(evidence: Evidence, target: EvaluationTarget) -> Iterator[Check]:
    """Check weights, images and rows against the target. If the last check fails, no other check is possible."""
    summary, examples = evidence.summary, evidence.table.examples
    weights, named = weights_hash(target.model), summary.model.weights_sha256
    same = "" if weights == named else f"they hash to {weights}: the evaluation is of another checkpoint"
    yield Check(f"the weights are those named ({named[:12]}...)", same)
    if same:
        return
    digest = target.data.digest()
    yield Check("the images are those named", "" if digest == summary.data.sha256 else f"they hash to {digest}")
    ids, labels = as_array(target.data.ids), as_array(target.data.labels)
    same_rows = np.array_equal(examples.id, ids) and np.array_equal(examples.label, labels)
    yield Check("one row per image, with its label", "" if same_rows else "ids or labels differ from the data")


def clean_check(table: EvidenceTable, target: EvaluationTarget) -> Check:
    """Check the predictions of the clean images."""
    rows = torch.arange(len(target.data), device=target.data.images.device)
    wrong = disagree(target.logits(target.data.floats, rows), table.examples.clean_prediction)
    problem = f"{int(wrong.sum())} differ, first id {first_id(table, wrong)}" if wrong.any() else ""
    return Check("clean predictions", problem)


def findings_check(summary: Summary, findings: list[Finding]) -> Check:
    """Check that the cheap diagnostics have the same outcomes again."""
    stated = {finding.id: finding.passed for finding in summary.findings}
    wrong = [finding.id for finding in findings if stated.get(finding.id) != finding.passed]
    return Check("the diagnostics are reproduced", f"other outcome: {', '.join(wrong)}" if wrong else "")


def suite_check(summary: Summary, suite: Suite | None) -> Check:
    """Check that every part and setting of the given suite is that of the evaluation."""
    name = f"the suite {summary.suite.name!r} is the one of that name"
    if suite is None:
        return Check(name, "there is no suite of this name, so no attack or certificate can be run again")
    attacks = {one.name: dict(one.settings) for one in summary.suite.attacks}
    certificates = {one.name: dict(one.settings) for one in summary.suite.certificates}
    wrong = [] if attacks == {key: settings(part) for key, part in suite.attacks.items()} else ["attacks"]
    if certificates != {key: settings(part) for key, part in suite.certificates.items()}:
        wrong.append("certificates")
    return Check(name, f"its {' and '.join(wrong)} differ from the summary" if wrong else "")


def gallery_check(evidence: Evidence, target: EvaluationTarget) -> Check:
    """Check that the originals of the report's pictures are images of the data."""
    shown = placed(evidence.images.gallery, evidence.table, target)
    same = len(shown.rows) == 0 or torch.equal(shown.images, target.data.floats(shown.rows))
    return Check("the originals shown are those of the data", "" if same else "they differ")


def description_check(summary: Summary, target: EvaluationTarget, suite: Suite) -> Check:
    """Check that threat, suite, classes, titles and counts are those of the target and the given suite."""
    data, model = data_record(target), model_record(target)
    pairs = {
        "threat": (summary.threat, threat_record(target.threat)),
        "suite": (summary.suite, suite_record(target, suite, summary.suite.mode)),
        "data.classes": (summary.data.classes, data.classes),
        "data.count": (summary.data.count, data.count),
        "model.parameters": (summary.model.parameters, model.parameters),
    }
    wrong = [name for name, (stated, derived) in pairs.items() if stated != derived]
    return Check("the record of threat, suite and data", f"wrong: {', '.join(wrong)}" if wrong else "")
