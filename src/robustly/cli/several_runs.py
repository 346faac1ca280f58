"""Commands for one run, or for several on a Ray cluster."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from robustly.cli.runs import is_sweep, runs_in
from robustly.cli.terminal import PlainConsole


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


def in_turn(places: Sequence[Path], carry_out: Callable[[Path], int]) -> int:
    """Carry out a command for one run after the other; returns the exit code.

    A run for which it is refused does not stop the others; it is named at the end, and the exit code is 2.

    Args:
        places: the runs.
        carry_out: the command for one run, whose work the whole cluster shares; returns its exit code.

    Raises:
        ValueError: the same run twice; nothing was begun then.
    """
    twice = [place for place, count in Counter(place.resolve() for place in places).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named twice")
    console, failures = PlainConsole(), dict[Path, str]()
    for place in places:
        console.print(f"run {place}", markup=False, highlight=False, soft_wrap=True)
        try:
            carry_out(place)
        except (ValueError, FileNotFoundError) as error:
            failures[place] = str(error)
    for place, reason in failures.items():
        console.print(f"! {place}: {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(places) - len(failures)} of {len(places)} runs finished", highlight=False)
    return 2 if failures else 0
