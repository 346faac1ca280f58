"""The claim that results are identical over runs: one recipe and seed twice, and several seeds."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from types import MappingProxyType

import numpy as np
from safetensors import SafetensorError, deserialize

from robustly.evidence import EvidenceError
from robustly.reports.formats import short, short_hash
from robustly.reports.reading import if_there, read_config, read_training
from robustly.reports.run import ReportError
from robustly.reports.tables.evaluations import read_evaluated
from robustly.reports.tables.paper_results import RunResult, scores_of
from robustly.reports.tables.paper_tables import TITLES, is_evaluated, numbers_of
from robustly.statistics import student_t_95

WEIGHTS = "model.safetensors"
NO_FAILURES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Repetition:
    """Two runs of one recipe and seed.

    Args:
        sentences: the comparison of weights, losses and numbers.
        identical: whether the released weights are; None if they cannot be compared.
    """

    sentences: tuple[str, ...]
    identical: bool | None = None


@dataclass(frozen=True)
class Spread:
    """Spread of one column over seeds, in shares.

    Args:
        title: title of the column.
        seeds: number of seeds.
        mean: the mean.
        deviation: the standard deviation.
        lowest: the lowest seed.
        highest: the highest seed.
        low: lower end of the 95 % interval of the mean, by Student's t.
        high: the upper end.
    """

    title: str
    seeds: int
    mean: float
    deviation: float
    lowest: float
    highest: float
    low: float
    high: float


def repetition(first: Path, second: Path, failures: Mapping[str, str] = NO_FAILURES) -> Repetition:
    """Compare two runs of one recipe and seed.

    Runs with other settings or another number of threads repeat nothing: sums depend on both.

    Args:
        first: folder of a run.
        second: folder of the run that repeats it.
        failures: reasons of failed runs by the name of the folder.
    """
    try:
        reason = _no_repetition(first, second)
        if reason:
            return Repetition((reason,))
        hashes = [weights_hash(run) for run in (first, second)]
        sentences = [one for one in (_losses(first, second), _numbers(first, second)) if one]
    except (ReportError, EvidenceError, OSError, ValueError) as error:
        return Repetition((f"The two runs cannot be compared: {error}",))
    if hashes[0] is None or hashes[1] is None:
        failed = [f"{run.name} failed: {failures[run.name]}" for run in (first, second) if run.name in failures]
        reason = "; ".join(failed) or "a run has none yet"
        return Repetition((f"The released weights cannot be compared: {reason.rstrip('.')}.", *sentences))
    if hashes[0] == hashes[1]:
        words = f"The released weights of both runs are identical (SHA-256 {short_hash(hashes[0])})."
    else:
        words = f"The released weights differ (SHA-256 {' and '.join(map(short_hash, hashes))})."
    return Repetition((words, *sentences), hashes[0] == hashes[1])


def _no_repetition(first: Path, second: Path) -> str:
    """A sentence on the difference that makes two runs no repetition, or on a copy; empty if there is none."""
    settings = [if_there(run / "config.yaml", read_config) for run in (first, second)]
    seeds = [None if one is None else one.get("seed") for one in settings]
    if seeds[0] != seeds[1]:
        return f"The two runs have the seeds {seeds[0]} and {seeds[1]}: no repetition."
    others = _other_settings(*settings)
    if others:
        return f"The two runs have other settings ({', '.join(others)}): no repetition."
    threads = [_threads(run) for run in (first, second)]
    if None not in threads and threads[0] != threads[1]:
        return f"The two runs had {threads[0]} and {threads[1]} threads: no repetition."
    if _is_copy(first, second):
        return "The second run is a copy of the first: all their epochs took equally long."
    return ""


def _other_settings(first: Mapping[str, object] | None, second: Mapping[str, object] | None) -> list[str]:
    """Sections of the settings that differ, without those of evaluations."""
    one, other = first or {}, second or {}
    return sorted(
        key for key in one.keys() | other.keys() if key != "evaluation" and one.get(key) != other.get(key)
    )


def _threads(run: Path) -> int | None:
    training = if_there(run / "metrics.csv", read_training)
    return None if training is None else training.status.threads


def _is_copy(first: Path, second: Path) -> bool:
    """True if all epochs of two runs took exactly as long, which two trainings do not."""
    trainings = [if_there(run / "metrics.csv", read_training) for run in (first, second)]
    one, other = (None if training is None else training.column("seconds") for training in trainings)
    return one is not None and other is not None and len(one) > 0 and np.array_equal(one, other)


def weights_hash(run: Path) -> str | None:
    """SHA-256 of the tensors of a run's released weights; None without weights.

    It covers names, types, shapes and bytes. Metadata of the file do not count.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    file = run / WEIGHTS
    if not file.is_file():
        return None
    try:
        tensors = deserialize(file.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(f"{file.name} is damaged: {error}.") from error
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(json.dumps([name, tensor["dtype"], tensor["shape"]]).encode())
        digest.update(tensor["data"])
    return digest.hexdigest()


def _losses(first: Path, second: Path) -> str:
    """A sentence on the training losses; empty if a run has none."""
    found = []
    for run in (first, second):
        training = if_there(run / "metrics.csv", read_training)
        values = None if training is None else training.column("train_loss")
        if values is None:
            return ""
        found.append(values)
    if len(found[0]) != len(found[1]):
        return f"The runs have {len(found[0])} and {len(found[1])} epochs."
    if np.array_equal(found[0], found[1], equal_nan=True):
        return f"The training losses of all {len(found[0])} epochs are identical."
    apart = float(np.nanmax(np.abs(found[0] - found[1])))
    return f"The training losses differ by up to {short(apart)}."


def _numbers(first: Path, second: Path) -> str:
    """A sentence on the numbers of the evaluations; empty if a run has none."""
    if not is_evaluated(first) or not is_evaluated(second):
        return ""
    ours, theirs = (numbers_of(read_evaluated(run)) for run in (first, second))
    common = [key for key in ours if key in theirs]
    apart = [TITLES.get(key, key.replace("_", " ")) for key in common if ours[key] != theirs[key]]
    if not common:
        return ""
    if not apart:
        return f"All {len(common)} numbers of the evaluations are identical."
    return f"Of {len(common)} numbers of the evaluations, {len(apart)} differ: {', '.join(apart)}."


def spread(results: Sequence[RunResult], columns: Sequence[str]) -> tuple[Spread, ...]:
    """Spread over seeds of the columns that at least two of them have.

    Args:
        results: results of the runs of one row.
        columns: columns of its table, with the mean of the attacks where the table has it.
    """
    found = []
    by_seed = [scores_of([result], columns) for result in results]
    for key in columns:
        shares = [scores[key].share for scores in by_seed if key in scores]
        if len(shares) > 1:
            mean, deviation = fmean(shares), stdev(shares)
            half = student_t_95(len(shares) - 1) * deviation / math.sqrt(len(shares))
            ends = max(0.0, mean - half), min(1.0, mean + half)
            title = TITLES.get(key, key)
            found.append(Spread(title, len(shares), mean, deviation, min(shares), max(shares), *ends))
    return tuple(found)
