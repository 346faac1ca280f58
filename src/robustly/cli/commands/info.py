"""`robustly info`: its arguments."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly info` to a parser."""
    parser.description = (
        "Print what a path holds: a run, a sweep, weights, the evidence of an evaluation, or an exported model. "
        "No code of the path is run."
    )
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Print the facts; returns the exit code. See `run_info`."""
    from robustly.cli.info import run_info

    return run_info(options.path, options.json)
