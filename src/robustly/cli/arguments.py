"""Command line words: options of a command, and settings that change the configuration."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from robustly.experiments.keys import ALLOWED, NETWORKS
from robustly.model_names import TORCHSCRIPT, is_published
from robustly.settings import SettingsError

SHORT_FORMS = {
    "model": ("model.name", ""),
    "timm": ("model.name", "timm:"),
    "hf-model": ("model.name", "hf:"),
    "weights": ("model.weights", ""),
    "data": ("data.source", ""),
}
"""Settings, and the beginning of their value, by the short form."""
_OPTIONS = {"certify": ("method",)}
"""Options that have the name of a setting, by command."""


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate settings from the other words of a command line.

    Settings are `--a.b value`, `--a.b=value` and those without a dot (`--seed 1`, `--threat linf:0.2`), and the
    short forms of `SHORT_FORMS`, which become settings. `--threats` takes the words of the form KIND:SIZE that
    follow it, or one list in brackets, and becomes one setting with a list.

    Returns:
        The other words, and the settings, each in the order given.

    Raises:
        SettingsError: `--threat` or `--threats` is given twice. Of other settings, the last one counts.
    """
    words: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    for option in ("--threat", "--threats"):
        if sum(word.partition("=")[0] == option for word in rest) > 1:
            raise SettingsError(f"{option} is given twice: list several threats after one --threats")
    options = _OPTIONS.get(rest[0], ()) if rest else ()
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and key in SHORT_FORMS:
            long, before = SHORT_FORMS[key]
            value = value if equals else (rest.pop(0) if rest and not rest[0].startswith("--") else "")
            overrides += [f"--{long}", f"{before}{value}" if value else ""]
        elif word.startswith("--") and key == "threats":
            listed = [value] if equals else []
            while rest and re.match(r"\s*(\[|\w+:)", rest[0]):
                listed.append(rest.pop(0))
            overrides += ["--threats", listed[0] if listed and listed[0].strip()[:1] == "[" else json.dumps(listed)]
        elif word.startswith("--") and ("." in key or key in ALLOWED) and key not in options:
            overrides.append(word)
            if not equals and rest and not rest[0].startswith("--"):
                overrides.append(rest.pop(0))
        else:
            words.append(word)
    return words, overrides


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option `--trust-code` to the parser of a command that builds models."""
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="import a model package.module:factory even if only a file names it",
    )


PROCESSES, STRATEGY = "runtime.processes", "runtime.strategy"


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add `--runtime.processes` and `--runtime.strategy` to the help of a command without other settings.

    `split_overrides` takes them out of the command line before.
    """
    parser.add_argument(
        f"--{PROCESSES}", metavar="N", help="processes that share the work on this machine (default: 1)"
    )
    parser.add_argument(
        f"--{STRATEGY}", metavar="WORD", help="fsdp: each process holds a share of the weights (default: ddp)"
    )


def processes_in(overrides: Sequence[str]) -> int:
    """The number of processes that a command line names; 1 if it names none.

    Raises:
        SettingsError: not a whole number of at least 1.
    """
    from robustly.experiments.overrides import pairs_of  # noqa: PLC0415 (the command line is read without YAML)

    given = [value for key, value in pairs_of(overrides) if key == PROCESSES]
    text = given[-1] if given else "1"
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"{PROCESSES} should be a whole number of at least 1, but is {text!r}")
    return int(text)


def strategy_in(overrides: Sequence[str]) -> Literal["ddp", "fsdp"]:
    """Strategy that a command line names: "fsdp" divides the weights among the processes.

    Raises:
        SettingsError: another word than ddp and fsdp.
    """
    from robustly.experiments.overrides import pairs_of  # noqa: PLC0415 (the command line is read without YAML)

    return "fsdp" if in_shards(pairs_of(overrides)) else "ddp"


def add_model(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add a run, and the short forms of the settings that name a model and its images.

    Args:
        parser: the parser of a command.
        several: whether the command takes several runs, as `runs`, and a Ray cluster, as `on`.

    The short forms are here for the help: `split_overrides` takes them out of the command line before.
    """
    parser.add_argument(
        "runs" if several else "run",
        type=Path,
        nargs="*" if several else "?",
        metavar="RUN" if several else None,
        help="run folder; for a model trained elsewhere, a new folder, a file of weights, or a folder of Hugging "
        "Face (default: runs/NAME)",
    )
    if several:
        parser.add_argument(
            "--on",
            metavar="ray",
            help="share the images of a run among the tasks of a Ray cluster, or carry out several runs and sweeps "
            "there: ray for the cluster of this machine or a new one, or ray://HOST:PORT",
        )
    group = parser.add_argument_group("a model trained elsewhere")
    group.add_argument("--model", metavar="NAME", help="network: a name, or package.module:factory")
    group.add_argument("--timm", metavar="NAME", help="network of timm, with its published weights or --weights")
    group.add_argument(
        "--hf-model", metavar="FOLDER", help="network of Hugging Face: a folder, or its name on the hub"
    )
    group.add_argument("--weights", metavar="FILE", help="its weights: a file, a folder, or a run")
    group.add_argument("--data", metavar="SOURCE", help="its test images: a folder, a file, or a name")


@dataclass(frozen=True)
class Trust:
    """Models `package.module:factory` that may be imported: those typed on the command line.

    Args:
        names: names typed on this command line, without names that come from files.
        everything: whether `--trust-code` was given.
    """

    names: frozenset[str] = frozenset()
    everything: bool = False

    def allows(self, name: str) -> bool:
        """Return True if a model of this name may be imported; adds the working folder to the search path then."""
        if is_published(name):
            return False  # nothing of the user's is imported, so the working folder is not searched
        # a file of TorchScript comes from elsewhere, although its name is typed
        allowed = self.everything or (name in self.names and not name.startswith(TORCHSCRIPT))
        if allowed and ":" in name and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        return allowed


def trust_in(overrides: Sequence[str], everything: bool) -> Trust:
    """Trust the models that a command line names."""
    pairs = pairwise([*overrides, ""])
    typed = [(word.partition("=")[2] if "=" in word else value) for word, value in pairs if is_model_name(word)]
    return Trust(frozenset(typed), everything)


def trust_option(name: str) -> str:
    """The option that a later command needs for a model of this name; empty for models without the user's code."""
    return " --trust-code" if ":" in name and not is_published(name) else ""


def is_model_name(word: str) -> bool:
    """Return True for a word that names a model, such as `--model.name`."""
    key = word.partition("=")[0]
    direct = {f"--{name}.name" for name in ("model", *NETWORKS)}
    return key in direct or re.fullmatch(r"--networks\.\w+\.name", key) is not None


RUNTIME = ("runtime.device", "runtime.processes", "runtime.strategy", "runtime.compile")
"""Settings of the runtime that an evaluation takes for a run that exists."""
_FREE = ("threat", "threats", "seed", *RUNTIME)


READS_WEIGHTS = "computes bounds, which read the weights of all layers at once"


def in_shards(pairs: Sequence[tuple[str, str]], refusal: str | None = None) -> bool:
    """Return True if a command line divides the weights of its model among processes (FSDP).

    Args:
        pairs: settings from the command line.
        refusal: why the command needs whole weights; None if it takes shards.

    Raises:
        ValueError: the command needs whole weights; the strategy is neither ddp nor fsdp.
    """
    given = dict(pairs).get(STRATEGY, "ddp")
    if given not in ("ddp", "fsdp"):
        raise SettingsError(f"{STRATEGY} should be ddp or fsdp, but is {given!r}")
    if given == "fsdp" and refusal is not None:
        raise ValueError(f"--{STRATEGY} fsdp: {refusal}; leave it out")
    return given == "fsdp"


def check_evaluation_overrides(overrides: Sequence[str], names: Sequence[str]) -> None:
    """Refuse settings that would change the weights or the test images of a trained run.

    Args:
        overrides: settings from the command line.
        names: model names of the run, which may be typed again to trust their code.

    Raises:
        ValueError: another setting than those of the evaluation.
    """
    rest = list(overrides)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        value = value if equals else (rest.pop(0) if rest else "")
        free = key in _FREE or key.startswith("evaluation.")
        if not free and not (is_model_name(word) and value in names):
            raise ValueError(
                f"evaluate takes no --{key} for a run that exists: allowed are --threat, --threats, --seed, "
                f"--evaluation.*, {', '.join(f'--{name}' for name in RUNTIME[:-1])} and --{RUNTIME[-1]}; to test "
                "other weights or data, name a new folder"
            )
