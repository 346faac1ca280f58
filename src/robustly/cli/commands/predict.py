"""`robustly predict`: its arguments."""

import argparse
from pathlib import Path

from robustly.cli.arguments import add_processes, add_trust, processes_in, strategy_in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly predict` to a parser."""
    parser.description = (
        "Classify image files with the model of a run, or of an exported file or folder. Images get the number of "
        "channels and the size that the model takes (shorter side resized, bicubic, then the centre)."
    )
    add_trust(parser)
    add_processes(parser)
    parser.add_argument("model", type=Path, help="a run, or a file or folder of `robustly export`")
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of them at any depth"
    )
    parser.add_argument("--csv", action="store_true", help="print CSV instead of a table")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Classify images; returns the exit code. See `run_prediction`."""
    from robustly.cli.predict import run_prediction
    from robustly.runtime import RuntimeConfig

    config = RuntimeConfig(processes=processes_in(overrides), strategy=strategy_in(overrides), device="cpu")
    return run_prediction(options.model, options.images, options.csv, options.trust_code, config)
