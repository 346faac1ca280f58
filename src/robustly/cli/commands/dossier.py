"""`robustly dossier`: its arguments."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly dossier` to a parser."""
    parser.description = (
        "Write a document on an evaluated model for those who decide on it: result, threat model, data, attacks "
        "tried and not tried, diagnostics, limits, a checklist answered from the evidence, and versions."
    )
    parser.add_argument("run", type=Path, help="run folder, or folder of evidence")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write, .md or .html (default: dossier.html in the run)"
    )
    parser.add_argument("--as", dest="label", metavar="NAME", help="take the folder evaluation_NAME")
    parser.add_argument(
        "--clean", type=float, metavar="SHARE", help="least clean accuracy that you accept, such as 0.85"
    )
    parser.add_argument("--robust", type=float, metavar="SHARE", help="least worst-case accuracy that you accept")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Write the dossier; returns the exit code. See `run_dossier`."""
    from robustly.cli.dossier import run_dossier
    from robustly.reports.dossier.content import Floors

    return run_dossier(options.run, options.out, options.label, Floors(options.clean, options.robust))
