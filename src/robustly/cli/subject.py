"""Model, weights and test images of the commands `evaluate`, `diagnose` and `analyse`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from robustly.cli.arguments import check_evaluation_overrides, in_shards, trust_in
from robustly.cli.terminal import PlainConsole
from robustly.data import DataConfig, ImageData, load_test
from robustly.evidence.domain_names import Part
from robustly.experiments.configuration import RunConfig
from robustly.experiments.given_models import GivenRun, given_run
from robustly.experiments.keys import UNTRAINED
from robustly.experiments.overrides import pairs_of
from robustly.experiments.run_data import (
    SeenRows,
    check_test_rows,
    data_of_weights,
    refuse_seen_target,
    write_run_data,
)
from robustly.experiments.run_folder import (
    OWN_WEIGHTS,
    Checkpoint,
    RunError,
    Trusts,
    create_run,
    evaluation_data,
    load_on_device,
    open_run,
)


@dataclass(frozen=True)
class Subject:
    """A model with its weights, and its test images, on one device.

    Args:
        run: the run.
        source: settings of the images, limited to the number that is evaluated.
        seen: numbers of images that the model was trained or selected on.
        model: the network, in evaluation mode.
        data: the images.
        checkpoint: the origin of the weights.
        device: where model and images are.
        trusts: whether a model of this name may be imported, for the surrogates of an evaluation.
        part: with domains, those of which the images are.
    """

    run: GivenRun
    source: DataConfig
    seen: SeenRows
    model: nn.Module
    data: ImageData
    checkpoint: str
    device: torch.device
    trusts: Trusts
    part: Part = "target"


def run_of_command(place: Path | None, overrides: list[str], *, takes_shards: bool = False) -> GivenRun:
    """The run that a command line names; see `given_run`.

    The weights are whole unless the command line divides them, also if the run was trained in shards.

    Args:
        place: the run, or a model that was trained elsewhere.
        overrides: settings.
        takes_shards: whether the command takes weights in shards.

    Raises:
        ValueError: wrong settings, or settings that would change the weights or images of a run that exists.
        FileNotFoundError: a file of weights that does not exist.
    """
    is_divided = in_shards(pairs_of(overrides), None if takes_shards else "this command uses whole weights")
    run = given_run(place, overrides)
    runtime = replace(run.config.runtime, strategy="fsdp" if is_divided else "ddp")
    run = replace(run, config=replace(run.config, runtime=runtime))
    if run.is_new:
        return run
    stored = open_run(run.folder)
    if stored.recipe != UNTRAINED:
        check_evaluation_overrides(run.overrides, stored.model_names)
    # the command that made a folder without training may be given again
    elif (run.config.model, run.config.data) != (stored.model, stored.data):
        if place is not None and place.resolve() == run.folder.resolve():
            check_evaluation_overrides(run.overrides, stored.model_names)
        raise RunError(
            f"{run.folder} exists already with another model or other images: name a new folder, and the "
            "model with --weights, --hf-model, --timm or --model"
        )
    return run


def first_threat(run: GivenRun, command: str) -> RunConfig:
    """Settings of a run with its first threat alone, for a command that works under one threat.

    Args:
        run: the run.
        command: name of the command, for the message.

    Raises:
        RunError: the command line names several threats.
    """
    if "threats" in dict(pairs_of(run.overrides)) and len(run.config.threats) > 1:
        raise RunError(f"{command} works under one threat: give --threat, and repeat the command for others")
    return run.config.for_threat(0)


def load_subject(
    run: GivenRun,
    trust_code: bool,
    config: RunConfig | None = None,
    checkpoint: Checkpoint = "best",
    part: Part = "target",
) -> Subject:
    """Load the model and the images of a run; nothing is written.

    A model that the command line divides is on the CPU; see `robustly.evaluation.shards.divided`.

    Args:
        run: the run.
        trust_code: whether models that only a file names may be imported.
        config: settings in place of those of the run, such as the images of an earlier evaluation.
        checkpoint: the weights of the run.
        part: with domains, those whose test images are used.

    Raises:
        ValueError: weights, data or model that are wrong or do not fit.
        OSError: files that cannot be read.
    """
    config = config or run.config
    source = evaluation_data(config)
    if config.recipe == UNTRAINED:
        refuse_seen_target(config)
    data = load_test(source, part)
    seen = check_test_rows(run.folder, config, data, part)
    trusts = trust_in(run.overrides, trust_code).allows
    whole = run.config.runtime.strategy == "ddp"
    loaded = load_on_device(run.folder, config, data, trusts, checkpoint, whole=whole)
    if loaded.checkpoint == OWN_WEIGHTS:
        PlainConsole().print(
            f"the weights are those that {config.model.name} gives; their hash is recorded",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    return Subject(run, source, seen, loaded.model, loaded.data, loaded.checkpoint, loaded.device, trusts, part)


def keep_run(run: GivenRun) -> None:
    """Make the folder of a new run, and record the rows that its weights were trained on.

    Raises:
        RunError: the folder was made by another process in the meantime.
        OSError: the folder cannot be written.
    """
    if run.is_new:
        create_run(run.folder, run.config)
    if run.config.recipe == UNTRAINED:  # an earlier process may have been killed before it wrote them
        write_run_data(run.folder, data_of_weights(run.config.model.weights))


@contextmanager
def removed_if_refused(run: GivenRun) -> Iterator[None]:
    """Remove the folder of a new run if the work in it ends with wrong input; a stopped run keeps its parts."""
    try:
        yield
    except ValueError:
        if run.is_new:
            shutil.rmtree(run.folder, ignore_errors=True)
        raise
