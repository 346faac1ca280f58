"""`robustly train`."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from shlex import quote

import torch

from robustly.cli.arguments import trust_in, trust_option
from robustly.cli.dry_run import empty_lines, several_words, show_composition, show_job
from robustly.cli.progress import collapse_line, observer_for
from robustly.cli.recipes import read_recipe
from robustly.cli.terminal import PlainConsole, print_text
from robustly.experiments.configuration import RunConfig, build_config, with_absolute_paths
from robustly.experiments.locks import lock_run
from robustly.experiments.overrides import apply_overrides
from robustly.experiments.run_data import (
    RunData,
    data_of_job,
    refuse_other_training_rows,
    refuse_seen_target,
    shared_by_processes,
    write_run_data,
)
from robustly.experiments.run_folder import Trusts, build_job_and_data, create_run, is_begun, open_run
from robustly.launching import training_processes
from robustly.runtime import Runtime
from robustly.training import Job, train
from robustly.training.engine.guide_check import (
    GUIDE,
    checked_images,
    guide_warm_up,
    is_checked,
    refuse_chance,
    weak_epoch,
)
from robustly.training.engine.loop import FINAL
from robustly.training.engine.placing import place_networks
from robustly.training.engine.validation import clean_accuracy
from robustly.training.observers import Observers, Subject, check_observers, run_key, writers


def run_training(
    recipe: str | None,
    out: Path | None,
    resume: Path | None,
    overrides: list[str],
    trust_code: bool,
    dry_run: bool = False,
    observers: str | None = None,
) -> int:
    """Train from a recipe, or continue a run; returns the exit code. A dry run prints its composition only.

    `observers` are names of `robustly.training.observers`, joined by commas.

    Raises:
        ValueError: wrong settings, data or models.
        OSError: files that cannot be read or written.
    """
    named = check_observers(observers)
    if resume is not None:
        if recipe is not None or overrides or out is not None:
            raise ValueError(
                "--resume continues with the settings of the run: give no recipe, --out or settings. To train a "
                f"finished run for longer, start a new one from its weights: robustly finetune "
                f"{quote(str(resume))} --epochs N --out NEW, or the recipe with "
                f"--model.weights {quote(str(resume / FINAL))}"
            )
        config, folder = open_run(resume), resume
    elif recipe is None:
        raise ValueError("name a recipe (see `robustly recipes`) or --resume RUN")
    else:
        config = with_absolute_paths(build_config(apply_overrides(read_recipe(recipe), overrides)))
        folder = out or Path("runs") / config.recipe.replace("/", "_")
        if is_first_process() and not dry_run and is_begun(folder, config):
            resume = folder
    begins = "" if resume is None or recipe is None else " (continued)"
    trust = trust_in(overrides, trust_code)
    return train_run(
        config,
        folder,
        resumes=resume is not None,
        trusts=trust.allows,
        dry_run=dry_run,
        note=begins,
        observers=named,
    )


def train_run(
    config: RunConfig,
    folder: Path,
    *,
    resumes: bool,
    trusts: Trusts,
    dry_run: bool = False,
    note: str = "",
    begun: Callable[[], None] = lambda: None,
    resumed_by: str = "robustly train --resume",
    observers: Sequence[str] = (),
) -> int:
    """Train in a run folder, or continue there; returns the exit code.

    Args:
        config: its settings.
        folder: the run folder.
        resumes: whether it exists already.
        trusts: whether a model named `package.module:factory` may be imported.
        dry_run: whether to print the composition only.
        note: printed after the name of the folder.
        begun: called by the first process once the folder is there.
        resumed_by: command that continues a stopped run, without its folder.
        observers: other programs that receive the metrics; see `robustly.training.observers`.

    Raises:
        ValueError: data or models that do not fit.
        OSError: files that cannot be read or written.
    """
    if dry_run:
        show_composition(PlainConsole(), config)
    config.runtime.check_training()
    refuse_seen_target(config)
    job, splits = build_job_and_data(config, trusts)
    cpu = torch.device("cpu")
    placed = place_networks(job, cpu, config.runtime.processes * config.runtime.nodes)  # before files exist
    accuracy = None
    if not resumes and is_checked(job) and not job.networks[GUIDE].pretrain:
        with placed.adapted():
            accuracy = clean_accuracy(
                placed.networks.trained[GUIDE],
                checked_images(job),
                batch_size=job.training.validation_batch_size,
                dtype=placed.dtype,
            )
        refuse_chance(accuracy, job.train.num_classes)
    if dry_run:
        job.check_processes(config.runtime.processes * config.runtime.nodes, config.runtime.strategy == "fsdp")
        show_job(PlainConsole(), config, job, accuracy)
        return 0
    rows = data_of_job(config, job, splits)
    if resumes:
        refuse_other_training_rows(folder, config.data.source, rows)
    counts = config.runtime.processes, config.runtime.nodes
    with training_processes(*counts, shared_by_processes(config, job, rows) if counts != (1, 1) else {}):
        _train_together(config, folder, job, rows, resumes, note, begun, resumed_by, observers)
    return 0


def _train_together(
    config: RunConfig,
    folder: Path,
    job: Job,
    rows: RunData,
    resumes: bool,
    note: str,
    begun: Callable[[], None],
    resumed_by: str,
    observers: Sequence[str],
) -> None:
    """Train as one of the processes of a run; see `train_run`."""
    runtime = Runtime(config.runtime)
    job.check_processes(runtime.world_size, runtime.is_sharded)
    console = PlainConsole(quiet=runtime.rank != 0)
    if runtime.rank == 0 and not resumes:
        create_run(folder, config)
    what = f"{config.recipe}: {config.model.name} on {config.data.source} against {config.threats_text}"
    print_text(console, f"{what} -> {folder}{note}")
    if passes := several_words(config):
        print_text(console, passes)
    for line in empty_lines(config):
        print_text(console, line)
    lock = lock_run(folder) if runtime.rank == 0 else nullcontext()
    subject = Subject(folder, folder.resolve().name, run_key(folder, config.digest()), config.as_plain())
    tracking = writers(observers if runtime.rank == 0 else (), subject)
    with lock, observer_for(console) as shown, tracking as tracked:
        observer = Observers([shown, *tracked])
        if runtime.rank == 0:
            write_run_data(folder, rows)
            begun()
        runtime.wait_for_all()  # until the folder is there and locked
        try:
            outcome = train(job, runtime, folder, config_digest=config.digest(), observer=observer)
        except KeyboardInterrupt:
            print_text(console, f"\nstopped; continue with: {resumed_by} {quote(str(folder))}")
            raise
    runtime.close()
    collapse = collapse_line(outcome.collapsed, job.train.classes)
    weak = weak_epoch(outcome.rows[-1], guide_warm_up(job)) if len(outcome.rows) > 1 else ""
    print_text(
        console,
        (f"stopped early: {outcome.reason}\n" if outcome.reason else "")
        + f"finished {outcome.epochs} epochs in {outcome.seconds:.0f} s, best epoch {outcome.best_epoch}\n"
        + (
            f"! in the best epoch, {collapse}; a lower learning rate or a longer ramp may help\n"
            if collapse
            else ""
        )
        + (f"! in the last epoch, {weak}\n" if weak else "")
        + f"next: robustly evaluate {quote(str(folder))}{trust_option(config.model.name)}",
    )


def is_first_process() -> bool:
    """Return True in the first process of a node."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
