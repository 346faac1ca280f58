"""Printed parts of `robustly evaluate`: the table, the passes, warnings, and the next command."""

from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustly.cli.proofs import print_certificates
from robustly.evaluation.suites.passes import autoattack_passes
from robustly.evidence import Summary
from robustly.evidence.domains import SPLITS
from robustly.experiments.run_folder import CERTIFIED, EVALUATION
from robustly.statistics import Proportion


def print_evaluation(console: Console, summary: Summary, folder: Path, target: Path, collapse: str) -> None:
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
    where = f" of {summary.data.source}" if summary.data.split in SPLITS.values() else ""
    title = f"{summary.run}{epoch}: {metrics.clean.count} images{where}, {summary.threat.text}"
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
