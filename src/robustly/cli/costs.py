"""The costs of confusions in `robustly evaluate --costs`."""

from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustly.api.progress import evaluation_progress
from robustly.cli.evaluate_plan import PlannedEvaluation
from robustly.cli.evaluate_together import Request, Sharing, suite_of
from robustly.cli.subject import Subject
from robustly.cli.terminal import PlainConsole
from robustly.cost_matrix import CostMatrix
from robustly.evaluation import EvaluationTarget
from robustly.evaluation.checkpoint import Speed
from robustly.evaluation.costs import TARGETED_ATTACK, as_evaluated, check_target, evaluate_costs
from robustly.evaluation.crew import Leads
from robustly.evaluation.door import as_evaluated as as_evaluated_by_suite
from robustly.evaluation.identity import evaluation_identity
from robustly.evaluation.parts import ALONE, Crew
from robustly.evidence import Evidence, Summary
from robustly.evidence.costs import CostSummary, write_costs
from robustly.evidence.schema import SUMMARY
from robustly.experiments.locks import partial_of
from robustly.files import file_sha256


def add_costs(
    subject: Subject, evidence: Evidence, costs: CostMatrix, folder: Path, crew: Crew = ALONE
) -> CostSummary:
    """Evaluate the costs of confusions, write them beside an evaluation, and return their summary.

    Args:
        subject: model and images of the evaluation.
        evidence: the evaluation.
        costs: the cost matrix.
        folder: folder of the evaluation.
        crew: the processes that share the batches.

    Raises:
        ValueError: model, images, threat or costs do not fit the evaluation.
        OSError: the folder cannot be written.
    """
    config = subject.run.config
    target = as_evaluated(EvaluationTarget(subject.model, subject.data, config.threat, crew=crew), evidence)
    check_target(target, evidence, costs, TARGETED_ATTACK)
    with evaluation_progress(PlainConsole()) as progress:
        found = evaluate_costs(target, evidence, costs, evaluation=file_sha256(folder / SUMMARY), progress=progress)
    write_costs(found, folder)
    with suppress(OSError):  # has other files, or was never made
        partial_of(folder).rmdir()
    return found.summary


def leader_of_costs(
    sharing: Sharing, plan: PlannedEvaluation, subject: Subject, request: Request, batch_size: int
) -> Leads | None:
    """The leader of the costs of an evaluation that exists; None for a single process.

    Args:
        sharing: the processes.
        plan: the evaluation.
        subject: its model and images.
        request: arguments of the command.
        batch_size: images per batch of the evaluation.
    """
    leader = sharing.leaders([plan], subject).get(plan.target)
    if leader is None:
        return None
    settings, threat = plan.config.evaluation, plan.config.threat
    suite = suite_of(plan, subject, request.extended)
    model, threat, suite = as_evaluated_by_suite(subject.model, subject.data, threat, suite, settings.curve)
    identity = evaluation_identity(
        model,
        subject.data,
        threat,
        suite,
        mode=settings.mode,
        seed=plan.config.seed,
        batch_size=settings.batch_size,
        curve_count=settings.curve_count,
    )
    leader.begin(identity, Speed(batch_size, half_pays=True))
    return leader


def print_costs(console: Console, summary: Summary, costs: CostSummary) -> None:
    """Print the numbers of the costs and the costliest confusions."""
    numbers, classes = costs.numbers, summary.data.classes
    named = f"costs {costs.text}: {numbers.robust.count} images of classes with costs, {numbers.passes:,} passes"
    table = Table(title=escape(named), title_justify="left")
    for column in ("", "without attack", "under attack", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    low, high = numbers.robust.interval
    table.add_row(
        "cost-sensitive robust accuracy",
        f"{100 * numbers.clean.share:.1f} %",
        f"{100 * numbers.robust.share:.1f} %",
        f"[{100 * low:.1f}, {100 * high:.1f}]",
    )
    files = numbers.eight_bit
    if files is not None:
        low, high = files.robust.interval
        share = f"{100 * files.robust.share:.1f} %"
        table.add_row("the same as 8-bit files", "", share, f"[{100 * low:.1f}, {100 * high:.1f}]")
    low, high = numbers.worst.interval
    table.add_row(
        "expected worst cost",
        f"{numbers.clean_cost.mean:.4g}",
        f"{numbers.worst.mean:.4g}",
        f"[{low:.4g}, {high:.4g}]",
    )
    if files is not None:
        low, high = files.worst.interval
        table.add_row("the same as 8-bit files", "", f"{files.worst.mean:.4g}", f"[{low:.4g}, {high:.4g}]")
    console.print(table)
    for one in numbers.confusions[:3]:
        pair = f"{classes[one.label]} as {classes[one.predicted]}"
        console.print(
            f"{escape(pair)}: {one.count} image{'' if one.count == 1 else 's'} at {one.cost:g} each",
            highlight=False,
            soft_wrap=True,
        )
