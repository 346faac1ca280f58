"""What a sweep looks like: a line for a run that ended, and the table of all runs."""

from collections.abc import Mapping
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from robustly.cli.sweep_run import Launch
from robustly.experiments.sweep_folders import RunState, state_of


def told(launch: Launch) -> str:
    """What a run that ended well has reached."""
    state = state_of(launch.folder, launch.evaluate)
    reached = f"best epoch {state.best_epoch}, validation clean {_percent(state.clean)}"
    reached += f", robust {_percent(state.robust)}"
    return reached + (f"; evaluated robust {_percent(state.evaluated)}" if launch.evaluate else "")


def sweep_table(folder: Path, states: Mapping[str, RunState], reasons: Mapping[str, str], evaluate: bool) -> Table:
    """All runs and how far they are.

    Args:
        folder: the sweep's folder.
        states: of all runs, by name.
        reasons: why runs failed, by name.
        evaluate: whether there is a column for what evaluations found.
    """
    table = Table(title=escape(str(folder)), title_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("state")
    evaluated = ["evaluated robust"] if evaluate else []
    for column in ("best epoch", "validation clean", "robust", *evaluated, "seconds"):
        table.add_column(column, justify="right")
    for name, state in states.items():
        shown = state.state if name not in reasons or state.state == "diverged" else f"failed ({state.state})"
        table.add_row(
            escape(name),
            shown,
            str(state.best_epoch or "-"),
            _percent(state.clean),
            _percent(state.robust),
            *([_percent(state.evaluated)] if evaluate else []),
            "-" if state.seconds is None else f"{state.seconds:.0f}",
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def how_many(runs: int) -> str:
    """A number of runs in words."""
    return f"{runs} run" if runs == 1 else f"{runs} runs"
