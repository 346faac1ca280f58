"""A sweep on disk: `sweep.yaml` says what was asked for; beside it every run has a folder, like any other run."""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from robustly.experiments.configuration import RunConfig
from robustly.experiments.run_folder import CONFIG, EVALUATION, create_run, read_yaml, refuse_existing
from robustly.experiments.sweeps import Sweep, SweepError, sweep_from
from robustly.files import write_text
from robustly.training.loop import FINAL, LAST

MANIFEST = "sweep.yaml"

State = Literal["waiting", "unfinished", "diverged", "trained", "finished"]


@dataclass(frozen=True)
class RunState:
    """How far a run is, read from its folder.

    Args:
        state: "waiting" (nothing saved yet), "unfinished", "diverged" (it would again), "trained" (but not yet
            evaluated, where that was asked for) or "finished".
        best_epoch: the selected epoch, from 1; none before the first.
        clean: validation accuracy of that epoch.
        robust: the same under attack.
        evaluated: worst-case accuracy on the test images, where evaluated.
        seconds: training time so far.
        threads: with how many threads it was trained so far.
        message: why it diverged.
    """

    state: State
    best_epoch: int | None = None
    clean: float | None = None
    robust: float | None = None
    evaluated: float | None = None
    seconds: float | None = None
    threads: int | None = None
    message: str = ""


def read_sweep(folder: Path) -> Sweep | None:
    """The sweep that a folder holds; none where it holds nothing.

    Raises:
        SweepError: it holds something else.
        SettingsError: its manifest cannot be read.
    """
    if (folder / MANIFEST).is_file():
        return sweep_from(read_yaml(folder / MANIFEST), str(folder / MANIFEST))
    if folder.exists() and (not folder.is_dir() or any(not item.name.startswith(".") for item in folder.iterdir())):
        raise SweepError(f"{folder} exists already and holds no sweep: choose another name with --out")
    return None


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MANIFEST, yaml.safe_dump(sweep.as_plain(), sort_keys=False))


def refuse_another(folder: Path, asked: Sweep, held: Sweep) -> None:
    """Refuse a folder that holds another sweep; only whether to evaluate may differ.

    Raises:
        SweepError: which part differs, and how.
    """
    here, there = asked.as_plain(), held.as_plain()
    for part in ("recipes", "seeds", "over", "settings"):
        if here[part] != there[part]:
            raise SweepError(
                f"{folder} holds another sweep: its {part} are {there[part] or 'none'}, not "
                f"{here[part] or 'none'}; choose another name with --out"
            )


def write_run(folder: Path, config: RunConfig) -> None:
    """Make the folder of a run with its settings, as a whole or not at all; one that is there stays as it is.

    From here on a run depends on this folder alone: a recipe may change, or the sweep go on from elsewhere.

    Raises:
        RunError: something else has that name.
        OSError: the folder cannot be written.
    """
    if (folder / CONFIG).is_file():
        return
    staging = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    create_run(staging, config)
    refuse_existing(folder)
    staging.replace(folder)


def state_of(folder: Path, evaluate: bool) -> RunState:
    """How far the run in a folder is.

    Args:
        folder: the run's folder, which need not exist.
        evaluate: whether it is to be evaluated too.

    Raises:
        SweepError: its files are damaged.
    """
    if not (folder / LAST).is_file() and not (folder / "status.json").is_file():
        return RunState("waiting")
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        rows = _rows(folder / "metrics.csv")
        best = rows.get(status["best_epoch"], {})
        summary = folder / EVALUATION / "summary.json"
        evaluated = (
            json.loads(summary.read_text(encoding="utf-8"))["worst_case"]["accuracy"] if summary.is_file() else None
        )
        clean, robust = best.get("validation_clean_accuracy"), best.get("validation_robust_accuracy")
        state: State = "unfinished"
        if (folder / FINAL).is_file():
            state = "finished" if evaluated is not None or not evaluate else "trained"
        elif status["state"] == "diverged":
            state = "diverged"
        return RunState(
            state,
            status["best_epoch"] or None,
            None if clean is None else float(clean),
            None if robust is None else float(robust),
            evaluated,
            status["seconds"],
            status.get("threads"),
            status["message"],
        )
    except FileNotFoundError:
        return RunState("unfinished")
    except (ValueError, KeyError, TypeError) as error:
        raise SweepError(
            f"{folder} is damaged ({type(error).__name__}: {error}): remove it to train it anew"
        ) from None


def _rows(path: Path) -> dict[int, dict[str, str]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as content:
        return {int(row["epoch"]): row for row in csv.DictReader(content)}
