"""An evaluation as a few lines of text and as a small table for notebooks."""

from html import escape

from robustly.evidence.summary import Metrics, Summary
from robustly.output_text import one_line
from robustly.statistics import Proportion

_LINE = "1px solid rgba(128, 128, 128, .35)"
_CELL = "padding: 4px 12px; text-align: {side}; border-top: {line}; background: transparent; white-space: {space};"
_WARNING = "margin: 6px 0 0; padding: 4px 10px; border-left: 3px solid #d9691b;"
_NAME_WIDTH = 12


def evidence_text(kind: str, summary: Summary) -> str:
    """The outcome in five to eight lines of plain text, without control characters.

    Args:
        kind: name of the class, which begins the first line.
        summary: the summary of the evaluation.
    """
    rows = [f"  {name:{_NAME_WIDTH}}{one_line(words)}" for name, words in _rows(summary)]
    return "\n".join([f"{kind} of {_subject(summary)}", *rows])


def evidence_html(summary: Summary) -> str:
    """The outcome as a table, one row for each attack; all text is escaped.

    The colours are those of the page around it, so that the table fits light and dark notebooks.
    """
    metrics = summary.metrics
    rows = [_row("no attack (clean)", metrics.clean)]
    for outcome in summary.outcomes:
        seen = f" (seen in {outcome.seen})" if outcome.seen else ""
        numbers = outcome.numbers.robust if not outcome.state else None
        rows.append(_row(one_line(outcome.attack.title) + seen, numbers, outcome.state))
    rows.append(_row("worst case", metrics.worst_case.robust, strong=True))
    if metrics.certified is not None:
        rows.append(_row(f"certified ({one_line(metrics.certified.name)})", metrics.certified.robust, strong=True))
    head = "".join(
        f'<th style="padding: 4px 12px; text-align: {side}; font-weight: 500; background: transparent;">{name}</th>'
        for name, side in (("", "left"), ("accuracy", "right"), ("95 % interval", "right"))
    )
    notes = [f'<p style="{_WARNING}">{escape(one_line(text))}</p>' for text in _notes(summary)]
    return (
        '<div class="robustly-evidence" style="color: inherit; max-width: 60em;">'
        f'<p style="margin: 0 0 6px;"><b>{escape(_subject(summary))}</b><br>{escape(_test(summary))}'
        f"{_headline(summary)}</p>"
        f'<table style="border-collapse: collapse; color: inherit; font-variant-numeric: tabular-nums;"><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{''.join(notes)}</div>"
    )


def _subject(summary: Summary) -> str:
    model = one_line(summary.model.name)
    named = f"{one_line(summary.run)} ({model})" if summary.run else model
    split = f" ({one_line(summary.data.split)})" if summary.data.split else ""
    many = "example" if summary.data.count == 1 else "examples"
    return f"{named} on {summary.data.count:,} {many} of {one_line(summary.data.source)}{split}"


def _test(summary: Summary) -> str:
    count = len(summary.suite.attacks)
    attacks = f"{count} attack{'' if count == 1 else 's'}"
    return f"{one_line(summary.threat.text)}, suite {one_line(summary.suite.name)} ({attacks})"


def _rows(summary: Summary) -> list[tuple[str, str]]:
    """Names and values of the lines below the first."""
    metrics = summary.metrics
    worst = metrics.worst_case.robust
    rows = [("threat", _test(summary)), ("clean", str(metrics.clean)), ("worst case", str(worst))]
    if metrics.proved is not None:
        rows.append(("interval", _interval(metrics)))
    rows.append(("masking", "suspected: " + " ".join(summary.masking) if summary.masking else "not suspected"))
    rows += [("warnings", " ".join(summary.warnings))] if summary.warnings else []
    if summary.failures:
        rows.append(("failed", ", ".join(summary.failures)))
    return rows


def _interval(metrics: Metrics) -> str:
    low = "" if metrics.proved is None else _percent(metrics.proved)
    return f"{low} certified to {_percent(metrics.attacked)} attacked, {metrics.undecided:,} undecided"


def _headline(summary: Summary) -> str:
    """A line of HTML with the interval; empty without a certificate."""
    metrics = summary.metrics
    return "" if metrics.proved is None else f"<br>robust accuracy: <b>{escape(_interval(metrics))}</b>"


def _notes(summary: Summary) -> list[str]:
    """Sentences below the table."""
    notes = ["Masking suspected: " + " ".join(summary.masking)] if summary.masking else []
    return [*notes, *summary.warnings]


def _row(name: str, share: Proportion | None, state: str = "", *, strong: bool = False) -> str:
    """A row of the table; `state` stands in place of the numbers if there are none."""
    tag = "b" if strong else "span"
    accuracy = escape(state) if share is None else _percent(share)
    ends = "" if share is None else f"{100 * share.low:.1f} to {100 * share.high:.1f}"
    left = _CELL.format(side="left", line=_LINE, space="normal")
    right = _CELL.format(side="right", line=_LINE, space="nowrap")
    return (
        f'<tr style="background: transparent;"><td style="{left}"><{tag}>{escape(name)}</{tag}></td>'
        f'<td style="{right}"><{tag}>{accuracy}</{tag}></td><td style="{right}">{ends}</td></tr>'
    )


def _percent(share: Proportion) -> str:
    return f"{100 * share.share:.1f} %"
