"""Files of a sweep: `sweep.yaml`, and beside it a run folder for each cell."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml

from robustly.documents import read_csv, read_json
from robustly.experiments.overrides import read_yaml
from robustly.experiments.run_folder import EVALUATION, RunError
from robustly.experiments.sweeps import Sweep, as_plain, sweep_from
from robustly.files import write_text
from robustly.training.engine.loop import FINAL, LAST

MANIFEST = "sweep.yaml"


@dataclass(frozen=True)
class RunState:
    """Progress of a run, read from its folder; None where a value is missing.

    Args:
        state: "waiting" (nothing saved), "unfinished", "diverged" (not started again), "trained" (its evaluation
            is missing) or "finished".
        best_epoch: the selected epoch, from 1.
        clean: validation accuracy of that epoch.
        robust: the same under attack.
        evaluated: worst-case accuracy on the test images.
        seconds: training time.
        threads: number of threads in training.
        message: reason why it diverged.
    """

    state: Literal["waiting", "unfinished", "diverged", "trained", "finished"]
    best_epoch: int | None = None
    clean: float | None = None
    robust: float | None = None
    evaluated: float | None = None
    seconds: float | None = None
    threads: int | None = None
    message: str = ""


def read_sweep(folder: Path) -> Sweep | None:
    """The sweep of a folder; None if the folder is empty or missing.

    Raises:
        RunError: the folder has files but no sweep.
        SettingsError: its manifest cannot be read.
    """
    if (folder / MANIFEST).is_file():
        return sweep_from(read_yaml(folder / MANIFEST), str(folder / MANIFEST))
    if folder.exists() and (not folder.is_dir() or any(not item.name.startswith(".") for item in folder.iterdir())):
        raise RunError(f"{folder} exists already and has no sweep: choose another name with --out")
    return None


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MANIFEST, yaml.safe_dump(as_plain(sweep), sort_keys=False))


def refuse_another(folder: Path, requested: Sweep, held: Sweep) -> None:
    """Refuse a folder of another sweep; only `evaluate` may differ.

    Raises:
        RunError: the sweeps differ; the message names the part.
    """
    here, there = as_plain(requested), as_plain(held)
    for part in ("recipes", "seeds", "over", "settings"):
        if here[part] != there[part]:
            raise RunError(
                f"{folder} has another sweep: its {part} are {there[part] or 'none'}, not "
                f"{here[part] or 'none'}; choose another name with --out"
            )


def state_of(folder: Path, evaluate: bool) -> RunState:
    """Progress of the run in a folder, which may be missing.

    Args:
        folder: the run's folder.
        evaluate: whether a finished run must be evaluated too.

    Raises:
        RunError: its files are damaged.
    """
    if not (folder / "status.json").is_file():
        return RunState("unfinished" if (folder / LAST).is_file() else "waiting")
    try:
        status = read_json(folder / "status.json")
        best = _row(folder / "metrics.csv", status["best_epoch"])
        clean, robust = (best.get(f"validation_{kind}_accuracy") for kind in ("clean", "robust"))
        evaluated = _evaluated(folder / EVALUATION)
        found = RunState(
            "diverged" if status["state"] == "diverged" else "unfinished",
            status["best_epoch"] or None,
            None if clean is None else float(clean),
            None if robust is None else float(robust),
            evaluated,
            status["seconds"],
            status.get("threads"),
            status["message"],
        )
    except RunError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder} is damaged ({type(error).__name__}: {error}): remove it to train the run again"
        ) from None
    if (folder / FINAL).is_file():
        return replace(found, state="finished" if evaluated is not None or not evaluate else "trained")
    return found


def _evaluated(evaluation: Path) -> float | None:
    """Worst-case accuracy of an evaluation; None without one."""
    summary = evaluation / "summary.json"
    try:
        return float(read_json(summary)["worst_case"]["accuracy"]) if summary.is_file() else None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{evaluation} is damaged ({type(error).__name__}: {error}): remove it to evaluate the run again"
        ) from None


def _row(path: Path, epoch: int) -> dict[str, str]:
    if not path.is_file():
        return {}
    header, *rows = read_csv(path)
    named = (dict(zip(header, row, strict=False)) for row in rows)
    return next((row for row in named if int(row["epoch"]) == epoch), {})
