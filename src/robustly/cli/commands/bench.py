"""`robustly bench`: its arguments."""

import argparse
from pathlib import Path

from robustly.cli.arguments import add_model, add_trust

SUITES = ("quick", "standard", "aa_standard")
PARTS = ("passes", "step", "attacks", "bounds")
SECONDS, COUNT, DEVICES = 45.0, 10_000, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly bench` to a parser."""
    parser.description = (
        "Measure a model on this machine: bare passes per precision, layout and batch size, memory, a training "
        "step, attacks and bounds, each relative to the passes that it counts; and predict the time of whole runs. "
        "Takes a run, a recipe with --recipe, or a model with --model, --model.width and so on. Weights have no "
        "influence on speed, so that a model without weights is measured too."
    )
    add_trust(parser)
    add_model(parser)
    parser.add_argument("--recipe", metavar="NAME", help="measure the model and the training step of a recipe")
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="S",
        help=f"time for the measurements, about (default: {SECONDS:g}); slow models take longer for single passes",
    )
    parser.add_argument(
        "--suites",
        nargs="+",
        metavar="NAME",
        help=f"suites, or attacks such as pgd_20,square, whose time is predicted (default: {' '.join(SUITES)})",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=COUNT,
        metavar="N",
        help=f"images of a predicted evaluation (default: {COUNT:,})",
    )
    parser.add_argument(
        "--devices",
        type=int,
        default=DEVICES,
        metavar="N",
        help=f"also predict the time on N such devices (default: {DEVICES})",
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, metavar="N", help="batch sizes to measure")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="what is measured; passes always are (default: all)",
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time of one thread, also for --seconds, for a machine that other programs use too "
        "(default: wall)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers as JSON")
    parser.add_argument(
        "--no-cache", action="store_true", help="do not keep the chosen batch size for `robustly evaluate`"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Measure; returns the exit code. See `run_bench`."""
    from robustly.cli.bench import BenchOptions, run_bench

    chosen = BenchOptions(
        seconds=options.seconds,
        suites=tuple(options.suites or SUITES),
        all_suites=options.suites is not None,
        count=options.images,
        devices=options.devices,
        sizes=tuple(options.batch_sizes or ()),
        parts=tuple(options.parts),
        clock=options.clock,
        json=options.json,
        keeps=not options.no_cache,
    )
    return run_bench(options.run, options.recipe, overrides, options.trust_code, chosen)
