"""Run folders that a command names, by themselves or by their sweep."""

from pathlib import Path

from robustly.experiments.run_folder import CONFIG
from robustly.experiments.sweep_folders import MANIFEST
from robustly.reports import ReportError


def is_sweep(folder: Path) -> bool:
    """Return True for the folder of a sweep."""
    return (folder / MANIFEST).is_file()


def runs_in(folder: Path) -> list[Path]:
    """The run itself, or all runs of a sweep.

    Raises:
        ReportError: a sweep without runs.
    """
    if not is_sweep(folder):
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG}") if not path.parent.name.startswith("."))
    if not found:
        raise ReportError(f"{folder} is a sweep without runs so far.")
    return found
