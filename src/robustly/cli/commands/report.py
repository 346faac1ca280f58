"""`robustly report`: its arguments."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly report` to a parser."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, or folders of sweeps")
    parser.add_argument(
        "--as",
        dest="label",
        metavar="NAME",
        help="the evaluation of this name, alone (default: the one without a name, and that of certify)",
    )
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in the run, or here)")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Write the page; returns the exit code. See `run_report`."""
    from robustly.cli.report import run_report

    return run_report(options.runs, options.out, options.label)
