"""`robustly corruptions`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustly.api.progress import evaluation_progress
from robustly.cli.subject import Subject, keep_run, load_subject, run_of_command
from robustly.cli.terminal import PlainConsole
from robustly.data.corrupted_files import open_corrupted
from robustly.evaluation import EvaluationTarget
from robustly.evaluation.audit.corruptions import audit_corruptions
from robustly.evaluation.corrupted import (
    CorruptionSource,
    chosen_names,
    computed_source,
    corruption_identity,
    corruption_result,
    digit_source,
    file_source,
    predict_corrupted,
)
from robustly.evaluation.identity import differences
from robustly.evidence.corruption_predictions import read_predictions, write_predictions
from robustly.evidence.corruption_result import (
    CORRUPTIONS,
    CorruptionResult,
    CorruptionRow,
    MeanAccuracy,
    compared,
    read_corruptions,
    write_corruptions,
)
from robustly.experiments.run_folder import RunError

_BATCH = 250
SetOption = Literal["c_proc", "mnist_c"]
"""Sets of corruptions that are computed: those of CIFAR-10-C and ImageNet-C, or those of MNIST-C."""


@dataclass(frozen=True)
class CorruptionOptions:
    """Options of `robustly corruptions`.

    Args:
        images: number of test images, from the first; None for all that the run's settings name.
        only: names of corruptions; None for all 15.
        extra: whether the four further corruptions are evaluated too.
        reference: run with a result of its own, for mean corruption errors.
        source: folder of corrupted images; None to compute them.
        set: the set that is computed: "c_proc", or "mnist_c" for digits; None for the first, or for files.
    """

    images: int | None = None
    only: tuple[str, ...] | None = None
    extra: bool = False
    reference: Path | None = None
    source: Path | None = None
    set: SetOption | None = None


def run_corruptions(place: Path | None, options: CorruptionOptions, overrides: list[str], trust_code: bool) -> int:
    """Evaluate the model of a run under corruptions, and print and write the table; returns the exit code.

    Severities that an earlier call finished with the same model and images are kept.

    Args:
        place: the run, or a model that was trained elsewhere; see `given_run`.
        options: images and corruptions.
        overrides: settings.
        trust_code: whether models that only a file names may be imported.

    Raises:
        ValueError: wrong options, settings, weights or data.
        OSError: files that cannot be read or written.
    """
    if options.images is not None and options.images < 1:
        raise ValueError(f"--images must be at least 1, got {options.images}")
    if options.source is not None and options.set is not None:
        raise ValueError(f"--source reads files, and --set {options.set} computes images: leave out one of them")
    reference = None if options.reference is None else _reference(options.reference)
    run = run_of_command(place, _with_count(overrides, options.images))
    subject = load_subject(run, trust_code)
    target, source = _prepared(subject, options.source, digits=options.set == "mnist_c")
    names = chosen_names(source, options.only, options.extra, subject.data.shape)
    console = PlainConsole()
    keep_run(run)
    earlier = read_predictions(run.folder)
    identity = corruption_identity(target, source)
    if earlier is not None and earlier.identity != identity:
        differ = ", ".join(differences(identity, earlier.identity)) or "something"
        console.print(
            f"the earlier result of {run.folder} has another {differ}: it is replaced",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    with evaluation_progress(console) as progress:
        found = predict_corrupted(
            target,
            source,
            names,
            earlier=earlier,
            keep=lambda part: write_predictions(run.folder, part),
            progress=progress,
        )
    result = corruption_result(found, target, source, run.config.model.name)
    if reference is not None:
        result = replace(result, reference=compared(result, reference[1], reference[0]))
    write_corruptions(run.folder, result)
    _print(console, result, run.folder)
    return 0


def audit_run(place: Path | None, overrides: list[str], trust_code: bool, reference: Path | None = None) -> int:
    """Check the stored result of a run; returns 1 if a check fails, else 0.

    Args:
        place: the run.
        overrides: settings.
        reference: run whose errors those of the model were divided by; None leaves mCE unchecked.
        trust_code: whether models that only a file names may be imported.

    Raises:
        ValueError: there is no result, or it is damaged.
        OSError: files that cannot be read.
    """
    run = run_of_command(place, overrides)
    stated, found = _stated(run.folder), read_predictions(run.folder)
    if found is None:
        raise RunError(f"{run.folder} has no stored predictions: run robustly corruptions again")
    seed = [] if stated.images.seed is None else ["--seed", str(stated.images.seed)]
    run = run_of_command(place, _with_count([*overrides, *seed], stated.data.count))
    source = None if stated.images.source is None else Path(stated.images.source)
    digits = stated.images.set == "MNIST-C"
    target, images = _prepared(load_subject(run, trust_code), source, len(found.labels), digits=digits)
    console = PlainConsole()
    other = None if reference is None else _stated(reference)
    checks = audit_corruptions(stated, found, target, images, reference=other, name=run.config.model.name)
    for check in checks:
        mark = "[green]ok    [/]" if check.passed else "[red]FAILED[/]"
        mark = "[yellow]note  [/]" if check.note else mark
        tail = f": {check.problem or check.note}" if check.problem or check.note else ""
        console.print(f"{mark} {escape(check.name + tail)}", highlight=False, soft_wrap=True)
    console.print("stated, not checked: date of the evaluation", highlight=False)
    return 0 if all(check.passed for check in checks) else 1


def corruption_table(result: CorruptionResult, title: str) -> Table:
    """A table with one row per corruption: accuracy by severity and its mean, in per cent.

    A set with one severity has a single column, of accuracies.
    """
    every = result.images.severities
    severities = every if len(every) > 1 else ()
    table = Table(title=escape(title), title_justify="left")
    table.add_column("corruption")
    for column in (*map(str, severities), "mean" if severities else "accuracy"):
        table.add_column(column, justify="right")
    for number, row in enumerate(result.rows):
        last = number + 1 == len(result.rows) or result.rows[number + 1].family != row.family
        table.add_row(escape(row.title), *_cells(row, severities), _words(row.mean), end_section=last)
    return table


def _cells(row: CorruptionRow, severities: Sequence[int]) -> list[str]:
    shares = {cell.severity: f"{100 * cell.accuracy.share:.1f}" for cell in row.cells}
    return [shares.get(severity, "") for severity in severities]


def _words(mean: MeanAccuracy) -> str:
    return f"{100 * mean.accuracy:.1f} [{100 * mean.low:.1f}, {100 * mean.high:.1f}]"


def _print(console: Console, result: CorruptionResult, folder: Path) -> None:
    by = " by severity" if len(result.images.severities) > 1 else f", {result.images.set}"
    title = f"{folder.resolve().name}: accuracy in % on {result.data.count} images{by}"
    console.print(corruption_table(result, title))
    lines = [f"clean accuracy: {result.clean}"]
    if result.mean is not None:
        lines.append(f"mean corruption accuracy ({result.mean_words}): {_words(result.mean)} %")
    if result.worst is not None:
        lines.append(f"worst corruption: {result.worst.title}, {_words(result.worst.mean)} %")
    if result.reference is not None:
        mce, relative = (
            "not defined" if value is None else f"{100 * value:.1f} %"
            for value in (result.reference.mce, result.reference.relative_mce)
        )
        lines.append(f"mCE against {result.reference.name}: {mce}; relative mCE: {relative}")
    lines += [result.images.words, f"written: {folder / CORRUPTIONS}"]
    lines.append(f"next: robustly corruptions {quote(str(folder))} --audit")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _prepared(
    subject: Subject, folder: Path | None, count: int | None = None, *, digits: bool
) -> tuple[EvaluationTarget, CorruptionSource]:
    """The model with its clean images, and the corrupted images.

    Args:
        subject: model and images.
        folder: folder of corrupted images; None to compute them.
        count: number of images of the folder; None for that of the clean images.
        digits: whether the images are computed as in MNIST-C.
    """
    config, data = subject.run.config, subject.data
    target = EvaluationTarget(
        subject.model, data, config.threat, config.seed, config.evaluation.batch_size or _BATCH
    )
    if folder is None:
        return target, (digit_source if digits else computed_source)(data, config.seed)
    limit = count or (None if config.evaluation.count is None else len(data))
    return target, file_source(open_corrupted(folder, data, limit))


def _with_count(overrides: list[str], count: int | None) -> list[str]:
    return overrides if count is None else [*overrides, "--evaluation.count", str(count)]


def _stated(folder: Path) -> CorruptionResult:
    file = folder / CORRUPTIONS
    if not file.is_file():
        raise RunError(f"{folder} has no {CORRUPTIONS}: run robustly corruptions {folder} first")
    return read_corruptions(file)


def _reference(folder: Path) -> tuple[str, CorruptionResult]:
    return folder.resolve().name, _stated(folder)
