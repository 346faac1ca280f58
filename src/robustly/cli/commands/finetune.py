"""`robustly finetune`: its arguments."""

import argparse
from pathlib import Path

from robustly.cli.arguments import add_trust

COUNT = 500
"""Test images of the table, unless `--count` is given."""
MODES = ("full", "head_first", "head_only")
METHODS = ("trades", "pgd_at")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly finetune` to a parser."""
    parser.description = (
        "Train the weights of a run, or of a file, against a threat, and print clean and robust accuracy before "
        "and after. For a file, name its network and images: robustly finetune net.pt --model.name resnet18 --data "
        "FOLDER --threat linf:8/255 --out NEW. Any setting of `robustly train` can be added. The same command "
        "continues a stopped run."
    )
    add_trust(parser)
    parser.add_argument("source", type=Path, help="a run folder, or a file of weights")
    parser.add_argument("--out", type=Path, required=True, help="run folder to create")
    parser.add_argument("--epochs", type=int, help="epochs (default: a quarter of the run's, or 10 for a file)")
    parser.add_argument("--mode", choices=MODES, default="full", help="weights to train (default: full)")
    parser.add_argument("--head-epochs", type=int, metavar="K", help="epochs of the head alone with head_first")
    parser.add_argument("--head", metavar="NAME", help="the layer that is the head (default: the last linear one)")
    parser.add_argument(
        "--layer-decay",
        type=float,
        default=1.0,
        metavar="F",
        help="factor of the learning rate from one block to the one before it, such as 0.75 (default: 1)",
    )
    parser.add_argument(
        "--count", type=int, default=COUNT, metavar="N", help=f"test images of the table (default: {COUNT})"
    )
    parser.add_argument("--dry-run", action="store_true", help="check all settings, print the parts and their cost")
    parser.epilog = (
        "--data SOURCE: the images (default: those of the run). --threat T: the threat (default: the run's). "
        "--threats A B: several, with a method for several, such as mnist5k/eat. "
        f"--method M: {', '.join(METHODS)} (default: trades), or the name of a recipe, whose method is used."
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Fine-tune; returns the exit code. See `run_finetune`."""
    from robustly.cli.finetune import run_finetune

    return run_finetune(options, overrides)
