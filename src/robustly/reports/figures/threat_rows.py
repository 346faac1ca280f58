"""Accuracies under several threats as rows: without an attack, under each threat, on average, under all."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from robustly.evidence.provenance import ThreatRecord
from robustly.evidence.unions import ThreatUnion
from robustly.reports.figures.evaluation_figures import NORM_WORDS
from robustly.reports.run import ThreatTest
from robustly.statistics import Proportion

MEAN, UNION = "Mean of the threats", "All at once"
Kind = Literal["clean", "threat", "mean", "union"]
_CHAINED = re.compile(r"\+\w+:")


@dataclass(frozen=True)
class ThreatRow:
    """One accuracy with its 95 % interval.

    Args:
        kind: "clean", "threat", "mean" or "union".
        name: heading of the row.
        share: the accuracy, in [0, 1].
        low: lower end of its interval.
        high: upper end.
        unit: unit of the threat's size; empty for norms, chains, and where it is unknown.
        words: the threat in one sentence.
        suite: name of the suite.
        masking: sentences on suspected gradient masking.
        gap: difference from the threats of the training, in percentage points; empty without one.
        gap_ends: its 95 % interval.
    """

    kind: Kind
    name: str
    share: float
    low: float
    high: float
    unit: str = ""
    words: str = ""
    suite: str = ""
    masking: tuple[str, ...] = ()
    gap: str = ""
    gap_ends: str = ""


def threat_rows(union: ThreatUnion, tests: Sequence[ThreatTest] = ()) -> tuple[ThreatRow, ...]:
    """Rows of a union: clean, the threats by falling accuracy, their mean, and all at once.

    Args:
        union: the accuracies.
        tests: the evaluations behind it, for the units of the threats.
    """
    records = {one.threat.text: one.threat for one in tests}
    threats = [
        ThreatRow(
            kind="threat",
            name=threat_title(one.text),
            share=one.robust.share,
            low=one.robust.low,
            high=one.robust.high,
            unit=_unit(records.get(one.text)),
            words=one.words,
            suite=one.suite,
            masking=one.masking,
        )
        for one in union.threats
    ]
    low, high = union.average.interval
    return (
        _row("clean", "No attack (clean)", union.clean),
        *sorted(threats, key=lambda row: -row.share),
        ThreatRow("mean", MEAN, union.average.accuracy, low, high),
        _row("union", UNION, union.union),
    )


def threat_title(text: str) -> str:
    """`linf:8/255` as a heading: `L∞ 8/255`; a chain `rotation:30+linf:8/255`: `rotation 30 + L∞ 8/255`."""
    sign = "+" if _CHAINED.search(text) else "&"
    parts = re.split(rf"{re.escape(sign)}(?=\w+:)", text)
    return f" {sign} ".join(map(_part_title, parts))


def _part_title(text: str) -> str:
    kind, _, size = text.partition(":")
    return f"{NORM_WORDS.get(kind, kind.replace('_', ' '))} {size}".strip()


def wrapped(name: str, most: int, lines: int = 2) -> tuple[str, ...]:
    """A name on at most `lines` lines of `most` characters, split in front of the parts of a chain if possible.

    The last line ends with an ellipsis if the name is longer.
    """
    found: list[str] = []
    rest = name
    while rest and len(found) < lines:
        if len(rest) <= most:
            found.append(rest)
            rest = ""
            break
        places = [i for i in range(1, most + 1) if rest[i] in "+& "] or [
            i + 1 for i in range(most // 2, most) if rest[i] in ",=:@"
        ]
        place = places[-1] if places else most
        found.append(rest[:place])
        rest = rest[place:].lstrip(" ")
    if rest:
        found[-1] = f"{found[-1][: most - 1]}\u2026"
    return tuple(found)


def _row(kind: Kind, name: str, part: Proportion) -> ThreatRow:
    return ThreatRow(kind, name, part.share, part.low, part.high)


def _unit(threat: ThreatRecord | None) -> str:
    return "" if threat is None or threat.norm is not None or threat.unit.startswith("times each") else threat.unit
