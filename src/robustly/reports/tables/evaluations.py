"""All evaluations of a run: in the folder `evaluation` and in folders `evaluation_NAME`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustly.evidence import Summary, read_summary
from robustly.evidence.protocol_result import own_evaluations, protocol_files, read_protocol
from robustly.evidence.schema import SUMMARY, TABLE
from robustly.evidence.storage import read_table
from robustly.reports.reading import if_there, read_config
from robustly.reports.run import ReportError
from robustly.statistics import Proportion


@dataclass(frozen=True)
class KeptEvaluation:
    """An evaluation and its folder."""

    folder: Path
    evaluation: Summary


@dataclass(frozen=True)
class EvaluatedRun:
    """A run and the evaluations of its selected weights, or those of its last epoch.

    Args:
        path: the folder.
        name: name of the run.
        config: its settings; None without a `config.yaml`.
        evaluations: the evaluations, all of the same weights.
        last_epoch: whether they are of the weights after the last epoch.
    """

    path: Path
    name: str
    config: Mapping[str, object] | None
    evaluations: tuple[KeptEvaluation, ...]
    last_epoch: bool = False

    @property
    def recipe(self) -> str | None:
        """The recipe of the run."""
        recipe = None if self.config is None else self.config.get("recipe")
        return recipe if isinstance(recipe, str) and recipe else None


def read_evaluated(path: Path) -> EvaluatedRun:
    """The first of `read_rows`: a run and the evaluations of its selected weights, if there are any.

    Raises:
        ReportError: see `read_rows`; a run that has evaluations by suites of several threats alone.
    """
    rows = read_rows(path)
    if not rows:
        raise ReportError(
            f"{path} was evaluated by suites of several threats alone: run `robustly evaluate {path}`."
        )
    return rows[0]


def read_rows(path: Path) -> tuple[EvaluatedRun, ...]:
    """Read a run and all its evaluations: one of the selected weights, and one of the last epoch, as far as done.

    Evaluations that a suite of several threats made for itself are left out: `protocol_tables` has their numbers.
    There is no row if the run has no others.

    Args:
        path: the folder of the run.

    Raises:
        ReportError: the folder is not a run folder, has no evaluation, or has evaluations of different weights.
        EvidenceError: a file is damaged.
    """
    if not path.is_dir():
        raise ReportError(f"{path} is not a run folder: there is no such folder.")
    protocols = tuple(map(read_protocol, protocol_files(path)))
    apart = own_evaluations(protocols)
    folders = [one for one in (path / "evaluation", *sorted(path.glob("evaluation_*"))) if one.name not in apart]
    kept = [KeptEvaluation(folder, read_summary(folder)) for folder in folders if (folder / SUMMARY).is_file()]
    config = if_there(path / "config.yaml", read_config)
    if not kept and protocols:
        return ()
    if not kept and config is None:
        raise ReportError(f"{path} is not a run folder: it has neither config.yaml nor evaluation/summary.json.")
    if not kept:
        raise ReportError(f"{path} is not evaluated yet: run `robustly evaluate {path}` first.")
    rows = []
    for last_epoch in (False, True):
        some = [one for one in kept if one.evaluation.model.is_last_epoch is last_epoch]
        weights = {one.evaluation.model.weights_sha256: one.folder.name for one in some}
        if len(weights) > 1:
            raise ReportError(
                f"{path}: {' and '.join(sorted(weights.values()))} are of different weights: evaluate again."
            )
        if some:
            rows.append(EvaluatedRun(path, path.resolve().name, config, tuple(some), last_epoch))
    return tuple(rows)


def joint_worst_case(kept: Sequence[KeptEvaluation]) -> Proportion:
    """The share of examples unbroken by all attacks of several evaluations of one model on the same images.

    If an evaluation has no table, the lowest of the worst cases is returned.

    Raises:
        EvidenceError: an evidence table is damaged.
    """
    lowest = min((one.evaluation.metrics.worst_case.robust for one in kept), key=lambda part: part.share)
    if len(kept) == 1:
        return lowest
    unbroken = None
    for one in kept:
        table = if_there(one.folder / TABLE, lambda file: read_table(file.parent))
        if table is None:
            return lowest
        held = set(table.examples.id[table.correct & ~table.worst_case.broken].tolist())
        unbroken = held if unbroken is None else unbroken & held
    return Proportion(len(unbroken or ()), lowest.count)
