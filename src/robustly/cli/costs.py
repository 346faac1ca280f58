"""The costs of confusions in `robustly evaluate --costs`."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustly.api.progress import evaluation_progress
from robustly.cli.subject import Subject
from robustly.cli.terminal import PlainConsole
from robustly.cost_matrix import CostMatrix
from robustly.evaluation import EvaluationTarget
from robustly.evaluation.costs import TARGETED_ATTACK, as_evaluated, check_target, evaluate_costs
from robustly.evidence import Evidence, Summary
from robustly.evidence.costs import CostSummary, write_costs
from robustly.evidence.schema import SUMMARY
from robustly.files import file_sha256


def add_costs(subject: Subject, evidence: Evidence, costs: CostMatrix, folder: Path) -> CostSummary:
    """Evaluate the costs of confusions, write them beside an evaluation, and return their summary.

    Args:
        subject: model and images of the evaluation.
        evidence: the evaluation.
        costs: the cost matrix.
        folder: folder of the evaluation.

    Raises:
        ValueError: model, images, threat or costs do not fit the evaluation.
        OSError: the folder cannot be written.
    """
    config = subject.run.config
    target = as_evaluated(EvaluationTarget(subject.model, subject.data, config.threat), evidence)
    check_target(target, evidence, costs, TARGETED_ATTACK)
    with evaluation_progress(PlainConsole()) as progress:
        found = evaluate_costs(target, evidence, costs, evaluation=file_sha256(folder / SUMMARY), progress=progress)
    write_costs(found, folder)
    return found.summary


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
