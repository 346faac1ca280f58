"""The commands by name. Each file holds the arguments of one command and the function that runs it.

The files import nothing heavy: `run` imports PyTorch and the rest when the command begins, so that `--help`,
completion and mistyped words answer at once.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from robustly.cli.commands import (
    analyse,
    audit,
    bench,
    certify,
    compare,
    completion,
    corruptions,
    demo,
    diagnose,
    dossier,
    evaluate,
    export,
    finetune,
    gate,
    info,
    predict,
    recipes,
    report,
    reproduce,
    suites,
    sweep,
    train,
    verify,
)


@dataclass(frozen=True)
class Command:
    """A command of `robustly`.

    Args:
        help: a few words for the list of commands.
        add_arguments: adds the options to a parser, and may set its description.
        run: carries out the command with the parsed options and the settings, and returns the exit code.
        takes_settings: whether settings such as `--training.epochs 5` are allowed.
        takes_processes: whether `--runtime.processes` and `--runtime.strategy` are allowed where no other settings
            are.
        settings_help: text on these settings, printed below the options; takes the words after the command's name
            and the settings that are given beside `--help`.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, list[str]], int]
    takes_settings: bool = False
    takes_processes: bool = False
    settings_help: Callable[[list[str], list[str]], str] | None = None


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "train, attack, audit, certify and report two networks, in three minutes",
        demo.add_arguments,
        demo.run,
        takes_settings=True,
    ),
    "train": Command(
        "train a model from a recipe",
        train.add_arguments,
        train.run,
        takes_settings=True,
        settings_help=train.settings_help,
    ),
    "finetune": Command(
        "train a finished model against a threat, and compare before and after",
        finetune.add_arguments,
        finetune.run,
        takes_settings=True,
    ),
    "sweep": Command("train recipes x seeds x values", sweep.add_arguments, sweep.run, takes_settings=True),
    "evaluate": Command(
        "attack a trained model and write the evidence",
        evaluate.add_arguments,
        evaluate.run,
        takes_settings=True,
        settings_help=evaluate.settings_help,
    ),
    "certify": Command(
        "prove for each test image that no attack succeeds, or find one that does",
        certify.add_arguments,
        certify.run,
        takes_settings=True,
    ),
    "corruptions": Command(
        "measure accuracy under common corruptions such as noise, blur, fog and JPEG",
        corruptions.add_arguments,
        corruptions.run,
        takes_settings=True,
    ),
    "bench": Command(
        "measure the speed of a model here, and predict the time of whole runs",
        bench.add_arguments,
        bench.run,
        takes_settings=True,
    ),
    "audit": Command("re-check an evaluation from scratch", audit.add_arguments, audit.run, takes_processes=True),
    "gate": Command("compare an evaluation with limits, for a pipeline", gate.add_arguments, gate.run),
    "dossier": Command(
        "write a document on a model: threat, data, attacks, limits, checklist", dossier.add_arguments, dossier.run
    ),
    "report": Command("write an HTML page about one or several runs", report.add_arguments, report.run),
    "compare": Command("print tables of runs, seeds and published numbers", compare.add_arguments, compare.run),
    "reproduce": Command(
        "train and evaluate the methods of a paper, and write its tables", reproduce.add_arguments, reproduce.run
    ),
    "diagnose": Command(
        "test whether gradient masking inflates robust accuracy",
        diagnose.add_arguments,
        diagnose.run,
        takes_settings=True,
    ),
    "analyse": Command(
        "measure gradients, loss landscapes, and the union of several threats",
        analyse.add_arguments,
        analyse.run,
        takes_settings=True,
    ),
    "verify": Command(
        "prove a property of a network in ONNX and VNN-LIB, or break it", verify.add_arguments, verify.run
    ),
    "predict": Command("classify image files", predict.add_arguments, predict.run, takes_processes=True),
    "info": Command("describe a run, weights, evidence or an exported model", info.add_arguments, info.run),
    "export": Command(
        "write the model as ONNX, safetensors or a Hugging Face folder", export.add_arguments, export.run
    ),
    "suites": Command("list the suites, or print the stages of one", suites.add_arguments, suites.run),
    "recipes": Command("list the recipes, or print one", recipes.add_arguments, recipes.run),
    "completion": Command("print a script for completion in a shell", completion.add_arguments, completion.run),
}
