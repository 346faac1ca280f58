"""`robustly export`: its arguments."""

import argparse
from pathlib import Path

from robustly.cli.arguments import add_trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly export` to a parser."""
    parser.description = (
        "Write the model of a run for use elsewhere. Images lie in [0, 1]; normalisation is part of the model. "
        "The ONNX file is compared with the model on the adversarial images of its evaluation; the exit code is 1 "
        "if a prediction differs."
    )
    add_trust(parser)
    parser.add_argument("run", type=Path, help="a run, or an exported file or folder")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="write an ONNX file (needs robustly[onnx])")
    parser.add_argument("--hf", type=Path, metavar="FOLDER", help="write a Hugging Face folder with a model card")
    parser.add_argument(
        "--safetensors", type=Path, metavar="FILE", help="write the weights, and in their metadata how to use them"
    )
    parser.add_argument(
        "--robustbench",
        type=Path,
        metavar="FILE",
        help="write the entry of an evaluation with aa_standard for RobustBench's leaderboard, and .md beside it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Write the files; returns the exit code. See `run_export`."""
    if options.robustbench is not None:
        from robustly.cli.claim import write_claim

        write_claim(options.run, options.robustbench, options.overwrite)
        if options.onnx is options.hf is options.safetensors is None:
            return 0
    from robustly.cli.export import run_export

    targets = {"onnx": options.onnx, "hf": options.hf, "safetensors": options.safetensors}
    chosen = {kind: path for kind, path in targets.items() if path is not None}
    return run_export(options.run, chosen, options.overwrite, options.trust_code)
