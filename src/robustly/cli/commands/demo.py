"""`robustly demo`: its arguments."""

import argparse
from pathlib import Path

FOLDER = Path("runs") / "demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly demo` to a parser."""
    parser.description = (
        "Train an undefended network and DYNAT on the built-in digits, attack both, audit the evidence, prove ten "
        "images and write a page: about three minutes on two cores. The same command continues a stopped demo."
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"folder of the two runs (default: {FOLDER})")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run the demo; returns the exit code. See `run_demo`."""
    from robustly.cli.demo import run_demo

    return run_demo(options.out, overrides)
