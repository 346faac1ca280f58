"""`robustly certify`: its arguments."""

import argparse

from robustly.cli.arguments import add_model, add_trust

LABEL = "certified"
HALVINGS = 3
METHODS = ("ibp", "crown", "alpha_crown", "auto", "bab")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly certify` to a parser."""
    parser.description = (
        "Attack the test images of a run and prove the rest: each image is falsified (with the counterexample), "
        "verified (with the method and its bound) or open (with the reason). Robust accuracy becomes the interval "
        "[certified, attacked]. Settings as for evaluate, such as --threat linf:0.1. The same command continues a "
        "killed one. `robustly report RUN` shows the interval."
    )
    add_trust(parser)
    add_model(parser, several=True)
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help="ibp: intervals; crown: backward bounds too; alpha_crown: optimised bounds too; auto: all of these, "
        "then branch and bound; bab: branch and bound at once (default: auto)",
    )
    parser.add_argument("--count", type=int, metavar="N", help="number of images, from the first")
    parser.add_argument(
        "--time",
        type=float,
        metavar="SECONDS",
        help="time for the branch and bound of all images together; bounds always run before (default: no limit)",
    )
    parser.add_argument(
        "--halvings",
        type=int,
        metavar="N",
        default=HALVINGS,
        help="steps of the bisection that finds the certified radius of each image; 0 saves half of the time of "
        f"bounds (default: {HALVINGS})",
    )
    parser.add_argument(
        "--suite", metavar="NAME", default="quick", help="attacks that run before the proofs (default: quick)"
    )
    parser.add_argument(
        "--as", dest="label", metavar="NAME", default=LABEL, help=f"write to evaluation_NAME (default: {LABEL})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    parser.add_argument("--keep", action="store_true", help="do nothing if there is a result already")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Certify; returns the exit code. See `run_certification`."""
    from robustly.cli.certify import run_certification

    if options.count is not None:
        overrides = ["--evaluation.count", str(options.count), *overrides]
    return run_certification(
        options.runs,
        ["--evaluation.suite", options.suite, *overrides],
        method=options.method,
        seconds=options.time,
        halvings=options.halvings,
        trust_code=options.trust_code,
        overwrite=options.overwrite,
        label=options.label,
        keep=options.keep,
        on=options.on,
    )
