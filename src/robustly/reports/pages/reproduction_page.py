"""The reproduction of a paper as one self-contained HTML page, and its tables as one CSV file."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from robustly.files import write_text
from robustly.output_text import csv_cell
from robustly.reports.figures.charts import Figure
from robustly.reports.figures.front import Point, Whiskers, clean_against_robust
from robustly.reports.figures.learning_curves import convergence_figures
from robustly.reports.figures.published_bars import Bars, attack_bars, clean_bars
from robustly.reports.formats import deviating, interval, percent
from robustly.reports.pages.html import assembled
from robustly.reports.pages.methods_page import PARTS
from robustly.reports.reading import if_there, read_training
from robustly.reports.reproduction.controls import NO_CONTROLS, RULES, Controls, control_answers
from robustly.reports.reproduction.determinism import Spread, repetition, spread
from robustly.reports.reproduction.guides import guide_rows
from robustly.reports.reproduction.order import order_words
from robustly.reports.reproduction.settings import settings_beside
from robustly.reports.reproduction.verdict import reproduction_verdict
from robustly.reports.run import ReportError, Training
from robustly.reports.source_names import named_sources
from robustly.reports.tables.columns import CLEAN
from robustly.reports.tables.method_tables import Score
from robustly.reports.tables.paper_results import (
    ResultRow,
    ResultTable,
    RunResult,
    read_results,
    result_table,
    robust_column,
    scores_of,
)
from robustly.reports.tables.paper_tables import ALL, TITLES, PaperRow, PaperTable, with_mean


@dataclass(frozen=True)
class Reproduction:
    """A reproduction: rows of runs, and the published numbers beside them.

    Args:
        title: title of the paper or the method.
        source: the paper.
        scale: name of the scale.
        about: data, network, epochs and attack of the scale in one or two sentences.
        command: the command that made the runs.
        tables: the tables; one without published numbers is ours.
        curves: runs by seed of the methods in the figure of convergence, by name.
        clean: rows whose clean accuracy is drawn.
        hybrid: rows that are drawn under all attacks.
        controls: rows that the rules on the controls compare.
        repeated: folders of two runs of one recipe and seed.
        spread: a row with several seeds, for the claim of determinism.
        failures: reasons of failed runs, by the name of the folder.
        weights: SHA-256 of released weights by folder; evaluations of other weights do not count.
        paper: settings of the paper in words, by the keys of `robustly.reports.reproduction.settings.SETTINGS`.
        seeds_command: the command for several seeds, named if there is one seed only.
    """

    title: str
    source: str
    scale: str
    about: str
    command: str
    tables: tuple[PaperTable, ...]
    curves: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    clean: tuple[PaperRow, ...] = ()
    hybrid: tuple[PaperRow, ...] = ()
    controls: Controls = NO_CONTROLS
    repeated: tuple[Path, Path] | None = None
    spread: PaperRow | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[Path, str] = field(default_factory=dict)
    paper: Mapping[str, str] = field(default_factory=dict)
    seeds_command: str = ""

    @property
    def rows(self) -> tuple[PaperRow, ...]:
        """All rows, with those of the figures and the controls; a row in several places comes several times."""
        own = (self.controls.guided, self.controls.at_ce, self.controls.at_kl, self.spread)
        return (
            *(row for table in self.tables for row in table.rows),
            *self.clean,
            *self.hybrid,
            *(row for row in own if row is not None),
        )

    @property
    def runs(self) -> tuple[Path, ...]:
        """All folders, each once."""
        drawn = [run for runs in self.curves.values() for run in runs]
        return tuple(
            dict.fromkeys([*(run for row in self.rows for run in row.runs), *drawn, *(self.repeated or ())])
        )


def write_reproduction_page(reproduction: Reproduction, output: Path) -> Path:
    """Write the page; missing folders are created. Runs that are missing, failed or damaged are named on it.

    Args:
        reproduction: the runs and the published numbers.
        output: HTML file to write.

    Raises:
        OSError: the file cannot be written.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, reproduction_page(reproduction))
    return output


def reproduction_page(reproduction: Reproduction) -> str:
    """The page as text."""
    results = read_results(reproduction.runs, reproduction.failures, reproduction.weights)
    trainings = _trainings(reproduction.runs)
    shown = named_sources(reproduction)
    tables = [result_table(table, results) for table in shown.tables]
    robust = robust_column(tables[0].table) if tables else "aa"
    answers = control_answers(shown.controls, results, robust)
    guides = guide_rows(shown.rows, trainings)
    repeated = None if shown.repeated is None else named_sources(repetition(*shown.repeated, shown.failures))
    figures = _figures(shown, tables, results, trainings)
    evaluated = [result.evaluated for result in results.values() if result.evaluated is not None]
    content = {
        "title": shown.title,
        "about": shown,
        "verdict": reproduction_verdict(answers, tables, guides, repeated),
        "navigation": _navigation(tables),
        "answers": () if answers is None else answers.every,
        "rules": RULES,
        "guides": guides,
        "tables": [(table, order_words(table)) for table in tables],
        "figures": figures,
        "repeated": repeated,
        "spread": _spread(shown, results),
        "settings": named_sources(settings_beside(evaluated, shown.paper)),
        "count": sum(bool(result.shares) for result in results.values()),
    }
    return assembled("reproduction.html", {f"reproduction-{one.words.key}": one for one in figures}, content)


def _trainings(runs: Sequence[Path]) -> dict[Path, Training]:
    """Metrics by folder; damaged ones are left out, as the page of the run names them."""
    found = {}
    for run in runs:
        try:
            training = if_there(run / "metrics.csv", read_training)
        except ReportError:
            continue
        if training is not None:
            found[run] = training
    return found


def _navigation(tables: Sequence[ResultTable]) -> list[tuple[str, str, str]]:
    parts = [("summary", "", "Summary"), ("findings", "", "Findings"), ("determinism", "", "Determinism")]
    parts += [(f"part-{table.table.key}", "", table.table.title.partition(":")[0]) for table in tables]
    return [*parts, ("charts", "", "Figures"), ("setup", "", "Setup")]


def _spread(reproduction: Reproduction, results: Mapping[Path, RunResult]) -> tuple[Spread, ...]:
    """Spread of the row with several seeds, in the columns of the first table that has it."""
    row, tables = reproduction.spread, reproduction.tables
    if row is None or not tables:
        return ()
    own = next((table for table in tables if row.runs in [one.runs for one in table.rows]), tables[0])
    return spread([results[run] for run in row.runs], own.columns)


def _figures(
    reproduction: Reproduction,
    tables: Sequence[ResultTable],
    results: Mapping[Path, RunResult],
    trainings: Mapping[Path, Training],
) -> list[Figure]:
    curves = {
        name: [trainings[run] for run in runs if run in trainings] for name, runs in reproduction.curves.items()
    }
    every = tuple(dict.fromkeys(key for table in reproduction.tables for key in table.columns))
    hybrid = next((one.columns for one in reproduction.tables if one.rows == reproduction.hybrid), every)

    def bars(rows: Sequence[PaperRow], columns: Sequence[str]) -> list[Bars]:
        found, names = [], [row.name for row in rows]
        for row in rows:
            scores = scores_of([results[run] for run in row.runs], columns)
            measured = {key: _whiskers(score) for key, score in scores.items()}
            name = row.name if names.count(row.name) == 1 or not row.group else f"{row.name} ({row.group})"
            found.append(Bars(name, measured, with_mean(row.published, columns)))
        return found

    titles = {key: TITLES[key] for key in TITLES if key in hybrid and key != ALL}
    found = [
        *convergence_figures(curves),
        clean_bars(bars(reproduction.clean, (CLEAN.key,))) if reproduction.clean else None,
        _front([table for table in tables if table is tables[0] or not table.has_published]),
        attack_bars(bars(reproduction.hybrid, hybrid), titles) if reproduction.hybrid else None,
    ]
    return [figure for figure in found if figure is not None]


def _front(tables: Sequence[ResultTable]) -> Figure | None:
    """Clean against robust accuracy of the first table and of ours; rows of the same runs come once."""
    distinct: dict[tuple[Path, ...], tuple[ResultTable, ResultRow]] = {}
    for table in tables:
        for row in table.rows:
            distinct.setdefault(row.row.runs, (table, row))
    points = []
    robust = robust_column(tables[0].table) if tables else "aa"
    for i, (table, row) in enumerate(distinct.values()):
        columns = table.table.columns
        if CLEAN.key in columns and robust in columns:
            clean, attacked = (row.cells[columns.index(key)].value for key in (CLEAN.key, robust))
            if clean is not None and attacked is not None:
                ends = _whiskers(clean), _whiskers(attacked)
                points.append(Point(i, row.row.name, *ends, ranked=not row.suspected))
    drawn = clean_against_robust(
        points, TITLES.get(robust, robust), "Whiskers are 95 % intervals, of several seeds one deviation"
    )
    return None if drawn is None else replace(drawn, height=560, wide=True)


def _whiskers(score: Score) -> Whiskers:
    if score.deviation is None:
        return Whiskers(score.share, score.low, score.high, f"{percent(score.share)} {interval(score)}")
    ends = max(0.0, score.share - score.deviation), min(1.0, score.share + score.deviation)
    return Whiskers(score.share, *ends, f"{deviating(score.share, score.deviation)} ({score.seeds} seeds)")


def reproduction_csv(reproduction: Reproduction) -> str:
    """All tables as CSV with accuracies in per cent: one line per row and kind, which is `ours` or `published`."""
    results = read_results(reproduction.runs, reproduction.failures, reproduction.weights)
    tables = [result_table(table, results) for table in named_sources(reproduction).tables]
    keys = list(dict.fromkeys(key for table in tables for key in table.table.columns))
    about = ("table", "group", "name", "kind", "runs", "seeds", "masking", "missing")
    columns = [*about, *(f"{key}{part}" for key in keys for part in (*PARTS, " n"))]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            named = {"table": table.table.key, "group": row.row.group, "name": row.row.name}
            ours: dict[str, object] = {
                **named,
                "kind": "ours",
                "runs": " ".join(run.name for run in row.row.runs),
                "seeds": row.found,
                "masking": "suspected" if row.suspected else "",
                "missing": "; ".join(row.reasons),
            }
            for key, cell in zip(table.table.columns, row.cells, strict=True):
                ours |= _numbers(key, cell.value)
                counts = {result.shares[key].count for result in row.results if key in result.shares}
                ours[f"{key} n"] = " ".join(str(number) for number in sorted(counts))
            lines = [ours]
            if row.published:
                theirs = {key: f"{100 * share:.2f}" for key, share in row.published.items()}
                lines.append({**named, "kind": "published", **theirs})
            for line in lines:
                writer.writerow({name: csv_cell(value) for name, value in line.items()})
    return stream.getvalue()


def _numbers(key: str, score: Score | None) -> dict[str, str]:
    if score is None:
        return {}
    shares = (score.share, score.low, score.high, score.deviation, score.worst)
    return {
        f"{key}{part}": "" if share is None else f"{100 * share:.2f}"
        for part, share in zip(PARTS, shares, strict=True)
    }
