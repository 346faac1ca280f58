"""`robustly finetune`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustly.api.progress import evaluation_progress
from robustly.cli.arguments import is_model_name, trust_in, trust_option
from robustly.cli.recipes import read_recipe, recipe_names
from robustly.cli.terminal import PlainConsole
from robustly.cli.train import is_first_process, train_run
from robustly.data import ImageData, load_test
from robustly.experiments.configuration import RunConfig, build_config, with_absolute_paths
from robustly.experiments.finetune import (
    SUITE,
    FinetunePlan,
    Measured,
    compared_threats,
    finetuning_settings,
    is_of_a_run,
    measure,
    method_named,
    read_record,
    test_images,
    write_record,
)
from robustly.experiments.overrides import apply_overrides, pairs_of
from robustly.experiments.run_folder import Trusts, is_begun, load_on_device
from robustly.experiments.training_threats import check_training_threats
from robustly.statistics import Proportion
from robustly.threats import Threat


def run_finetune(options: argparse.Namespace, overrides: list[str]) -> int:
    """Fine-tune, and print accuracies before and after; returns the exit code.

    Raises:
        ValueError: wrong settings, data, weights or models.
        OSError: files that cannot be read or written.
    """
    config, rest = _config_of(options, overrides)
    trusts = trust_in(rest, options.trust_code).allows
    out: Path = options.out
    continued = is_first_process() and not options.dry_run and is_begun(out, config)
    if options.dry_run:
        return train_run(config, out, resumes=False, trusts=trusts, dry_run=True)
    source, measured = str(options.source), dict[str, Measured]()
    images = test_images(load_test(config.data), options.count)
    threats = compared_threats(config, options.source)
    if is_first_process():
        measured = read_record(out, threats, len(images)) if continued else {}
        if "before" not in measured:
            measured = {"before": _measured(config, out / "none", images, threats, trusts)}
    train_run(
        config,
        out,
        resumes=continued,
        trusts=trusts,
        note=" (continued)" if continued else "",
        begun=lambda: write_record(out, source, measured),
        resumed_by="repeat this command, or robustly train --resume",
    )
    if not is_first_process():
        return 0
    if "after" not in measured:
        measured["after"] = _measured(config, out, images, threats, trusts)
        write_record(out, source, measured)
    _show(PlainConsole(), measured, out, trust_option(config.model.name))
    return 0


def _config_of(options: argparse.Namespace, overrides: list[str]) -> tuple[RunConfig, list[str]]:
    """Settings of the run, and the overrides without those that are options of this command."""
    pairs = pairs_of(overrides)
    named = dict(pairs)
    rest = [word for key, value in pairs if key != "method" for word in (f"--{key}", value)]
    if not is_of_a_run(options.source) and not any(is_model_name(word) for word in rest):
        raise ValueError(
            f"name the network of {options.source} with --model.name: resnet18, ... or package.module:factory"
        )
    name = named.get("method", "trades")
    plan = FinetunePlan(
        source=options.source,
        data=named.get("data.source"),
        epochs=options.epochs,
        mode=options.mode,
        head_epochs=options.head_epochs,
        head=options.head,
        layer_decay=options.layer_decay,
    )
    method = method_named(name, read_recipe(name) if name in recipe_names() else None)
    settings = apply_overrides(finetuning_settings(plan, method), rest)
    config = with_absolute_paths(build_config(settings))
    check_training_threats(config)  # now: the accuracies before the training take long
    return config, rest


def _measured(
    config: RunConfig, folder: Path, data: ImageData, threats: Mapping[str, Threat], trusts: Trusts
) -> Measured:
    """Accuracies of the weights that a folder holds; of those that the run starts from if there is no folder."""
    loaded = load_on_device(folder, config, data, trusts)
    console = PlainConsole()
    console.print(f"suite {SUITE} on {len(data)} test images", highlight=False, soft_wrap=True)
    with evaluation_progress(console) as progress:
        return measure(loaded.model, loaded.data, threats, seed=config.seed, progress=progress)


def _show(console: Console, measured: Mapping[str, Measured], out: Path, option: str) -> None:
    before, after = measured["before"], measured["after"]
    table = Table(title=f"{before.clean.count} test images, suite {SUITE}", title_justify="left")
    for column in ("accuracy", "before", "after", "change"):
        table.add_column(column, justify="left" if column == "accuracy" else "right")
    for name, one, other in [
        ("clean", before.clean, after.clean),
        *((f"under {text}", before.robust[text], share) for text, share in after.robust.items()),
        *([("under all of them", before.union, after.union)] if before.union and after.union else []),
    ]:
        table.add_row(escape(name), str(one), str(other), f"{100 * _change(one, other):+.1f} points")
    console.print(table)
    console.print(
        f"in brackets: 95 % intervals\nnumbers: {out / 'finetune.json'}\n"
        f"next: robustly evaluate {quote(str(out))}{option}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def _change(before: Proportion, after: Proportion) -> float:
    return after.share - before.share
