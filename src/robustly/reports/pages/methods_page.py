"""Tables of methods as one self-contained HTML page, and as one CSV file."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustly.evidence.provenance import Seen
from robustly.files import write_text
from robustly.output_text import csv_cell
from robustly.reports.figures.charts import Figure
from robustly.reports.figures.front import Point, Whiskers, clean_against_robust
from robustly.reports.formats import deviating, interval, percent
from robustly.reports.pages.html import assembled
from robustly.reports.source_names import named_sources
from robustly.reports.tables.columns import CLEAN, WORST_CASE
from robustly.reports.tables.method_tables import MethodTable, Row, Score, distinguishing
from robustly.reports.tables.protocol_tables import ProtocolLine, ProtocolTable, ends
from robustly.reports.tables.table_verdict import table_verdict
from robustly.reports.tables.threat_matrix import ThreatMatrix
from robustly.reports.verdict import Verdict

HEADER = (
    *("data", "examples", "images_sha256", "threat", "kind", "name", "recipe", "seeds", "masking", "trained_on"),
    *("selected_on", "seen_in_training", "seen_in_selection", "source"),
)
PARTS = ("", " low", " high", " deviation", " worst")
"""Suffixes of each column: accuracy, its 95 % interval, and over seeds the standard deviation and the lowest."""


@dataclass(frozen=True)
class TableSection:
    """One table of the page and its figure."""

    key: str
    title: str
    table: MethodTable
    figure: Figure | None
    published: bool
    verdict: Verdict


def write_methods_page(
    tables: Sequence[MethodTable],
    output: Path,
    matrix: ThreatMatrix | None = None,
    protocols: Sequence[ProtocolTable] = (),
) -> Path:
    """Write the page of these tables; missing folders are created.

    Args:
        tables: the tables.
        output: file to write.
        matrix: the same methods under several threats, or None.
        protocols: the same runs by suites of several threats.

    Raises:
        OSError: the file cannot be written.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, methods_page(tables, matrix, protocols))
    return output


def methods_page(
    tables: Sequence[MethodTable], matrix: ThreatMatrix | None = None, protocols: Sequence[ProtocolTable] = ()
) -> str:
    """The page of these tables, of the matrix over their threats if there is one, and of suites, as text."""
    tables, matrix = named_sources(tables), named_sources(matrix)
    parts = [
        TableSection(
            f"table{i + 1}",
            title,
            table,
            front_of(table),
            any(row.published for row in table.rows),
            table_verdict(table),
        )
        for i, (table, title) in enumerate(zip(tables, distinguishing(tables), strict=True))
    ]
    figures = {f"{part.key}-{part.figure.words.key}": part.figure for part in parts if part.figure is not None}
    navigation = [("summary", "", "Summary")]
    navigation += [] if matrix is None else [("threats", "", "Threats")]
    navigation += [("suites", "", "Suites of threats")] if protocols else []
    navigation += [(part.key, "", f"{part.table.data.source}, {part.table.threat.text}") for part in parts]
    runs = max(sum(len(row.seeds) for row in table.rows) for table in tables)
    if len(tables) == 1:
        lead = f"{_many(runs, 'run')}, tested on {parts[0].title}."
    else:
        lead = (
            f"{len(tables)} tables, one for every threat and set of test images. Numbers of different tables "
            "are not comparable."
        )
    content = {
        "title": _title(tables),
        "lead": lead,
        "navigation": navigation,
        "parts": parts,
        "matrix": matrix,
        "protocols": [(one, [_suite_cells(line) for line in one.lines]) for one in protocols],
        "count": runs,
    }
    return assembled("compare.html", figures, content)


def _suite_cells(line: ProtocolLine) -> list[tuple[str, str, str] | None]:
    """Number, interval and a word for each column of a suite's table; None where there is no number."""
    numbers = (line.clean, line.trained, line.mean, line.worst_share, line.union, line.mean_less, line.union_less)
    cells: list[tuple[str, str, str] | None] = []
    for number in numbers:
        if number is None:
            cells.append(None)
            continue
        value, low, high = ends(number)
        word = line.worst if number is line.worst_share else ""
        cells.append((f"{100 * value:.1f}", f"[{100 * low:.1f}, {100 * high:.1f}]", word))
    return cells


def front_of(table: MethodTable) -> Figure | None:
    """Clean against robust accuracy of a table's rows; None if too few rows have both."""
    robust = table.robust_column
    same = [i for i, column in enumerate(table.columns) if column.key == CLEAN.key]
    clean = next((i for i in same if table.columns[i].count == table.columns[robust].count), same[0])
    comparable = all(row.cells[robust].value is not None for row in table.rows)
    comparable = comparable and (table.columns[robust].key != WORST_CASE.key or not table.notes)
    points = []
    for i, row in enumerate(table.rows):
        ends = row.cells[clean].value, row.cells[robust].value
        if ends[0] is not None and ends[1] is not None:
            ranked = comparable and not row.suspected
            points.append(Point(i, row.name, _whiskers(ends[0]), _whiskers(ends[1]), ranked))
    column = table.columns[robust]
    measure = f"worst case{column.tested_on}" if column.key == WORST_CASE.key else table.titles[robust]
    several = any(len(row.seeds) > 1 for row in table.rows)
    bars = "Whiskers are 95 % intervals" + (", of several seeds one standard deviation" if several else "")
    return clean_against_robust(points, measure, bars)


def _whiskers(score: Score) -> Whiskers:
    if score.deviation is None:
        return Whiskers(score.share, score.low, score.high, f"{percent(score.share)} {interval(score)}")
    low, high = max(0.0, score.share - score.deviation), min(1.0, score.share + score.deviation)
    words = f"{deviating(score.share, score.deviation)} ({score.seeds} seeds)"
    return Whiskers(score.share, low, high, words)


def methods_csv(tables: Sequence[MethodTable]) -> str:
    """The tables as CSV with one line per row, accuracies in per cent; published rows have another `kind`."""
    titles = list(dict.fromkeys(title for table in tables for title in table.titles))
    stream = io.StringIO()
    columns = [*HEADER, *(title + part for title in titles for part in PARTS)]
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writerow({name: csv_cell(name) for name in columns})
    for table in tables:
        tested = {
            "data": table.data.source,
            "examples": " ".join(str(one.count) for one in table.tests),
            "images_sha256": " ".join(one.sha256 or "" for one in table.tests),
            "threat": table.threat.text,
        }
        for row in table.rows:
            line = {
                **tested,
                "kind": "run" if len(row.seeds) == 1 else "seeds",
                "name": row.name,
                "recipe": row.recipe or "",
                "seeds": " ".join(str(seed) for seed in row.seeds if seed is not None),
                "masking": "suspected" if row.suspected else "",
                "trained_on": "" if row.trained_on is None else row.trained_on,
                "selected_on": "" if row.selected_on is None else row.selected_on,
                "seen_in_training": _seen_titles(table, row, "training"),
                "seen_in_selection": _seen_titles(table, row, "selection"),
            }
            for title, cell in zip(table.titles, row.cells, strict=True):
                line |= _numbers(title, cell.value)
            writer.writerow({name: csv_cell(value) for name, value in line.items()})
            if row.published is not None:
                theirs = row.published
                shown = {
                    title: _per_cent(theirs.accuracy[column.key])
                    for title, column in zip(table.titles, table.columns, strict=True)
                    if column.key in theirs.accuracy
                }
                about = {"data": theirs.data, "threat": f"linf:{theirs.epsilon}", "kind": "published"}
                source = f"{theirs.architecture}; {theirs.source}"
                named = {"name": theirs.name, "recipe": row.recipe or "", "source": source}
                published = {**about, **named, **shown}
                writer.writerow({name: csv_cell(value) for name, value in published.items()})
    return stream.getvalue()


def _seen_titles(table: MethodTable, row: Row, seen: Seen) -> str:
    return "; ".join(title for title, mark in zip(table.titles, row.seen, strict=True) if mark == seen)


def _numbers(title: str, score: Score | None) -> dict[str, str]:
    if score is None:
        return {}
    shares = (score.share, score.low, score.high, score.deviation, score.worst)
    return {
        title + part: "" if share is None else _per_cent(share) for part, share in zip(PARTS, shares, strict=True)
    }


def _per_cent(share: float) -> str:
    return f"{100 * share:.2f}"


def _title(tables: Sequence[MethodTable]) -> str:
    largest = max(tables, key=lambda table: len(table.rows))
    names = [row.name for row in largest.rows]
    if len(names) <= 2:
        return " against ".join(names)
    several = any(len(row.seeds) > 1 for row in largest.rows)
    return f"{_many(len(names), 'method' if several else 'run')} compared"


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
