"""`robustly evaluate`: its arguments and settings."""

import argparse
import shutil
from pathlib import Path

from robustly.cli.arguments import RUNTIME, add_model, add_trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly evaluate` to a parser."""
    parser.description = (
        "Evaluate the model of a run on its test images. Settings: --evaluation.suite NAME, "
        "--evaluation.count N, --evaluation.mode worst_case, --threat linf:0.2, --runtime.device cuda. --threats "
        "linf:8/255 l2:0.5 l1:12 evaluates under each of them and prints the union. --suite tafd_v10, tafd_v20 and "
        "unforeseen have threats of their own. For a model "
        "trained elsewhere, give its file, or --model, --timm or --hf-model, and --data."
    )
    add_trust(parser)
    add_model(parser, several=True)
    parser.add_argument("--suite", metavar="NAME", help="same as --evaluation.suite NAME")
    parser.add_argument(
        "--curve",
        metavar="SIZES",
        help="same as --evaluation.curve SIZES: accuracy against the size of each threat. on for the usual sizes, "
        "shares of the threat's size such as 50%%,100%%,150%%, sizes in its unit such as 1/255,2/255, or off",
    )
    parser.add_argument("--as", dest="label", metavar="NAME", help="write to the folder evaluation_NAME")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="weights of the run: the selected ones, or those after its last epoch (to the folder evaluation_last)",
    )
    parser.add_argument(
        "--costs",
        metavar="COSTS",
        help="also measure the costs of confusions: a .csv or .npy file of K rows of K numbers, classes:3,5, pairs "
        "such as 6>4:1,6>2:5, or all; with --keep, for an evaluation that exists",
    )
    parser.add_argument(
        "--trained-on",
        nargs="+",
        metavar="THREAT",
        help="with --suite unforeseen: threats that the network was trained on, if its run does not state them, or "
        "none",
    )
    parser.add_argument(
        "--planes",
        type=Path,
        metavar="FILE",
        help="with --suite tafd_v20: principal directions of the training images, for a model trained elsewhere",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="with a suite of several threats: print them and their passes, and evaluate nothing",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation")
    parser.add_argument("--keep", action="store_true", help="do nothing if the run is evaluated already")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Evaluate; returns the exit code. See `run_evaluation`, and `run_protocol` for suites of several threats."""
    from robustly.cli.several_runs import are_several, one_run

    if options.suite is not None:
        overrides = ["--evaluation.suite", options.suite, *overrides]
    if options.curve is not None:
        overrides = ["--evaluation.curve", options.curve, *overrides]
    if are_several(options.runs, options.on):
        return _run_several(options, overrides)
    return _run_one(one_run(options.runs), options, overrides)


def _run_one(place: Path | None, options: argparse.Namespace, overrides: list[str]) -> int:
    from robustly.cli.evaluate import run_evaluation
    from robustly.cli.evaluate_protocol import ProtocolOptions, protocol_of, run_protocol

    protocol = protocol_of(place, overrides)
    if protocol is not None and options.costs is not None:
        raise ValueError(f"--costs is for evaluations under one threat, {protocol.name} has several")
    if protocol is not None:
        chosen = ProtocolOptions(
            options.overwrite,
            options.keep,
            options.label,
            options.checkpoint,
            None if options.trained_on is None else tuple(options.trained_on),
            options.planes,
            options.dry_run,
            options.on,
        )
        return run_protocol(place, protocol, overrides, options.trust_code, chosen)
    _refuse_options_of_protocols(options)
    return run_evaluation(
        place,
        overrides,
        options.trust_code,
        options.overwrite,
        options.label,
        options.keep,
        checkpoint=options.checkpoint,
        costs=options.costs,
        on=options.on,
    )


def _refuse_options_of_protocols(options: argparse.Namespace) -> None:
    for name in ("trained_on", "planes", "dry_run"):
        if getattr(options, name):
            raise ValueError(
                f"--{name.replace('_', '-')} is for suites of several threats, such as --suite unforeseen or "
                "--suite tafd_v20 without --threat"
            )


def _run_several(options: argparse.Namespace, overrides: list[str]) -> int:
    from robustly.cli.evaluate_protocol import protocol_of
    from robustly.cli.evaluate_several import SeveralOptions, evaluate_several
    from robustly.cli.several_runs import all_runs, in_turn

    places = all_runs(options.runs)
    protocol = next(filter(None, (protocol_of(place, overrides) for place in places)), None)
    if protocol is not None and options.costs is not None:
        raise ValueError(f"--costs is for evaluations under one threat, {protocol.name} has several")
    if protocol is not None or options.costs is not None:
        return in_turn(places, lambda place: _run_one(place, options, list(overrides)))
    _refuse_options_of_protocols(options)
    several = SeveralOptions(
        tuple(overrides),
        options.on,
        options.trust_code,
        options.overwrite,
        options.label,
        options.keep,
        checkpoint=options.checkpoint,
    )
    return evaluate_several(places, several)


def settings_help(words: list[str], overrides: list[str]) -> str:
    """The settings of an evaluation with their defaults; a run has values of its own in its `config.yaml`."""
    from robustly.experiments.settings_help import help_text, section_settings

    runtime = [one for one in section_settings("runtime") if one.key in RUNTIME]
    settings = [*section_settings("evaluation"), *runtime]
    return (
        "settings, beside --threat, --threats and --seed, with their defaults; a run has its own in config.yaml:\n"
        f"{help_text(settings, shutil.get_terminal_size().columns)}\n"
        "A new folder also takes those of --model and --data, which `robustly train RECIPE --help` lists."
    )
