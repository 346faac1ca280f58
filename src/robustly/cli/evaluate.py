"""`robustly evaluate`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustly.api.progress import evaluation_progress
from robustly.cli.costs import add_costs, print_costs
from robustly.cli.evaluate_plan import PlannedEvaluation, planned_evaluations, refuse_unfit
from robustly.cli.proofs import print_certificates
from robustly.cli.subject import Subject, first_threat, keep_run, load_subject, removed_if_refused, run_of_command
from robustly.cli.terminal import PlainConsole
from robustly.cli.union_table import union_table
from robustly.cost_matrix import check_costs, read_costs
from robustly.evaluation import evaluate
from robustly.evaluation.announcement import announcement
from robustly.evaluation.costs import check_costs_fit
from robustly.evaluation.evaluate import check_fit
from robustly.evaluation.suites.composed import suite_from
from robustly.evaluation.suites.passes import autoattack_passes
from robustly.evaluation.suites.suite import Suite
from robustly.evidence import Evidence, Summary, read_evidence, read_summary, write_evidence
from robustly.evidence.collapse import collapse_words
from robustly.evidence.partial_unions import largest_union
from robustly.evidence.provenance import Seen
from robustly.evidence.schema import SUMMARY
from robustly.evidence.unions import Tested, read_rows
from robustly.experiments.configuration import RunConfig
from robustly.experiments.given_models import GivenRun
from robustly.experiments.locks import lock_evaluation, partial_of
from robustly.experiments.run_folder import (
    CERTIFIED,
    EVALUATION,
    Checkpoint,
    RunError,
    open_run,
)
from robustly.experiments.seen_attacks import seen_attacks
from robustly.experiments.surrogates import load_surrogates
from robustly.files import whole_folder
from robustly.statistics import Proportion


def run_evaluation(
    place: Path | None,
    overrides: list[str],
    trust_code: bool,
    overwrite: bool,
    label: str | None = None,
    keep: bool = False,
    extended: Callable[[Suite], Suite] | None = None,
    checkpoint: Checkpoint = "best",
    costs: str | None = None,
) -> int:
    """Evaluate a run under every threat of its settings, and print the tables; returns the exit code.

    With several threats each has a folder of its own, see `planned_evaluations`, and a last table has the union.

    Args:
        place: the run, or a model that was trained elsewhere; see `given_run`.
        overrides: settings.
        trust_code: whether models that only a file names may be imported.
        overwrite: whether an earlier evaluation may be replaced.
        label: name of this evaluation if a run has several; None for "last" with the last checkpoint, else none.
        keep: whether to return without an error if there is an earlier evaluation.
        extended: adds certificates to the suite; None for the suite as it is.
        checkpoint: the weights: those that the run selected, or those after its last epoch.
        costs: costs of confusions, which are evaluated too; see `robustly.cost_matrix.read_costs`.

    Raises:
        ValueError: wrong settings, weights or data.
        OSError: files that cannot be read or written.
    """
    if costs is not None:
        check_costs(costs)
    run = run_of_command(place, overrides)
    if extended is not None or costs is not None:
        run = replace(run, config=first_threat(run, "certify" if costs is None else "evaluate --costs"))
    label = "last" if label is None and checkpoint == "last" else label
    plans = planned_evaluations(run, label)
    if run.is_new and checkpoint == "last":
        raise RunError(
            f"--checkpoint last is for runs that were trained here, and {run.folder} is new: leave it out"
        )
    with ExitStack() as held:
        if not run.is_new:
            for plan in plans:
                held.enter_context(lock_evaluation(plan.target))
        left = [plan for plan in plans if not _is_kept(plan, overwrite, keep, checkpoint)]
        found = {plan.target.name: read_rows(plan.target) for plan in plans if plan not in left and len(plans) > 1}
        if left:
            found |= _carried_out(run, left, extended, trust_code, checkpoint, held, costs)
        elif costs is not None:
            target = plans[0].target
            subject = load_subject(run, trust_code, checkpoint=checkpoint)
            matrix = read_costs(costs, subject.data.num_classes)
            counted = add_costs(subject, read_evidence(target), matrix, target)
            print_costs(PlainConsole(), read_summary(target), counted)
    if len(plans) > 1:
        _print_union(run, {plan.target.name: found[plan.target.name] for plan in _as_given(plans, run.config)})
    return 0


def _as_given(plans: Sequence[PlannedEvaluation], config: RunConfig) -> list[PlannedEvaluation]:
    """Evaluations in the order of the settings."""
    return sorted(plans, key=lambda plan: config.threats.index(plan.config.threat))


def _is_kept(plan: PlannedEvaluation, overwrite: bool, keep: bool, checkpoint: Checkpoint) -> bool:
    """True if an earlier evaluation takes the place of this one.

    Raises:
        RunError: it is of another threat or other weights, or there is one and neither option is given.
    """
    target = plan.target
    if keep and (target / SUMMARY).is_file():
        kept = read_summary(target)
        refuse_unfit(plan, kept.threat.text, kept.model.is_last_epoch, checkpoint)
        PlainConsole().print(f"{target} exists already and is kept", soft_wrap=True, markup=False, highlight=False)
        return True
    if target.exists() and not (overwrite or keep):
        raise RunError(f"{target} exists already: --overwrite replaces it, --keep leaves it as it is")
    return False


def _carried_out(
    run: GivenRun,
    plans: Sequence[PlannedEvaluation],
    extended: Callable[[Suite], Suite] | None,
    trust_code: bool,
    checkpoint: Checkpoint,
    held: ExitStack,
    costs: str | None,
) -> dict[str, Tested]:
    """Carry out evaluations and print their tables; returns their rows and summaries, by folder."""
    subject = load_subject(run, trust_code, checkpoint=checkpoint)
    matrix = None if costs is None else read_costs(costs, subject.data.num_classes)
    suites = [_suite_of(plan.config, extended) for plan in plans]
    for plan, suite in zip(plans, suites, strict=True):  # the last must not be refused after the first has run
        check_fit(subject.data, plan.config.threat, suite)
        if matrix is not None:
            check_costs_fit(subject.data, plan.config.threat, matrix)
    keep_run(run)
    trained = run.config if run.is_new else open_run(run.folder)
    found: dict[str, Tested] = {}
    for plan, given in zip(plans, suites, strict=True):
        config = plan.config
        with ExitStack() as unless_refused:
            if not found:  # later, the folder holds finished evaluations
                unless_refused.enter_context(removed_if_refused(run))
            if run.is_new:
                held.enter_context(lock_evaluation(plan.target))
            suite = load_surrogates(given, config, subject.data, subject.trusts, subject.device)
            marks = seen_attacks(run.folder, trained, config.threat.kind, suite, last_epoch=checkpoint == "last")
            console = PlainConsole()
            try:
                evidence = _evaluated(
                    config, suite, subject, plan.target, partial(_named, subject=subject, marks=marks)
                )
            except KeyboardInterrupt:
                others = ", with --keep for those that are finished," if len(plans) > 1 else ""
                console.print(
                    f"\nstopped; the same command{others} continues after the finished attacks and proofs",
                    highlight=False,
                )
                raise
            counted = None if matrix is None else add_costs(subject, evidence, matrix, plan.target)
        collapse = collapse_words(evidence.table.examples, subject.data.classes)
        _print(console, evidence.summary, run.folder, plan.target, collapse)
        if counted is not None:
            print_costs(console, evidence.summary, counted)
        found[plan.target.name] = Tested(evidence.table, evidence.summary)
    return found


def _suite_of(config: RunConfig, extended: Callable[[Suite], Suite] | None) -> Suite:
    """The suite of the settings of an evaluation, with the certificates of a command."""
    suite = suite_from(config.evaluation.suite, config.evaluation.stages, config.threat.kind)
    return suite if extended is None else extended(suite)


def _print_union(run: GivenRun, found: Mapping[str, Tested]) -> None:
    """Print the table of all threats, and the evaluations that are left out of it."""
    console = PlainConsole()
    union, left_out = largest_union(found)
    if union is not None:
        console.print(union_table(run.folder.resolve().name, union))
    for one in left_out:
        console.print(f"! {one.evaluation} is left out: {one.reason}", markup=False, soft_wrap=True)


def _evaluated(
    config: RunConfig,
    suite: Suite,
    subject: Subject,
    target: Path,
    named: Callable[[Summary], Summary],
) -> Evidence:
    """Attack the model, and replace the folder of the evaluation by the new evidence, which is returned."""
    settings = config.evaluation
    unfinished = partial_of(target)
    about = announcement(subject.model, subject.data, config.threat, suite)
    PlainConsole().print(about, highlight=False, soft_wrap=True)
    with evaluation_progress(PlainConsole()) as progress:
        evidence = evaluate(
            subject.model,
            subject.data,
            config.threat,
            suite,
            mode=settings.mode,
            seed=config.seed,
            batch_size=settings.batch_size,
            curve_count=settings.curve_count,
            curve=settings.curve,
            checkpoint=unfinished,
            progress=progress,
        )
    evidence = replace(evidence, summary=named(evidence.summary))
    with whole_folder(target, spent=unfinished) as staging:
        write_evidence(evidence, staging)
    return evidence


def _print(console: Console, summary: Summary, folder: Path, target: Path, collapse: str) -> None:
    """Print the table, the passes, warnings about the result, and the next command."""
    console.print(summary_table(summary))
    if summary.metrics.attacks:
        console.print(_spent(summary), highlight=False, soft_wrap=True)
    if summary.overhead_words:
        console.print(summary.overhead_words, highlight=False, soft_wrap=True)
    console.print(f"attacks seen before: {escape(summary.seen_words)}", highlight=False, soft_wrap=True)
    mark = "[red]![/] " if summary.data.seen else ""
    console.print(f"{mark}images seen before: {escape(summary.data.seen_words)}", highlight=False, soft_wrap=True)
    print_certificates(console, summary)
    for sentence in [*([collapse] if collapse else []), *summary.masking, *summary.failures.values()]:
        console.print(f"[red]![/] {escape(sentence)}", highlight=False, soft_wrap=True)
    label = target.name.removeprefix(EVALUATION).removeprefix("_")
    named = "" if label in ("", CERTIFIED) else f" --as {label}"
    console.print(
        f"evidence: {target}\nnext: robustly report {quote(str(folder))}{named}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _named(found: Summary, subject: Subject, marks: Mapping[str, Seen] | None) -> Summary:
    """The summary with the names of run and model, settings that load the same data again, and what was seen."""
    config = replace(subject.run.config, data=subject.source)
    return replace(
        found,
        run=subject.run.folder.resolve().name,
        model=replace(found.model, name=config.model.name, checkpoint=subject.checkpoint),
        data=replace(
            found.data,
            source=config.data.source,
            split="test",
            settings=config.as_plain()["data"],
            trained_on=subject.seen.trained_on,
            selected_on=subject.seen.selected_on,
        ),
        composed=config.evaluation.stages,
        seen_attacks=marks,
    )


def _spent(summary: Summary) -> str:
    """Total passes of the attacks, and those of AutoAttack's protocol for the unbroken images."""
    spent = sum(
        (numbers.mean_forwards + numbers.mean_backwards) * numbers.tried
        for numbers in summary.metrics.attacks.values()
    )
    in_files = sum(one.mean_passes_8bit * one.tried for one in summary.metrics.attacks.values())
    text = f"{spent:,.0f} passes through the model, {in_files:,.0f} more for images of 8 bits"
    unbroken = summary.metrics.worst_case.robust.hits
    if summary.threat.norm in ("linf", "l2") and unbroken and spent:
        theirs = unbroken * autoattack_passes(len(summary.data.classes))
        times = f"{theirs / spent:.1f} times as many"
        text += f"; AutoAttack takes {theirs:,} for the {unbroken} unbroken images, {times}"
    return text


def summary_table(summary: Summary) -> Table:
    """A table of clean accuracy, every attack and the worst case, with intervals."""
    metrics = summary.metrics
    epoch = " (last epoch)" if summary.model.is_last_epoch else ""
    title = f"{summary.run}{epoch}: {metrics.clean.count} images, {summary.threat.text}"
    table = Table(title=escape(title), title_justify="left")
    marked = bool(summary.seen_attacks)
    table.add_column("attack")
    if marked:
        table.add_column("seen in")
    table.add_column("accuracy", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("as 8-bit files", justify="right")
    table.add_column("passes per image", justify="right")
    blank = ("",) if marked else ()
    table.add_row("clean", *blank, *_share(metrics.clean), "", "")
    for outcome in summary.outcomes:
        if outcome.state:
            table.add_row(escape(outcome.attack.title), *blank, outcome.state, "", "", "")
            continue
        numbers = outcome.numbers
        passes = numbers.mean_forwards + numbers.mean_backwards
        rounded = f"{100 * numbers.robust_8bit.share:.1f} %"
        seen = (outcome.seen or "",) if marked else ()
        table.add_row(escape(outcome.attack.title), *seen, *_share(numbers.robust), rounded, f"{passes:.0f}")
    worst = metrics.worst_case
    name = "upper bound; masking suspected" if summary.masking else "worst case"
    table.add_row(name, *blank, *_share(worst.robust), f"{100 * worst.robust_8bit.share:.1f} %", "", style="bold")
    if metrics.proved is not None:
        table.add_row("certified", *blank, *_share(metrics.proved), "", "")
    return table


def _share(part: Proportion) -> tuple[str, str]:
    return f"{100 * part.share:.1f} %", f"[{100 * part.low:.1f}, {100 * part.high:.1f}]"
