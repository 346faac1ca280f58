"""`robustly analyse`: its arguments."""

import argparse

from robustly.cli.arguments import add_model, add_trust

COUNT = 500
"""Images whose gradients are measured if the command names no number."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly analyse` to a parser."""
    add_trust(parser)
    add_model(parser)
    parser.add_argument(
        "--count", type=int, default=COUNT, help=f"number of images for the gradients (default: {COUNT})"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Measure a run; returns the exit code. See `run_analysis`."""
    from robustly.cli.analyse import run_analysis

    return run_analysis(options.run, options.count, options.trust_code, overrides)
