"""`robustly evaluate`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as LiveBar
from rich.table import Table
from torch import nn

from robustly.cli.arguments import check_evaluation_overrides, is_model_name, trust_in
from robustly.data import ImageData, load_test
from robustly.evaluation import Partial, evaluate, write_evidence
from robustly.evaluation.suites.composed import suite_from
from robustly.evaluation.suites.passes import autoattack_passes
from robustly.evaluation.suites.suite import Suite, settings
from robustly.evaluation.target import Progress
from robustly.experiments.configuration import RunConfig, build_config, with_absolute_paths
from robustly.experiments.overrides import apply_overrides
from robustly.experiments.run_folder import (
    RunError,
    create_run,
    evaluation_data,
    evaluation_folder,
    load_trained,
    open_run,
)
from robustly.models import weights_hash
from robustly.randomness import derive_seed
from robustly.runtime import Runtime


def run_evaluation(
    folder: Path,
    overrides: list[str],
    trust_code: bool,
    overwrite: bool,
    label: str | None = None,
    keep: bool = False,
) -> int:
    """Evaluate a run and print its table; returns the exit code.

    Args:
        folder: the run.
        overrides: settings.
        trust_code: whether code that a file names may be imported.
        overwrite: whether an earlier evaluation may be replaced.
        label: where several evaluations of a run stand side by side, the name of this one.
        keep: whether an earlier evaluation stays, without an error.

    Raises:
        ValueError: anything that the user has to change.
        OSError: files that cannot be read or written.
    """
    trust = trust_in(overrides, trust_code)
    is_new = not folder.exists() and any(is_model_name(word) for word in overrides)
    if is_new:
        config = with_absolute_paths(build_config(apply_overrides({"recipe": "evaluation only"}, overrides)))
    else:
        stored = open_run(folder)
        check_evaluation_overrides(overrides, stored.model_names)
        config = build_config(apply_overrides(stored.as_plain(), overrides))
    target = evaluation_folder(folder, label)
    if keep and (target / "summary.json").is_file():
        Console().print(f"{target} exists already and stays", soft_wrap=True, markup=False, highlight=False)
        return 0
    if target.exists() and not (overwrite or keep):
        raise RunError(f"{target} exists already: --overwrite replaces it, --keep leaves it as it is")
    source = evaluation_data(config)
    data = load_test(source)
    model, checkpoint = load_trained(folder, config, data, trust.allows)
    device = Runtime(replace(config.runtime, processes=1, nodes=1)).device
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    suite = suite_from(config.evaluation.suite, config.evaluation.stages, config.threat.norm)
    partial = Partial(target.with_name(f"{target.name}.partial"), _identity(config, suite, model, data))
    if is_new:
        create_run(folder, config)
    console = Console()
    with _progress_bar(console) as progress:
        evidence = evaluate(
            model,
            data.to(device),
            config.threat,
            suite,
            mode=config.evaluation.mode,
            seed=config.seed,
            batch_size=config.evaluation.batch_size,
            curve_count=config.evaluation.curve_count,
            partial=partial,
            progress=progress,
        )
    if config.evaluation.stages is not None:
        evidence.summary["composed"] = config.evaluation.stages
    evidence.summary["run"] = folder.resolve().name
    evidence.summary["model"] |= {"name": config.model.name, "checkpoint": checkpoint}
    evidence.summary["data"] |= {"source": config.data.source, "split": "test"}
    evidence.summary["data"]["settings"] = replace(config, data=source).as_plain()["data"]
    write_evidence(evidence, target)
    partial.remove()
    console.print(summary_table(evidence.summary))
    console.print(_spent(evidence.summary), highlight=False, soft_wrap=True)
    for sentence in [*evidence.summary["masking"], *evidence.summary["failures"].values()]:
        console.print(f"[red]![/] {escape(sentence)}", highlight=False, soft_wrap=True)
    console.print(
        f"evidence: {target}\nnext: robustly report {quote(str(folder))}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    return 0


def _identity(config: RunConfig, suite: Suite, model: nn.Module, data: ImageData) -> str:
    """What the parts of an interrupted evaluation must have in common with this one."""
    parts = [settings(attack) for attack in suite.attacks.values()]
    plans = [suite.plan(name) for name in suite.attacks]
    known = (weights_hash(model), data.digest(), str(config.threat), config.evaluation.mode, config.seed)
    return f"{derive_seed(*map(str, known), suite.name, repr(parts), repr(plans)):016x}"


def _spent(summary: dict[str, Any]) -> str:
    """All passes of the attacks, beside what AutoAttack's protocol takes for the images that stood."""
    spent = sum(
        (entry["mean_forwards"] + entry["mean_backwards"]) * entry["tried"] for entry in summary["attacks"].values()
    )
    told = f"{spent:,.0f} passes through the model"
    stood = summary["worst_case"]["robust"]
    if summary["threat"]["norm"] in ("linf", "l2") and stood and spent:
        theirs = stood * autoattack_passes(len(summary["data"]["classes"]))
        told += (
            f"; AutoAttack spends {theirs:,} on the {stood} images that stood, {theirs / spent:.1f} times as many"
        )
    return told


def summary_table(summary: dict[str, Any]) -> Table:
    """Clean, every attack and the worst case, with their intervals."""
    threat, count = summary["threat"]["text"], summary["clean"]["count"]
    table = Table(title=escape(f"{summary['run']}: {count} images, {threat}"), title_justify="left")
    table.add_column("attack")
    table.add_column("accuracy", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("after 8-bit rounding", justify="right")
    table.add_column("passes per image", justify="right")
    table.add_row("clean", *_numbers(summary["clean"]), "", "")
    for attack in summary["suite"]["attacks"]:
        numbers = summary["attacks"][attack["name"]]
        if attack["name"] in summary["failures"]:
            table.add_row(escape(attack["title"]), "failed", "", "", "")
            continue
        if attack["plan"]["on_suspicion"] and numbers["tried"] == 0:
            table.add_row(escape(attack["title"]), "not needed", "", "", "")
            continue
        passes = numbers["mean_forwards"] + numbers["mean_backwards"]
        table.add_row(
            escape(attack["title"]), *_numbers(numbers), f"{100 * numbers['accuracy_8bit']:.1f} %", f"{passes:.0f}"
        )
    worst = summary["worst_case"]
    title = "upper bound; masking suspected" if summary["masking"] else "worst case"
    table.add_row(title, *_numbers(worst), f"{100 * worst['accuracy_8bit']:.1f} %", "", style="bold")
    if summary["certified"] is not None:
        table.add_row("certified", *_numbers(summary["certified"]), "", "")
    return table


def _numbers(entry: dict[str, Any]) -> tuple[str, str]:
    low, high = entry["interval"]
    return f"{100 * entry['accuracy']:.1f} %", f"[{100 * low:.1f}, {100 * high:.1f}]"


@contextmanager
def _progress_bar(console: Console) -> Iterator[Progress]:
    """A live bar on a terminal, silence elsewhere."""
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with LiveBar(*columns, console=console) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield progress
