"""The command `robustly`: train, finetune, sweep, evaluate, diagnose, analyse, audit, compare, report and lists."""

import argparse
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

import torch

import robustly
from robustly.cli.analyse import COUNT, run_analysis
from robustly.cli.arguments import split_overrides
from robustly.cli.audit import AuditOptions, run_audit
from robustly.cli.compare import add_compare, run_comparison
from robustly.cli.diagnose import COUNT as DIAGNOSED
from robustly.cli.diagnose import run_diagnostics
from robustly.cli.evaluate import run_evaluation
from robustly.cli.finetune import add_finetune, run_finetune
from robustly.cli.interruption import Stopped, lasting_output, stoppable
from robustly.cli.recipes import recipe_names, recipe_text
from robustly.cli.report import run_report
from robustly.cli.suites import show_suites
from robustly.cli.sweep import add_sweep, run_sweep
from robustly.cli.train import run_training
from robustly.evaluation import Sampling
from robustly.output_text import one_line
from robustly.threats import parse_threat

USER_ERROR, FAULT, INTERRUPTED = 2, 3, 130
LONGEST = 1000
"""Most characters of a message."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0: success. 1: the command ran, and its answer is negative: a failed audit or diagnostic. 2: wrong input, with
    one sentence on stderr. 3: a fault of robustly itself; the sentence names a file with the traceback. 130:
    Ctrl-C. 143: SIGTERM. 129: SIGHUP. A closed pipe ends no command. With the variable `ROBUSTLY_TRACEBACK` set,
    the traceback of 2 and 3 is printed too.
    """
    for name in ("lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with lasting_output():
        return _exit_code(list(sys.argv[1:] if arguments is None else arguments))


def _exit_code(arguments: list[str]) -> int:
    try:
        with stoppable(), warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            code = _run(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()  # a full disk is an error, unlike a closed pipe
            return code
    except Stopped as stop:
        print(f"robustly: {stop}", file=sys.stderr)  # noqa: T201
        return stop.exit_code
    except KeyboardInterrupt:
        print("robustly: interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("ROBUSTLY_TRACEBACK"):
            traceback.print_exc()
        is_fault = not isinstance(error, ValueError | OSError | ImportError | MemoryError | torch.OutOfMemoryError)
        sentence = one_line(_report(error) if is_fault else _sentence(error))
        shown = sentence if len(sentence) <= LONGEST else f"{sentence[:LONGEST]}..."
        print(f"robustly: {shown}", file=sys.stderr)  # noqa: T201
        return FAULT if is_fault else USER_ERROR


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}; files written before are kept"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"there is not enough memory: use smaller batches, models or images ({str(error)[:120]})"
    return str(error).strip() or type(error).__name__


def _report(error: Exception) -> str:
    """The sentence on a fault of robustly itself; writes the traceback to a temporary file."""
    with tempfile.NamedTemporaryFile("w", prefix="robustly-", suffix=".txt", encoding="utf-8", delete=False) as log:
        log.write("".join(traceback.format_exception(error)).encode("utf-8", "replace").decode())
    return (
        f"this is a fault of robustly ({type(error).__name__}: {str(error)[:160]}): please report it with the file "
        f"{log.name}; files written before are kept"
    )


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Print warnings of the category UserWarning, without file and line."""
    if issubclass(category, UserWarning):
        print(f"warning: {one_line(str(message))}", file=sys.stderr)  # noqa: T201


def _run(arguments: list[str]) -> int:
    words, overrides = split_overrides(arguments)
    options = _parser().parse_args(words)
    if overrides and options.command not in ("train", "finetune", "sweep", "evaluate", "diagnose"):
        raise ValueError(f"{options.command} takes no settings, got {overrides[0]}")
    return _COMMANDS[options.command](options, overrides)


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    return run_training(options.recipe, options.out, options.resume, overrides, options.trust_code, options.dry_run)


def _evaluate(options: argparse.Namespace, overrides: list[str]) -> int:
    if options.suite is not None:
        overrides = ["--evaluation.suite", options.suite, *overrides]
    return run_evaluation(
        options.run, overrides, options.trust_code, options.overwrite, options.label, options.keep
    )


def _audit(options: argparse.Namespace, overrides: list[str]) -> int:
    sampling = Sampling(options.share, options.confidence, options.rerun == "all")
    chosen = AuditOptions(sampling, options.label, options.sign, options.verify)
    return run_audit(options.run, chosen, options.trust_code)


def _recipes(options: argparse.Namespace, overrides: list[str]) -> int:
    print(recipe_text(options.name) if options.name else "\n".join(recipe_names()))  # noqa: T201
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "train": _train,
    "finetune": run_finetune,
    "sweep": run_sweep,
    "evaluate": _evaluate,
    "audit": _audit,
    "diagnose": lambda options, overrides: run_diagnostics(
        options.run, options.count, overrides, options.trust_code
    ),
    "analyse": lambda options, _: run_analysis(options.run, options.count, options.trust_code),
    "suites": lambda options, _: show_suites(options.name, parse_threat(options.threat)),
    "compare": lambda options, _: run_comparison(options.runs, options.by, options.csv, options.html),
    "report": lambda options, _: run_report(options.runs, options.out),
    "recipes": _recipes,
}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="robustly",
        description="Train robust networks, attack them, and report the evidence.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"robustly {robustly.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    trust = _Parser(add_help=False)
    trust.add_argument(
        "--trust-code",
        action="store_true",
        help="import a model package.module:factory even if only a file names it",
    )
    _add_train(commands, trust)
    add_finetune(
        commands.add_parser("finetune", parents=[trust], allow_abbrev=False, help="make trained weights robust")
    )
    add_sweep(
        commands.add_parser("sweep", parents=[trust], allow_abbrev=False, help="train recipes x seeds x values")
    )
    _add_evaluate(commands, trust)
    _add_audit(commands, trust)
    _add_report(commands)
    add_compare(
        commands.add_parser("compare", allow_abbrev=False, help="print tables of runs, seeds and published numbers")
    )
    _add_diagnose(commands, trust)
    _add_analyse(commands, trust)
    _add_lists(commands)
    return parser


def _add_train(commands: Commands, trust: _Parser) -> None:
    train = commands.add_parser(
        "train",
        parents=[trust],
        allow_abbrev=False,
        help="train a model from a recipe",
        description="Train from a recipe (see `robustly recipes`) or a YAML file. Any setting can be changed: "
        "--training.epochs 5, --threat linf:0.2, --method.loss.beta 3, --data.source FILE.",
    )
    train.add_argument("recipe", nargs="?", help="dataset/method, or the path of a .yaml file")
    train.add_argument("--out", type=Path, help="run folder to create (default: runs/RECIPE)")
    train.add_argument("--resume", type=Path, metavar="RUN", help="continue a stopped run")
    train.add_argument("--dry-run", action="store_true", help="check all settings, print the parts and their cost")


def _add_evaluate(commands: Commands, trust: _Parser) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        parents=[trust],
        allow_abbrev=False,
        help="attack a trained model and write the evidence",
        description="Evaluate the model of a run on its test images. Settings: --evaluation.suite NAME, "
        "--evaluation.count N, --evaluation.mode worst_case, --threat linf:0.2, --runtime.device cuda. For a model "
        "trained elsewhere, name a new folder and give --model.name, --model.weights and --data.source.",
    )
    evaluate.add_argument("run", type=Path)
    evaluate.add_argument("--suite", metavar="NAME", help="same as --evaluation.suite NAME")
    evaluate.add_argument("--as", dest="label", metavar="NAME", help="write to the folder evaluation_NAME")
    evaluate.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation")
    evaluate.add_argument("--keep", action="store_true", help="do nothing if the run is evaluated already")


def _add_audit(commands: Commands, trust: _Parser) -> None:
    audit = commands.add_parser(
        "audit",
        parents=[trust],
        allow_abbrev=False,
        help="re-check an evaluation from scratch",
        description="Recompute every number of an evaluation from its rows, every row from images and weights, and "
        "attack a sample of the standing examples again. The exit code is 1 if a check fails. "
        "`openssl genpkey -algorithm ed25519 -out KEY` makes a key.",
    )
    audit.add_argument("run", type=Path)
    audit.add_argument("--as", dest="label", metavar="NAME", help="audit the folder evaluation_NAME")
    audit.add_argument(
        "--rerun",
        choices=("sample", "all"),
        default="sample",
        help="attack a sample of the standing examples again (default), or all",
    )
    audit.add_argument(
        "--share",
        type=float,
        default=Sampling.share,
        help="the sample is so large that the audit fails if this share of the standing verdicts is false ...",
    )
    audit.add_argument(
        "--confidence", type=float, default=Sampling.confidence, help="... with this probability (default: 0.99)"
    )
    audit.add_argument(
        "--sign", type=Path, metavar="KEY", help="sign the evidence with an Ed25519 key if it passes"
    )
    audit.add_argument("--verify", type=Path, metavar="KEY", help="the evidence must be signed by this public key")


def _add_report(commands: Commands) -> None:
    report = commands.add_parser("report", allow_abbrev=False, help="write an HTML page about one or several runs")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, or folders of sweeps")
    report.add_argument("--out", type=Path, help="file to write (default: report.html in the run, or here)")


def _add_diagnose(commands: Commands, trust: _Parser) -> None:
    diagnose = commands.add_parser(
        "diagnose",
        parents=[trust],
        allow_abbrev=False,
        help="test whether gradient masking inflates robust accuracy",
        description="Run twelve tests and a dozen checks for masked gradients on the test images of a run. "
        "Settings as for evaluate, such as --threat l2:0.5. The exit code is 1 if masking is suspected.",
    )
    diagnose.add_argument("run", type=Path)
    diagnose.add_argument("--count", type=int, default=DIAGNOSED, help="number of images, from the first")


def _add_analyse(commands: Commands, trust: _Parser) -> None:
    analyse = commands.add_parser(
        "analyse",
        parents=[trust],
        allow_abbrev=False,
        help="measure gradients, loss landscapes, and the union of several threats",
    )
    analyse.add_argument("run", type=Path)
    analyse.add_argument("--count", type=int, default=COUNT, help="number of images for the gradients")


def _add_lists(commands: Commands) -> None:
    suites = commands.add_parser("suites", allow_abbrev=False, help="list the suites, or print the stages of one")
    suites.add_argument("name", nargs="?")
    suites.add_argument(
        "threat", nargs="?", default="linf:8/255", help="such as l2:0.5 or rotation:30 (default: linf:8/255)"
    )

    recipes = commands.add_parser("recipes", allow_abbrev=False, help="list the recipes, or print one")
    recipes.add_argument("name", nargs="?")
