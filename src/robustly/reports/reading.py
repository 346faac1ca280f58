"""Run folders -> `RunEvidence`: every part is optional, but what is there must be whole."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from robustly.budgets import Spent, spent_from
from robustly.reports.analysis import parse_analysis
from robustly.reports.evidence import (
    Analysis,
    AttackRecord,
    Evaluation,
    Examples,
    Pictures,
    ReportError,
    RunEvidence,
    Training,
)
from robustly.reports.fields import read_json
from robustly.reports.summary import parse_summary

Part = TypeVar("Part")


def read_run(path: Path) -> RunEvidence:
    """Read a run folder.

    Args:
        path: the folder of one run, with `metrics.csv` or `evaluation/summary.json` or both.

    Raises:
        ReportError: if neither is there, or a file is cut off or of another schema.
    """
    if not path.is_dir():
        raise ReportError(f"{path} is no folder of a run.")
    folder = path / "evaluation"
    config = if_there(path / "config.yaml", read_config)
    training = if_there(path / "metrics.csv", _read_training)
    evaluation = if_there(folder / "summary.json", lambda file: parse_summary(read_json(file)))
    if training is None and evaluation is None:
        raise ReportError(
            f"{path} holds neither evaluation/summary.json nor metrics.csv: evaluate it first "
            f"(robustly evaluate {path})."
        )
    examples = pictures = None
    notes = []
    if evaluation is not None:
        examples = if_there(folder / "evidence.parquet", lambda file: read_examples(file, evaluation))
        pictures = if_there(folder / "adversarial.safetensors", lambda file: _read_pictures(file, evaluation))
        notes = _contradictions(evaluation, examples)
    analysis = if_there(path / "analysis.json", lambda file: parse_analysis(read_json(file)))
    if analysis is not None and evaluation is not None:
        notes += _other_model(analysis, evaluation)
    name = (evaluation.run if evaluation else None) or path.resolve().name
    return RunEvidence(path, name, config, training, evaluation, examples, pictures, tuple(notes), analysis)


def if_there(file: Path, read: Callable[[Path], Part]) -> Part | None:
    """What a file holds, or None where there is no such file."""
    return read(file) if file.is_file() else None


def read_config(file: Path) -> Mapping[str, object]:
    """The settings of a run.

    Raises:
        ReportError: no YAML, or no mapping.
    """
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReportError(f"{file} is no readable YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(config, dict):
        raise ReportError(f"{file} should hold one YAML mapping.")
    return config


def _read_training(file: Path) -> Training | None:
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
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
        raise ReportError(f"{file} has a cell that is no number: {error}.") from error
    columns = {name: table[:, i] for i, name in enumerate(header)}
    status_file = file.with_name("status.json")
    if not status_file.is_file():
        return Training(columns)
    status = read_json(status_file)
    return Training(
        columns,
        status.maybe_text("state"),
        status.maybe_whole("best_epoch"),
        status.maybe_number("seconds"),
        status.maybe_text("message") or "",
    )


def read_examples(file: Path, evaluation: Evaluation) -> Examples:
    """The evidence table of an evaluation.

    Raises:
        ReportError: if the file is cut off or lacks a column.
    """
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ReportError(f"{file} is no readable Parquet (cut off while it was written?): {reason}.") from error

    def column(name: str) -> NDArray[np.generic] | None:
        return np.asarray(table[name].to_numpy()) if name in table.column_names else None

    def needed(name: str) -> NDArray[np.generic]:
        values = column(name)
        if values is None:
            raise ReportError(f"{file} lacks the column {name}.")
        return values

    def record(attack: str) -> AttackRecord:
        distance, prediction = column(f"{attack}.distance"), column(f"{attack}.prediction")
        return AttackRecord(
            needed(f"{attack}.broken").astype(bool),
            None if distance is None else distance.astype(np.float64),
            None if prediction is None else prediction.astype(np.int64),
            spent(attack),
        )

    def spent(attack: str) -> Spent | None:
        names = [f"{attack}.{what}" for what in ("broken", "tried", "forwards", "backwards")]
        found = {name: values for name in names if (values := column(name)) is not None}
        return spent_from(found, attack) if {names[2], names[3]} <= set(found) else None

    worst = column("worst_case.broken")
    return Examples(
        ids=needed("id").astype(np.int64),
        label=needed("label").astype(np.int64),
        clean_prediction=needed("clean_prediction").astype(np.int64),
        attacks={a.name: record(a.name) for a in evaluation.attacks if f"{a.name}.broken" in table.column_names},
        worst_case_broken=None if worst is None else worst.astype(bool),
    )


def _read_pictures(file: Path, evaluation: Evaluation) -> Pictures | None:
    """The originals and only those adversarial pictures that belong to them: the file may hold gigabytes."""
    try:
        with safe_open(file, framework="np") as tensors:
            names = set(tensors.keys())
            if not {"gallery.ids", "gallery.images"} <= names:
                return None
            ids, originals = tensors.get_tensor("gallery.ids"), tensors.get_tensor("gallery.images")
            if originals.ndim != 4 or len(ids) != len(originals):
                raise ReportError(
                    f"{file}: gallery.images should be (G, C, H, W), one picture for each of gallery.ids."
                )
            adversarial = {}
            for attack in evaluation.attacks:
                if not {f"{attack.name}.ids", f"{attack.name}.images"} <= names:
                    continue
                own = tensors.get_tensor(f"{attack.name}.ids")
                images = tensors.get_slice(f"{attack.name}.images")
                if images.get_shape() != [len(own), *originals.shape[1:]]:
                    raise ReportError(
                        f"{file}: {attack.name}.images does not fit {attack.name}.ids or the originals."
                    )
                places = np.flatnonzero(np.isin(own, ids)).tolist()
                adversarial[attack.name] = {int(own[i]): images[i : i + 1][0] for i in places}
    except (SafetensorError, OSError) as error:
        raise ReportError(f"{file} is no readable safetensors (cut off while it was written?): {error}.") from error
    return Pictures(ids.astype(np.int64), originals.astype(np.float32), adversarial) if len(ids) else None


def _other_model(analysis: Analysis, evaluation: Evaluation) -> list[str]:
    """Where the analysis is not one of what was evaluated."""
    theirs, ours = analysis.weights_sha256, evaluation.model.weights_sha256
    if theirs and ours and theirs != ours:
        return ["The analysis is of other weights than the evaluation. Run robustly analyse again."]
    if analysis.threat != evaluation.threat.text:
        return [
            f"The analysis was made for {analysis.threat}, the evaluation for {evaluation.threat.text}. Run "
            "robustly analyse again."
        ]
    return []


def _contradictions(evaluation: Evaluation, examples: Examples | None) -> list[str]:
    """Where the files of one run disagree: a reader must see that before any number."""
    notes = []
    if evaluation.certified and evaluation.certified.robust.count == evaluation.worst_case.count:
        proved, held = evaluation.certified.robust.correct, evaluation.worst_case.correct
        if proved > held:
            notes.append(
                f"A certificate and an attack contradict each other: {proved} examples are certified, but "
                f"only {held} withstood the attacks. One of the two is wrong."
            )
    if examples is None:
        return notes
    tables = [("clean accuracy", examples.clean_right, evaluation.clean)]
    if examples.worst_case_broken is not None:
        held_rows = examples.clean_right & ~examples.worst_case_broken
        tables.append(("worst-case accuracy", held_rows, evaluation.worst_case))
    for what, rows, told in tables:
        if (int(rows.sum()), len(rows)) != (told.correct, told.count):
            notes.append(
                f"The summary and the evidence table disagree on {what}: {told.correct} of {told.count} "
                f"against {int(rows.sum())} of {len(rows)}. Evaluate the run again."
            )
    return notes
