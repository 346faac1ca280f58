"""Audit of the provenance: files, weights, images, threat, suite and originals."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustly.attacks import Transfer
from robustly.evaluation.audit.check import Check, first_id
from robustly.evaluation.audit.rounding import Rounding, too_many_ties
from robustly.evaluation.curve import recorded_curve
from robustly.evaluation.derived import gallery, picture_words
from robustly.evaluation.recording import as_array, data_record, model_record, suite_record, threat_record
from robustly.evaluation.suites.composed import suite_from, with_surrogates
from robustly.evaluation.suites.suite import Suite, settings
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Evidence, EvidenceTable, Summary
from robustly.evidence.schema import FIELDS_SINCE, IMAGES, SUMMARY, TABLE
from robustly.files import file_sha256
from robustly.models import weights_hash
from robustly.objectives import ClassificationGoal, margin


def files_check(folder: Path, summary: Summary) -> Check:
    """Check that the files have the hashes that the summary states."""
    wrong = [name for name in (TABLE, IMAGES) if file_sha256(folder / name) != summary.files.get(name)]
    wrong += [name[:40] for name in summary.files if name not in (TABLE, IMAGES)]
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


def parts_check(evidence: Evidence) -> Check:
    """Check that table and images have the attacks and certificates of the summary, and no others."""
    summary, table, images = evidence.summary, evidence.table, evidence.images
    attacks = set(summary.suite.names)
    certificates = {one.name for one in summary.suite.certificates}
    pairs = {
        "rows of attacks": (set(table.attacks), attacks),
        "images of attacks": (set(images.attacks), attacks),
        "rows of certificates": (set(table.certificates), certificates),
        "numbers of certificates": ({one.name for one in summary.metrics.certificates}, certificates),
    }
    wrong = [name for name, (found, expected) in pairs.items() if found != expected]
    if set(images.certificates) - certificates:
        wrong.append("counterexamples")
    if summary.data.count != len(table):
        wrong.append(f"{len(table)} rows for {summary.data.count} images")
    return Check("table and images have the parts of the suite", f"not those: {', '.join(wrong)}" if wrong else "")


def clean_check(table: EvidenceTable, clean: Tensor, rounding: Rounding) -> Check:
    """Check the predictions and margins of the clean images.

    Args:
        table: the rows.
        clean: logits of the clean images, `(N, K)`.
        rounding: rounding of the network.
    """
    wrong = rounding.disagree(clean, table.examples.clean_prediction)
    own = -margin(clean, ClassificationGoal(torch.from_numpy(table.examples.label).to(clean.device)))
    allowed = as_array(10 * rounding.tolerance(clean) + 1e-5 * own.abs())  # a margin is a difference of two logits
    wrong |= ~(np.abs(as_array(own) - table.examples.clean_margin) <= allowed)
    problem = f"{int(wrong.sum())} differ, first id {first_id(table, wrong)}" if wrong.any() else ""
    ties = int((as_array(clean.argmax(1)) != table.examples.clean_prediction).sum())
    if not problem and too_many_ties(ties, len(table)):
        problem = f"{ties} predictions differ, more than rounding explains"
    return Check("clean predictions and margins", problem)


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
    """Check that the originals of the report's pictures are those that the evaluation selects."""
    name, shown = "the originals shown are those of the data", evidence.images.gallery
    expected = gallery(target, evidence.images.attacks)
    if shown.theta is not None:
        return Check(name, "originals have no parameters")
    same = np.array_equal(shown.ids, expected.ids) and np.array_equal(shown.images, expected.images)
    return Check(name, "" if same else "they differ")


def picture_words_check(evidence: Evidence, target: EvaluationTarget) -> Iterator[Check]:
    """Check the words of the report's pictures against the parameters of the images, if there are any.

    Evidence of earlier schemas may have none.
    """
    stated, name = evidence.summary.picture_words, "the words of the pictures follow from their parameters"
    derived = picture_words(target, evidence.images.attacks, evidence.images.gallery)
    if evidence.summary.schema < FIELDS_SINCE and not stated:
        if derived:
            yield Check(name, note=f"evidence of schema {evidence.summary.schema} has none")
    elif stated or derived:
        yield Check(name, "" if stated == derived else "they differ")


def description_check(summary: Summary, target: EvaluationTarget, suite: Suite) -> Check:
    """Check that threat, suite, classes, titles and counts are those of the target and the given suite."""
    data, model = data_record(target), model_record(target)
    mode = "worst_case" if suite.worst_case else summary.suite.mode
    pairs = {
        "threat": (summary.threat, threat_record(target.threat)),
        "suite": (summary.suite, suite_record(target, suite, mode)),
        "data.classes": (summary.data.classes, data.classes),
        "data.count": (summary.data.count, data.count),
        "model.parameters": (summary.model.parameters, model.parameters),
    }
    wrong = [name for name, (stated, derived) in pairs.items() if stated != derived]
    if summary.composed is not None and not _is_composed(summary, target, suite):
        wrong.append("composed")
    return Check("the record of threat, suite and data", f"wrong: {', '.join(wrong)}" if wrong else "")


def _is_composed(summary: Summary, target: EvaluationTarget, suite: Suite) -> bool:
    """Return True if the stages in the evidence make the given suite."""
    try:
        own = suite_from(summary.suite.name, summary.composed, target.threat)
        own = recorded_curve(own, summary.suite)
        loaded = {name: iter(one.surrogates) for name, one in suite.attacks.items() if isinstance(one, Transfer)}
        own = with_surrogates(own, lambda stage, source: next(loaded[stage]))
    except (ValueError, KeyError, StopIteration):
        return False
    return suite_record(target, own, "worst_case") == suite_record(target, suite, "worst_case")
