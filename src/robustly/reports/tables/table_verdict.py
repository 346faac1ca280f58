"""The verdict on a table of methods in a sentence, and the doubts about it."""

from collections.abc import Sequence

from robustly.reports.formats import count, deviating, percent
from robustly.reports.tables.columns import WORST_CASE
from robustly.reports.tables.method_tables import MethodTable, Row, Score
from robustly.reports.verdict import Verdict

_Scored = tuple[Row, Score]


def table_verdict(table: MethodTable) -> Verdict:
    """The verdict on a table: its rows by the robust accuracy that all of them have.

    Rows with suspected masking, and rows without this number, are not ranked.
    """
    place = table.robust_column
    scored = [(row, score) for row in table.rows if (score := row.cells[place].value) is not None]
    ranked = sorted((entry for entry in scored if not entry[0].suspected), key=lambda entry: -entry[1].share)
    doubts = [f"{row.name} is not ranked: masking is suspected." for row, _ in scored if row.suspected]
    left_out = [row.name for row in table.rows if row.cells[place].value is None]
    doubts += [f"Without this number: {', '.join(left_out)}."] if left_out else []
    if not ranked:
        return Verdict("No row can be ranked by its robust accuracy.", tuple(doubts), sound=False)
    attacks = "all attacks" if table.columns[place].key == WORST_CASE.key else table.titles[place]
    threat, (best, score) = table.threat.text, ranked[0]
    sizes = " or ".join(count(one.count) for one in table.tests or (table.data,))
    tested = f"{sizes} {table.data.split or ''} examples of {table.data.source}".replace("  ", " ")
    words = f"{best.name} holds {_words(score)} of {tested} against {attacks} under {threat}"
    if len(table.rows) > 1:
        kind = "methods" if any(len(row.seeds) > 1 for row in table.rows) else "runs"
        words = f"Of {len(table.rows)} {kind}, {words}"
    return Verdict(words + _others(ranked) + ".", (*_chance(ranked, place), *doubts))


def _others(ranked: Sequence[_Scored]) -> str:
    """The second and the last row."""
    if len(ranked) == 1:
        return ""
    second = f"; the next, {ranked[1][0].name}, {_words(ranked[1][1])}"
    return second if len(ranked) == 2 else f"{second}; the last, {ranked[-1][0].name}, {_words(ranked[-1][1])}"


def _words(score: Score) -> str:
    return percent(score.share) if score.deviation is None else deviating(score.share, score.deviation)


def _chance(ranked: Sequence[_Scored], place: int) -> list[str]:
    """A sentence if the first row is not clearly the best."""
    if len(ranked) < 2 or ranked[0][0].cells[place].clearly:
        return []
    (first, best), (second, other) = ranked[:2]
    if best.low > other.high:
        return []
    return [f"The difference between {first.name} and {second.name} may be chance: their intervals overlap."]
