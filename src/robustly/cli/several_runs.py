"""Commands for one run, or for several on a Ray cluster."""

from collections.abc import Sequence
from pathlib import Path

from robustly.cli.runs import is_sweep, runs_in


def one_run(places: Sequence[Path]) -> Path | None:
    """The only run that a command line names; None if it names none, only its model.

    Args:
        places: the run folders, sweeps, or models.

    Raises:
        ValueError: several runs without a cluster.
    """
    if len(places) > 1:
        raise ValueError(
            f"{len(places)} runs at once need a Ray cluster: --on ray starts one on this machine; without Ray, "
            "repeat the command for each run"
        )
    if places and is_sweep(places[0]):
        raise ValueError(f"{places[0]} is a sweep: --on ray evaluates its runs, or name one of them")
    return places[0] if places else None


def are_several(places: Sequence[Path], on: str | None) -> bool:
    """Return True if a cluster has to carry out several runs, or those of a sweep."""
    return on is not None and (len(places) > 1 or any(map(is_sweep, places)))


def all_runs(places: Sequence[Path]) -> list[Path]:
    """The runs, those of sweeps one by one.

    Raises:
        ValueError: a sweep without runs.
    """
    return [run for place in places for run in runs_in(place)]
