"""`robustly evaluate`."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from robustly.api.progress import evaluation_progress
from robustly.cli.costs import add_costs, leader_of_costs, print_costs
from robustly.cli.domain_tables import report_domains
from robustly.cli.evaluate_plan import PlannedEvaluation, planned_evaluations, refuse_unfit
from robustly.cli.evaluate_tables import print_evaluation
from robustly.cli.evaluate_together import (
    Request,
    Sharing,
    Together,
    refuse_bounds,
    serve_evaluations,
    suite_before_loading,
)
from robustly.cli.evaluate_writing import named_summary, print_union, written
from robustly.cli.on_ray import OnRay, check_on
from robustly.cli.subject import Subject, first_threat, keep_run, load_subject, removed_if_refused, run_of_command
from robustly.cli.terminal import PlainConsole
from robustly.cli.together import place_of_this_process
from robustly.cost_matrix import check_costs, read_costs
from robustly.evaluation import evaluate
from robustly.evaluation.announcement import announcement
from robustly.evaluation.costs import check_costs_fit
from robustly.evaluation.crew import Leads
from robustly.evaluation.door import check_fit
from robustly.evaluation.parts import ALONE
from robustly.evaluation.suites.suite import Suite
from robustly.evidence import Evidence, Summary, read_evidence, read_summary
from robustly.evidence.collapse import collapse_words
from robustly.evidence.schema import SUMMARY
from robustly.evidence.unions import Tested, read_rows
from robustly.experiments.configuration import RunConfig
from robustly.experiments.given_models import GivenRun
from robustly.experiments.locks import lock_evaluation, partial_of
from robustly.experiments.run_folder import (
    Checkpoint,
    RunError,
    open_run,
)
from robustly.experiments.seen_attacks import seen_attacks
from robustly.experiments.surrogates import load_surrogates
from robustly.performance import kept, key_of


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
    on: str | None = None,
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
        on: Ray cluster that shares the work, see `check_on`; None for the processes of the settings.

    Raises:
        ValueError: wrong settings, weights or data.
        OSError: files that cannot be read or written.
    """
    if costs is not None:
        check_costs(costs)
    if on is not None:
        check_on(on, overrides)
    run = run_of_command(place, overrides, takes_shards=True)
    if extended is not None or costs is not None:
        run = replace(run, config=first_threat(run, "certify" if costs is None else "evaluate --costs"))
    label = "last" if label is None and checkpoint == "last" else label
    request = Request(place, tuple(overrides), trust_code, label, checkpoint, extended)
    spot = place_of_this_process()
    if spot is not None and spot.rank:
        serve_evaluations(spot, request)
        return 0
    with ExitStack() as held:
        sharing: Sharing = Together(spot, run.config.runtime, request) if on is None else OnRay(on, request)
        held.callback(sharing.close)  # also if this process refuses: the others of a cluster wait for it
        plans = planned_evaluations(run, label)
        if run.is_new and checkpoint == "last":
            raise RunError(
                f"--checkpoint last is for runs that were trained here, and {run.folder} is new: leave it out"
            )
        if not run.is_new:
            for plan in plans:
                held.enter_context(lock_evaluation(plan.target))
        left = [plan for plan in plans if not is_kept(plan, overwrite, keep, checkpoint)]
        found = {plan.target.name: read_rows(plan.target) for plan in plans if plan not in left and len(plans) > 1}
        if left:
            for part in dict.fromkeys(plan.part for plan in left):
                some = [plan for plan in left if plan.part == part]
                is_first = some[0] is left[0]
                found |= carried_out(run, some, request, held, costs, sharing, is_first=is_first)
        if costs is not None and not left:
            _costs_of_kept(run, plans[-1], request, costs, sharing)
    of_target = as_given([plan for plan in plans if plan.part == "target"], run.config)
    if len(of_target) > 1:
        print_union(run, {plan.target.name: found[plan.target.name] for plan in of_target})
    if run.config.data.domains is not None:
        report_domains(run.folder, [plan.target for plan in of_target])
    return 0


def _costs_of_kept(run: GivenRun, plan: PlannedEvaluation, request: Request, costs: str, sharing: Sharing) -> None:
    """Measure the costs of confusions of an evaluation that is there already."""
    subject = sharing.divided(load_subject(run, request.trust_code, checkpoint=request.checkpoint))
    matrix, summary = read_costs(costs, subject.data.num_classes), read_summary(plan.target)
    leader = leader_of_costs(sharing, plan, subject, request, summary.suite.batch_size)
    counted = add_costs(subject, read_evidence(plan.target), matrix, plan.target, leader or ALONE)
    if leader is not None:
        leader.end()
    print_costs(PlainConsole(), summary, counted)


def as_given(plans: Sequence[PlannedEvaluation], config: RunConfig) -> list[PlannedEvaluation]:
    """Evaluations in the order of the settings."""
    return sorted(plans, key=lambda plan: config.threats.index(plan.config.threat))


def is_kept(plan: PlannedEvaluation, overwrite: bool, keep: bool, checkpoint: Checkpoint) -> bool:
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


def carried_out(
    run: GivenRun,
    plans: Sequence[PlannedEvaluation],
    request: Request,
    held: ExitStack,
    costs: str | None,
    sharing: Sharing,
    subject: Subject | None = None,
    advice: str = ", with --keep for those that are finished,",
    is_first: bool = True,
) -> dict[str, Tested]:
    """Carry out evaluations on the same images and print their tables; returns rows and summaries, by folder.

    Args:
        run: the run.
        plans: the evaluations.
        request: arguments of the command.
        held: keeps the locks of the evaluations of a new run.
        costs: costs of confusions; None without them.
        sharing: the processes that share the work.
        subject: model and images, if they are loaded already.
        advice: words on the finished ones of several evaluations, for a user who stops the work.
        is_first: whether these are the first evaluations of the command.
    """
    checkpoint = request.checkpoint
    subject = subject or load_subject(run, request.trust_code, checkpoint=checkpoint, part=plans[0].part)
    matrix = None if costs is None else read_costs(costs, subject.data.num_classes)
    suites = [suite_before_loading(plan.config, request.extended) for plan in plans]
    for plan, suite in zip(plans, suites, strict=True):  # the last must not be refused after the first has run
        check_fit(subject.data, plan.config.threat, suite)
        if matrix is not None:
            check_costs_fit(subject.data, plan.config.threat, matrix)
    if run.config.runtime.strategy == "fsdp":
        refuse_bounds(suites)
    subject = sharing.divided(subject)
    if is_first:
        keep_run(run)
    trained = run.config if run.is_new else open_run(run.folder)
    found: dict[str, Tested] = {}
    leaders = sharing.leaders(plans, subject)
    for plan, given in zip(plans, suites, strict=True):
        config = plan.config
        with ExitStack() as unless_refused:
            if is_first and not found:  # later, the folder holds finished evaluations
                unless_refused.enter_context(removed_if_refused(run))
            if run.is_new:
                held.enter_context(lock_evaluation(plan.target))
            leader = leaders.get(plan.target)
            suite = load_surrogates(given, config, subject.data, subject.trusts, subject.device)
            marks = seen_attacks(run.folder, trained, config.threat.kind, suite, last_epoch=checkpoint == "last")
            console = PlainConsole()
            try:
                evidence = _evaluated(
                    config,
                    suite,
                    subject,
                    plan.target,
                    partial(named_summary, subject=subject, marks=marks, stages=config.evaluation.stages),
                    leader,
                )
            except KeyboardInterrupt:
                others = advice if len(plans) > 1 else ""
                console.print(
                    f"\nstopped; the same command{others} continues after the finished attacks and proofs",
                    highlight=False,
                )
                raise
            counted = None
            if matrix is not None:
                counted = add_costs(subject, evidence, matrix, plan.target, leader or ALONE)
            if leader is not None:
                leader.end()  # the others go on to the next evaluation
        collapse = collapse_words(evidence.table.examples, subject.data.classes)
        print_evaluation(console, evidence.summary, run.folder, plan.target, collapse)
        if counted is not None:
            print_costs(console, evidence.summary, counted)
        found[plan.target.name] = Tested(evidence.table, evidence.summary)
    return found


def _evaluated(
    config: RunConfig,
    suite: Suite,
    subject: Subject,
    target: Path,
    named: Callable[[Summary], Summary],
    leader: Leads | None,
) -> Evidence:
    """Attack the model, and replace the folder of the evaluation by the new evidence, which is returned."""
    settings = config.evaluation
    known = None
    if settings.batch_size is None:
        known = kept(key_of(subject.model, subject.data.shape, subject.device))
    unfinished = partial_of(target)
    about = announcement(subject.model, subject.data, config.threat, suite)
    if known is not None:
        about += f"\nbatches of {known.batch_size} images, as measured by robustly bench on this machine"
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
            leader=leader,
            known_size=None if known is None else known.batch_size,
            compiled=config.runtime.compile,
        )
    return written(replace(evidence, summary=named(evidence.summary)), target)
