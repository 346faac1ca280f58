"""`robustly diagnose`: its arguments."""

import argparse

from robustly.cli.arguments import add_model, add_trust

COUNT = 200
"""Images that are tested if the command names no number."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly diagnose` to a parser."""
    parser.description = (
        "Run twelve tests and a dozen checks for masked gradients on the test images of a run. "
        "Settings as for evaluate, such as --threat l2:0.5. The exit code is 1 if masking is suspected."
    )
    add_trust(parser)
    add_model(parser)
    parser.add_argument(
        "--count", type=int, default=COUNT, help=f"number of images, from the first (default: {COUNT})"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Test for masked gradients; returns the exit code. See `run_diagnostics`."""
    from robustly.cli.diagnose import run_diagnostics

    return run_diagnostics(options.run, options.count, overrides, options.trust_code)
