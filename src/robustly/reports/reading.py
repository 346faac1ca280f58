"""Read run folders. Every part is optional, but a part that exists must be complete."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from robustly.documents import DocumentError, read_csv, read_yaml
from robustly.evidence import Evidence, EvidenceTable, Summary, read_summary
from robustly.evidence.audit_record import AuditRecord, read_audit, read_signature
from robustly.evidence.corruption_result import CORRUPTIONS, CorruptionResult, read_corruptions
from robustly.evidence.costs import read_cost_summary
from robustly.evidence.domains import SPLITS, DomainResult, result_of_folders, source_folder
from robustly.evidence.partial_unions import LeftOut, union_of_folders
from robustly.evidence.protocol_result import (
    ProtocolResult,
    contradiction,
    own_evaluations,
    protocol_files,
    read_protocol,
)
from robustly.evidence.records import EvidenceError, from_json, read_object
from robustly.evidence.schema import IMAGES, SUMMARY, TABLE
from robustly.evidence.storage import pictures_of, read_pictures, read_table
from robustly.evidence.unions import ThreatUnion
from robustly.reports.analysis import Analysis, read_analysis
from robustly.reports.run import ReportError, RunEvidence, Status, ThreatTest, Training

Content = TypeVar("Content")

PRETRAINING = "_pretraining.csv"
"""End of the names of tables of a network's epochs before the run."""
AUDIT_CALL = 'robustly.read_result("FOLDER").audit(model, data)'
"""The audit of evidence without a run folder, which states neither model nor data."""


def read_run(path: Path, evaluation_folder: Path | None = None) -> RunEvidence:
    """Read a run folder.

    Args:
        path: the folder of one run, with `metrics.csv` or `evaluation/summary.json` or both.
        evaluation_folder: the folder of its evaluation; None for `evaluation` in the run.

    Raises:
        ReportError: both are missing, or a training file is cut off.
        EvidenceError: a file of the evaluation is cut off or has another schema.
    """
    if not path.is_dir():
        raise ReportError(f"{path} is not a run folder: there is no such folder.")
    folder = evaluation_folder or path / "evaluation"
    config = if_there(path / "config.yaml", read_config)
    training = if_there(path / "metrics.csv", read_training)
    protocols = tuple(map(read_protocol, protocol_files(path)))
    evaluation = if_there(folder / SUMMARY, lambda file: read_summary(file.parent))
    if training is None and evaluation is None:
        raise ReportError(
            f"{path} has neither evaluation/summary.json nor metrics.csv: evaluate it first "
            f"(robustly evaluate {path})."
        )
    table = pictures = None
    notes = []
    if evaluation is not None:
        table = if_there(folder / TABLE, lambda file: read_table(file.parent))
        pictures = if_there(folder / IMAGES, lambda file: read_pictures(file.parent))
        notes = _contradictions(evaluation, table)
    analysis = if_there(path / "analysis.json", read_analysis)
    if analysis is not None and evaluation is not None:
        notes += _other_model(analysis, evaluation)
    notes += [one for one in (contradiction(path, stated) for stated in protocols) if one]
    union, left_out, tests = _union(path, analysis, protocols)
    corruptions = if_there(path / CORRUPTIONS, read_corruptions)
    if corruptions is not None and evaluation is not None:
        notes += _other_weights(corruptions, evaluation)
    name = path.resolve().name  # the name in the evidence is that of the folder when it was evaluated
    audit = signature = costs = domains = source_audit = None
    if evaluation is not None:
        if evaluation.data.split == SPLITS["target"]:
            domains, problem = _domains(folder)
            notes += problem
            source_audit = None if domains is None else read_audit(source_folder(folder))
        audit, signature, costs = read_audit(folder), read_signature(folder), read_cost_summary(folder)
    return RunEvidence(
        path=path,
        name=name,
        config=config,
        training=training,
        evaluation=evaluation,
        table=table,
        pictures=pictures,
        notes=tuple(notes),
        analysis=analysis,
        audit=audit,
        signature=signature,
        union=union,
        left_out=left_out,
        tests=tests,
        corruptions=corruptions,
        costs=costs,
        protocols=protocols,
        domains=domains,
        source_audit=source_audit,
    )


def _domains(target: Path) -> tuple[DomainResult | None, list[str]]:
    """Accuracies by domain as the evaluations are now, or a note without them."""
    try:
        found = result_of_folders(target)
    except EvidenceError as error:
        return None, [f"There are no accuracies by domain: {str(error).rstrip('.')}."]
    missing = f"There are no accuracies on the source domains: {source_folder(target).name} is missing."
    return found, [] if found is not None else [missing]


def _union(
    path: Path, analysis: Analysis | None, protocols: Sequence[ProtocolResult]
) -> tuple[ThreatUnion | None, tuple[LeftOut, ...], tuple[ThreatTest, ...]]:
    """The union over the evaluations of a run as they are now; that of its analysis if they have none.

    Evaluations that a protocol made for itself count in its own union alone.
    """
    own = own_evaluations(protocols)
    places = [path / "evaluation", *sorted(path.glob("evaluation_*"))]
    places = [one for one in places if (one / SUMMARY).is_file() and one.name not in own]
    union, left_out = union_of_folders(places) if len(places) > 1 else (None, ())
    if union is not None:
        return union, left_out, tests_of_union(union, left_out, places)
    return (None, (), ()) if analysis is None else (analysis.union, analysis.left_out, ())


def tests_of_union(
    union: ThreatUnion, left_out: Sequence[LeftOut], folders: Sequence[Path]
) -> tuple[ThreatTest, ...]:
    """The evaluation under each threat of a union, in its order; of several, the first with a security curve.

    Args:
        union: the union of these folders.
        left_out: those that are not part of it.
        folders: folders of evaluations.
    """
    apart = {one.evaluation for one in left_out}
    found: dict[str, ThreatTest] = {}
    for test in (ThreatTest.of(read_summary(one)) for one in folders if one.name not in apart):
        text = test.threat.text
        if text not in found or (found[text].curve is None and test.curve is not None):
            found[text] = test
    return tuple(found[one.text] for one in union.threats)


def run_of_evidence(evidence: Evidence, audit: AuditRecord | None = None) -> RunEvidence:
    """Evidence in memory, as the content of a run folder without training; a reader audits it with `AUDIT_CALL`.

    Args:
        evidence: the evidence.
        audit: an audit of this evidence.
    """
    summary, table = evidence.summary, evidence.table
    return RunEvidence(
        path=Path(),
        name=summary.run or summary.model.name,
        config=None,
        training=None,
        evaluation=summary,
        table=table,
        pictures=pictures_of(evidence.images),
        notes=tuple(_contradictions(summary, table)),
        audit=audit,
        check=AUDIT_CALL,
    )


def has_results(path: Path) -> bool:
    """Return True if a run folder has metrics of its training or an evaluation."""
    return (path / "metrics.csv").is_file() or (path / "evaluation" / SUMMARY).is_file()


def if_there(file: Path, read: Callable[[Path], Content]) -> Content | None:
    """The content of a file, or None if there is no such file."""
    return read(file) if file.is_file() else None


def read_config(file: Path) -> Mapping[str, object]:
    """The settings of a run.

    Raises:
        ReportError: not YAML, or not a mapping.
    """
    try:
        return read_yaml(file)
    except DocumentError as error:
        raise ReportError(f"{error}.") from None


def read_training(file: Path) -> Training | None:
    """The metrics of a training, and its status beside them; None without a finished epoch.

    Raises:
        ReportError: the file is cut off or has a cell that is not a number.
    """
    columns = _read_columns(file)
    if columns is None:
        return None
    status = if_there(
        file.with_name("status.json"), lambda found: from_json(Status, read_object(found), str(found), strict=False)
    )
    tables = {table: _read_columns(table) for table in sorted(file.parent.glob(f"*{PRETRAINING}"))}
    names = {table.name.removesuffix(PRETRAINING): found for table, found in tables.items()}
    alone = {name: found for name, found in names.items() if found is not None and name.isidentifier()}
    return Training(columns, status or Status(), alone)


def _read_columns(file: Path) -> dict[str, NDArray[np.float64]] | None:
    """A table of numbers with a column `epoch`, by column; None if it has no row."""
    try:
        rows = read_csv(file)
    except DocumentError as error:
        raise ReportError(f"{error}.") from None
    if len(rows) < 2:
        return None
    header = rows[0]
    if "epoch" not in header:
        raise ReportError(f"{file} has no column epoch; its columns are {', '.join(header)[:200]}.")
    if any(len(row) != len(header) for row in rows[1:]):
        raise ReportError(f"{file} has a row that is not as long as its header (cut off while it was written?).")
    try:
        table = np.array([[float(cell) if cell.strip() else np.nan for cell in row] for row in rows[1:]])
    except ValueError as error:
        raise ReportError(f"{file} has a cell that is not a number: {error}.") from error
    return {name: table[:, i] for i, name in enumerate(header)}


def _other_model(analysis: Analysis, evaluation: Summary) -> list[str]:
    """A note if the analysis is of another model or threat than the evaluation."""
    theirs, ours = analysis.model.weights_sha256, evaluation.model.weights_sha256
    if theirs and theirs != ours:
        return ["Analysis and evaluation are of different weights. Run robustly analyse again."]
    if analysis.threat.text != evaluation.threat.text:
        return [
            f"The analysis was made for {analysis.threat.text}, the evaluation for {evaluation.threat.text}. Run "
            "robustly analyse again."
        ]
    return []


def _other_weights(corruptions: CorruptionResult, evaluation: Summary) -> list[str]:
    """A note if the accuracies under corruptions are of another model than the evaluation."""
    if corruptions.model.weights_sha256 == evaluation.model.weights_sha256:
        return []
    return ["Corruptions and evaluation are of different weights. Run robustly corruptions again."]


def _contradictions(evaluation: Summary, table: EvidenceTable | None) -> list[str]:
    """Notes on contradictions between the files of a run, shown above the numbers."""
    notes = []
    metrics = evaluation.metrics
    worst = metrics.worst_case.robust
    if metrics.proved is not None and metrics.proved.count == worst.count:
        proved = metrics.proved.hits
        if proved > worst.hits:
            notes.append(
                f"A certificate and an attack contradict each other: {proved} examples are certified, but "
                f"only {worst.hits} are unbroken by the attacks. One of the two is wrong."
            )
    if table is None:
        return notes
    rows = {
        "clean accuracy": (table.correct, metrics.clean),
        "worst-case accuracy": (table.correct & ~table.worst_case.broken, worst),
    }
    for quantity, (counted, stated) in rows.items():
        if (int(counted.sum()), len(counted)) != (stated.hits, stated.count):
            notes.append(
                f"The summary and the evidence table disagree on {quantity}: {stated.hits} of {stated.count} "
                f"against {int(counted.sum())} of {len(counted)}. Evaluate the run again."
            )
    return notes
