"""`robustly reproduce`: its arguments."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly reproduce` to a parser."""
    parser.description = (
        "Train and evaluate the methods of a paper, and write its tables and figures, with the published numbers "
        "beside ours, as one HTML page. The same command again continues a stopped reproduction; more seeds or "
        "tables are added to it. The exit code is 2 if a run fails."
    )
    add = parser.add_argument
    add("name", metavar="PAPER", help="the reproduction: dynat")
    add("--scale", default="mnist", help="budget: mnist (minutes on a laptop), small (hours) or paper (GPUs)")
    add("--seeds", type=int, default=1, metavar="N", help="runs of each row, with seeds 0 to N - 1 (default: 1)")
    add("--tables", metavar="table1,...", help="tables to make (default: those of the scale)")
    add(
        "--source",
        action="append",
        default=[],
        metavar="DATA=FOLDER",
        help="place of a data set, such as cifar10=FOLDER with train.parquet and test.parquet; repeatable",
    )
    add("--out", type=Path, help="folder of the runs and the page (default: runs/PAPER-SCALE)")
    add("--workers", type=int, metavar="N", help="runs at a time, one thread each (default: one a core, or a GPU)")
    add("--yes", action="store_true", help="start a reproduction that is meant for GPUs on a CPU")
    add("--dry-run", action="store_true", help="print the runs and what they cost, write nothing")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Reproduce a paper; returns the exit code. See `run_reproduction`."""
    from robustly.cli.reproduce import run_reproduction

    return run_reproduction(options)
