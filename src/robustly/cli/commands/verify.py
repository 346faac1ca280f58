"""`robustly verify`: its arguments."""

import argparse
import time
from pathlib import Path

SECONDS = 60.0
"""Time limit of an instance if neither the command nor the list has one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly verify` to a parser."""
    parser.description = (
        "Decide whether a network has the property of a VNN-LIB file: unsat (proved: no input violates it), sat "
        "(with a counterexample that onnxruntime confirms), timeout or unknown. With --instances, decide a list of "
        "them, with a table of results that --resume continues; the exit code is 1 if an answer contradicts the "
        "expected one in the list."
    )
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL.onnx", help="network, also as .onnx.gz")
    parser.add_argument("property", type=Path, nargs="?", metavar="PROPERTY.vnnlib", help="also as .vnnlib.gz")
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help=f"seconds for each instance (default: those of the list, else {SECONDS:g})",
    )
    parser.add_argument("--witness", type=Path, metavar="FILE", help="write a counterexample to this file")
    parser.add_argument(
        "--result", type=Path, metavar="FILE", help="write the word and the counterexample, as in VNN-COMP"
    )
    several = parser.add_argument_group("many instances")
    several.add_argument("--instances", type=Path, metavar="LIST.csv", help="rows of network, property, seconds")
    several.add_argument(
        "--output", type=Path, metavar="FOLDER", help="results and counterexamples (default: runs/verify-NAME)"
    )
    several.add_argument("--resume", action="store_true", help="continue: keep the answers that results.csv has")
    several.add_argument("--only", metavar="TEXT", help="only instances whose network or property has this text")
    several.add_argument("--count", type=int, metavar="N", help="only the first N of them")
    several.add_argument(
        "--processes", type=int, default=1, metavar="N", help="instances at the same time (default: 1)"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Decide one instance or a list; returns the exit code. See `verify_one` and `verify_list`."""
    began = time.monotonic()
    timeout = options.timeout
    if timeout is not None and not 0 < timeout < float("inf"):
        raise ValueError(f"--timeout must be a positive number of seconds, got {timeout:g}")
    if options.instances is None:
        _refuse(options, ("output", "resume", "only", "count"), "needs --instances LIST.csv")
        if options.model is not None and options.property is None and options.model.suffix == ".csv":
            raise ValueError(f"a list of instances needs its option: robustly verify --instances {options.model}")
        if options.model is None or options.property is None:
            raise ValueError("name a network and a property (MODEL.onnx PROPERTY.vnnlib), or --instances LIST.csv")
        from robustly.cli.verifying import OneOptions, verify_one

        one = OneOptions(options.model, options.property, timeout or SECONDS, options.witness, options.result)
        return verify_one(one, began)
    _refuse(options, ("model", "witness", "result"), "does not go with --instances")
    for name in ("count", "processes"):
        if (number := getattr(options, name)) is not None and number < 1:
            raise ValueError(f"--{name} must be at least 1, got {number}")
    from robustly.cli.verifying_lists import ListOptions, verify_list

    several = ListOptions(
        options.instances, options.output, options.resume, timeout, options.only, options.count, options.processes
    )
    return verify_list(several, SECONDS)


def _refuse(options: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(options, name):
            raise ValueError(f"{'MODEL.onnx' if name == 'model' else f'--{name}'} {why}")
