"""`robustly gate`: its arguments."""

import argparse
from pathlib import Path

from robustly.cli.arguments import add_trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly gate` to a parser."""
    parser.description = (
        "Compare an evaluation with limits, for a pipeline: one line for each condition, and exit code 0 if all "
        "hold, 1 if one fails. Suspected gradient masking, an attack that failed, damaged evidence and a weak "
        "suite fail the gate too."
    )
    add_trust(parser)
    parser.add_argument("run", type=Path, help="run folder, or folder of evidence")
    parser.add_argument("--clean", type=float, metavar="SHARE", help="least clean accuracy, such as 0.85")
    parser.add_argument(
        "--robust",
        type=float,
        metavar="SHARE",
        help="least worst-case accuracy under attack; of a suite of several threats, under all at once",
    )
    parser.add_argument(
        "--mean", type=float, metavar="SHARE", help="least mean over the threats of a suite, with --as unforeseen"
    )
    parser.add_argument(
        "--worst", type=float, metavar="SHARE", help="least accuracy under the worst threat of such a suite"
    )
    parser.add_argument("--certified", type=float, metavar="SHARE", help="least certified accuracy")
    parser.add_argument(
        "--confident",
        action="store_true",
        help="the lower end of the 95 %% interval must reach the limit, not the share itself",
    )
    parser.add_argument(
        "--suite",
        default="standard",
        metavar="NAME",
        help="weakest suite that is allowed (default: standard); any allows every suite",
    )
    parser.add_argument("--under", metavar="THREAT", help="weakest threat that is allowed, such as linf:8/255")
    parser.add_argument(
        "--audit", action="store_true", help="audit the evaluation first; a failed check fails the gate"
    )
    parser.add_argument(
        "--allow-masking", action="store_true", help="suspected gradient masking does not fail the gate"
    )
    parser.add_argument("--allow-failed", action="store_true", help="attacks that failed do not fail the gate")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="also write the conditions as JUnit XML")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the conditions as JSON")
    parser.add_argument(
        "--as",
        dest="label",
        metavar="NAME",
        help="take the folder evaluation_NAME, or the suite of several threats of that name",
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Decide on an evaluation; returns the exit code. See `run_gate`."""
    from robustly.api.gate import Limits
    from robustly.cli.gate import GateOptions, run_gate

    limits = Limits(
        options.clean,
        options.robust,
        options.certified,
        options.confident,
        options.suite,
        options.under,
        options.allow_masking,
        options.allow_failed,
        options.mean,
        options.worst,
    )
    other = GateOptions(options.label, options.audit, options.junit, options.json, options.trust_code)
    return run_gate(options.run, limits, other)
