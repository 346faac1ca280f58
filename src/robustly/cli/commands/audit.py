"""`robustly audit`: its arguments."""

import argparse
from pathlib import Path

from robustly.cli.arguments import add_processes, add_trust, processes_in, strategy_in

SHARE, CONFIDENCE = 0.02, 0.99
"""The guarantee of an audit if the command names none; the defaults of `robustly.evaluation.Sampling`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly audit` to a parser."""
    parser.description = (
        "Recompute every number of an evaluation from its rows, every row from images and weights, and "
        "attack a sample of the standing examples again. The exit code is 1 if a check fails. "
        "`openssl genpkey -algorithm ed25519 -out KEY` makes a key."
    )
    add_trust(parser)
    add_processes(parser)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--as",
        dest="label",
        metavar="NAME",
        help="audit the folder evaluation_NAME, or all of a suite of several threats, such as unforeseen",
    )
    parser.add_argument(
        "--rerun",
        choices=("sample", "all"),
        default="sample",
        help="attack a sample of the standing examples again (default), or all",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=SHARE,
        help="the sample is so large that the audit fails if this share of the standing verdicts is false "
        f"(default: {SHARE}) ...",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=CONFIDENCE,
        help=f"... with this probability (default: {CONFIDENCE})",
    )
    parser.add_argument(
        "--sign", type=Path, metavar="KEY", help="sign the evidence with an Ed25519 key if it passes"
    )
    parser.add_argument("--verify", type=Path, metavar="KEY", help="the evidence must be signed by this public key")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Check an evaluation; returns the exit code. See `run_audit`."""
    from robustly.cli.audit import AuditOptions, run_audit
    from robustly.cli.audit_protocol import is_protocol, run_protocol_audit
    from robustly.evaluation import Sampling
    from robustly.runtime import RuntimeConfig

    sampling = Sampling(options.share, options.confidence, options.rerun == "all")
    runtime = RuntimeConfig(processes=processes_in(overrides), strategy=strategy_in(overrides))
    chosen = AuditOptions(sampling, options.label, options.sign, options.verify, runtime=runtime)
    if is_protocol(options.run, options.label):
        return run_protocol_audit(options.run, chosen, options.trust_code)
    return run_audit(options.run, chosen, options.trust_code)
