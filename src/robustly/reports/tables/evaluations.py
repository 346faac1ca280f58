"""All evaluations of a run: the one in `evaluation`, and those kept beside it in `evaluation_NAME`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustly.reports.evidence import Evaluation, Proportion, ReportError, wilson
from robustly.reports.fields import read_json
from robustly.reports.reading import if_there, read_config, read_examples
from robustly.reports.summary import parse_summary


@dataclass(frozen=True)
class KeptEvaluation:
    """An evaluation and the folder that it lies in."""

    folder: Path
    evaluation: Evaluation


@dataclass(frozen=True)
class EvaluatedRun:
    """A run and everything that it was tested with; `config` is None where it has no `config.yaml`."""

    path: Path
    name: str
    config: Mapping[str, object] | None
    evaluations: tuple[KeptEvaluation, ...]

    @property
    def recipe(self) -> str | None:
        """The recipe that the run was made by."""
        recipe = None if self.config is None else self.config.get("recipe")
        return recipe if isinstance(recipe, str) and recipe else None


def read_evaluated(path: Path) -> EvaluatedRun:
    """Read a run and all its evaluations.

    Args:
        path: the folder of the run.

    Raises:
        ReportError: no run folder, no evaluation, damaged files, or evaluations of different weights.
    """
    if not path.is_dir():
        raise ReportError(f"{path} is no run folder: there is no such folder.")
    folders = [path / "evaluation", *sorted(path.glob("evaluation_*"))]
    kept = [
        KeptEvaluation(folder, parse_summary(read_json(folder / "summary.json")))
        for folder in folders
        if (folder / "summary.json").is_file()
    ]
    config = if_there(path / "config.yaml", read_config)
    if not kept and config is None:
        raise ReportError(f"{path} is no run folder: it has neither config.yaml nor evaluation/summary.json.")
    if not kept:
        raise ReportError(f"{path} is not evaluated yet: run `robustly evaluate {path}` first.")
    hashes = {one.folder.name: one.evaluation.model.weights_sha256 for one in kept}
    weights = {sha256: folder for folder, sha256 in hashes.items() if sha256}
    if len(weights) > 1:
        raise ReportError(
            f"{path}: {' and '.join(sorted(weights.values()))} are of different weights: evaluate again."
        )
    name = kept[0].evaluation.run or path.resolve().name
    return EvaluatedRun(path, name, config, tuple(kept))


def joint_worst_case(kept: Sequence[KeptEvaluation]) -> Proportion:
    """The share of examples that withstood every attack of all these evaluations of one model on the same images.

    Where an evidence table is missing, the lowest of the worst cases.

    Raises:
        ReportError: a damaged evidence table.
    """
    lowest = min((one.evaluation.worst_case for one in kept), key=lambda part: part.share)
    if len(kept) == 1:
        return lowest
    unbroken = None
    for one in kept:
        file = one.folder / "evidence.parquet"
        examples = read_examples(file, one.evaluation) if file.is_file() else None
        if examples is None or examples.worst_case_broken is None:
            return lowest
        held = {
            int(each)
            for each in examples.ids[examples.clean_right & ~np.asarray(examples.worst_case_broken, dtype=bool)]
        }
        unbroken = held if unbroken is None else unbroken & held
    return wilson(len(unbroken or ()), lowest.count)
