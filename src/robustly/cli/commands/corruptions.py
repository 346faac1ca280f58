"""`robustly corruptions`: its arguments."""

import argparse
from pathlib import Path

from robustly.cli.arguments import add_model, add_trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly corruptions` to a parser."""
    parser.description = (
        "Measure accuracy under 15 common corruptions (noise, blur, weather, digital) at five severities, or under "
        "those of MNIST-C, on the test images of a run. A command that was stopped continues when it is given "
        "again. Settings: --seed, --runtime.device, --evaluation.batch_size."
    )
    add_trust(parser)
    add_model(parser)
    parser.add_argument("--images", type=int, metavar="N", help="number of images, from the first (default: all)")
    parser.add_argument("--only", metavar="NAMES", help="these corruptions, such as gaussian_noise,fog")
    parser.add_argument("--extra", action="store_true", help="also the four further corruptions, which no mean has")
    parser.add_argument(
        "--reference", type=Path, metavar="RUN", help="run whose errors those of the model are divided by (mCE)"
    )
    parser.add_argument(
        "--source", type=Path, metavar="FOLDER", help="corrupted images as files: CIFAR-10-C or ImageNet-C"
    )
    parser.add_argument(
        "--set",
        choices=("c_proc", "mnist_c"),
        help="corruptions of CIFAR-10-C and ImageNet-C (default), or of MNIST-C for digits of 28 x 28 pixels",
    )
    parser.add_argument(
        "--audit", action="store_true", help="check the stored numbers again; the exit code is 1 if a check fails"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Evaluate under corruptions; returns the exit code. See `run_corruptions`."""
    from robustly.cli.corruptions import CorruptionOptions, audit_run, run_corruptions

    if options.audit:
        return audit_run(options.run, overrides, options.trust_code, options.reference)
    names = None if options.only is None else tuple(name.strip() for name in options.only.split(","))
    chosen = CorruptionOptions(options.images, names, options.extra, options.reference, options.source, options.set)
    return run_corruptions(options.run, chosen, overrides, options.trust_code)
