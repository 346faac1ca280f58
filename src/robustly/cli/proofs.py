"""Certificates of an evaluation on the terminal: stages, reasons of open images, and the interval."""

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustly.evidence import Summary
from robustly.evidence.certified_numbers import CertificateSummary

OPEN = ("unknown", "timeout", "error")
_STAGES = {
    "clean": "clean: misclassified without a change",
    "attack": "attack",
    "ibp": "ibp: intervals",
    "crown": "crown: backward bounds",
    "alpha": "alpha: optimised bounds",
    "branch": "branch: branch and bound",
    "split": "split: input splitting",
    "": "none",
}


def print_certificates(console: Console, summary: Summary) -> None:
    """Print the stages of each certificate, the reasons of open images, and the interval of the model.

    Args:
        console: the terminal.
        summary: the summary; nothing is printed without certificates.
    """
    for one in summary.metrics.certificates:
        console.print(_stages(one))
        for reason, count in one.reasons.items():
            console.print(
                f"open, {count} of {one.robust.count}: {reason}", highlight=False, soft_wrap=True, markup=False
            )
    words = interval_words(summary)
    if words:
        console.print(words, highlight=False, soft_wrap=True, markup=False)


def interval_words(summary: Summary) -> str:
    """The interval of robust accuracy in one sentence; empty without a certificate of the model."""
    found = summary.metrics.interval
    if found is None:
        return ""
    count = found.certified.count
    return (
        f"robust accuracy at {summary.threat.text}: at least {100 * found.certified.share:.1f} % "
        f"({found.certified.hits} of {count} images proved), at most {100 * found.attacked.share:.1f} % "
        f"({count - found.attacked.hits} falsified); {found.undecided} open"
    )


def _stages(one: CertificateSummary) -> Table:
    verdicts = one.verdicts
    waiting = sum(verdicts.get(name, 0) for name in OPEN)
    title = (
        f"certificate {one.name}: {verdicts.get('falsified', 0)} falsified, {verdicts.get('verified', 0)} verified"
        f", {waiting} open"
    )
    if verdicts.get("timeout"):
        title += f" ({verdicts['timeout']} by the time limit)"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE)
    table.add_column("decided by, or tried last")
    for column in ("falsified", "verified", "open", "time"):
        table.add_column(column, justify="right")
    for name, part in one.stages.items():
        left = part.count - part.falsified - part.verified
        seconds = "" if part.seconds is None else f"{part.seconds:.1f} s"
        shown = (str(part.falsified or ""), str(part.verified or ""), str(left or ""), seconds)
        table.add_row(escape(_STAGES.get(name, name)), *shown)
    return table
