"""What the templates show: sentences, headline, attack rows and facts of one run, ready to print."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import yaml

from robustly.reports.evidence import AttackResult, Evaluation, Examples, Finding, RunEvidence
from robustly.reports.figures.analysis_figures import (
    MeasureRow,
    UnionCell,
    analysis_figures,
    measure_rows,
    union_cells,
)
from robustly.reports.figures.charts import Figure, Table
from robustly.reports.figures.evaluation_figures import evaluation_figures
from robustly.reports.figures.training_figures import metrics_table, training_figures
from robustly.reports.formats import count, setting, tenths
from robustly.reports.pages.facts import FactGroup, facts
from robustly.reports.pages.gallery import Gallery, gallery


@dataclass(frozen=True)
class Segment:
    """One part of the bar that says what became of all the examples; `share` in [0, 1]."""

    kind: str
    words: str
    count: int
    share: float


@dataclass(frozen=True)
class AttackRow:
    """One attack of the suite as the table shows it."""

    result: AttackResult
    broken: int | None
    alone: int | None
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ConfigLine:
    """One line of the configuration: its indentation and key, and what follows."""

    key: str
    value: str


@dataclass(frozen=True)
class Checks:
    """Findings of one outcome: "failed", "undecided" or "passed"."""

    kind: str
    words: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class RunView:
    """One run, ready for the page."""

    run: RunEvidence
    key: str
    sentence: str
    warnings: tuple[str, ...]
    segments: tuple[Segment, ...]
    attacks: tuple[AttackRow, ...]
    charts: tuple[Figure, ...]
    training: tuple[Figure, ...]
    metrics: Table | None
    gallery: Gallery | None
    config: tuple[ConfigLine, ...]
    facts: tuple[FactGroup, ...]
    checks: tuple[Checks, ...] = ()
    analysis: tuple[Figure, ...] = ()
    measures: tuple[MeasureRow, ...] = ()
    union: tuple[UnionCell, ...] = ()


def view(run: RunEvidence, key: str) -> RunView:
    """Turn the evidence of a run into what the page shows.

    Args:
        run: the evidence.
        key: a word of letters and digits that sets this run's parts of the page apart.
    """
    evaluation, analysis = run.evaluation, run.analysis
    pictures = None
    if evaluation is not None and run.pictures is not None:
        pictures = gallery(evaluation, run.examples, run.pictures)
    return RunView(
        run=run,
        key=key,
        sentence=_sentence(run),
        warnings=_warnings(run),
        segments=() if evaluation is None else _segments(evaluation),
        attacks=() if evaluation is None else _attack_rows(evaluation, run.examples),
        charts=() if evaluation is None else evaluation_figures(evaluation, run.examples),
        training=() if run.training is None else training_figures(run.training),
        metrics=None if run.training is None else metrics_table(run.training),
        gallery=pictures,
        config=() if run.config is None else config_lines(run.config),
        facts=facts(run),
        checks=() if evaluation is None else _checks(evaluation),
        analysis=() if analysis is None else analysis_figures(analysis, evaluation.threat if evaluation else None),
        measures=() if analysis is None or analysis.gradients is None else measure_rows(analysis.gradients),
        union=() if analysis is None or analysis.union is None else union_cells(analysis.union),
    )


def config_lines(config: Mapping[str, object]) -> tuple[ConfigLine, ...]:
    """The configuration as YAML lines, split where the key ends."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=88)
    lines = []
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        is_key = bool(colon) and (not value or value.startswith(" ")) and not key.lstrip().startswith(("'", '"'))
        lines.append(ConfigLine(key + colon, value) if is_key else ConfigLine("", line))
    return tuple(lines)


def _sentence(run: RunEvidence) -> str:
    evaluation = run.evaluation
    if evaluation is None:
        return "This run is trained but not evaluated yet: there are training curves, but no robust accuracy."
    model, data = evaluation.model, evaluation.data
    details = [] if model.parameters is None else [f"{count(model.parameters)} parameters"]
    details += [] if model.checkpoint is None else [f"{model.checkpoint} checkpoint"]
    network = model.name + (f" ({', '.join(details)})" if details else "")
    where = f"{data.split} examples of {data.source}" if data.split else f"examples of {data.source}"
    attacks = len(evaluation.attacks)
    return (
        f"{network}, tested on {count(data.count)} {where} under {evaluation.threat.text}, "
        f"by {attacks} attack{'' if attacks == 1 else 's'} (suite {evaluation.suite})."
    )


def _warnings(run: RunEvidence) -> tuple[str, ...]:
    found = list(run.notes)
    evaluation, training = run.evaluation, run.training
    if training is not None and training.state == "diverged":
        found.append(f"The training diverged. {training.message}".strip())
    if training is not None and training.state == "stopped":
        found.append(f"The training was stopped before its end. {training.message}".strip())
    if evaluation is not None:
        found += evaluation.warnings
    return tuple(found)


def _segments(evaluation: Evaluation) -> tuple[Segment, ...]:
    """What became of every example; the parts add up to all of them."""
    total, clean, held = evaluation.clean.count, evaluation.clean.correct, evaluation.worst_case.correct
    if evaluation.worst_case.count != total or held > clean:
        return ()
    proved = 0
    certified = evaluation.certified
    if certified is not None and certified.robust.count == total and certified.robust.correct <= held:
        proved = certified.robust.correct
    parts = [
        ("proved", "proved robust", proved),
        ("held", "not broken, not proved" if proved else "not broken by these attacks", held - proved),
        ("broken", "broken by an attack", clean - held),
        ("wrong", "wrong without any attack", total - clean),
    ]
    return tuple(Segment(kind, words, number, number / total) for kind, words, number in parts if number)


def _checks(evaluation: Evaluation) -> tuple[Checks, ...]:
    """The findings by outcome, those that matter first."""
    kinds = [("failed", False, "failed"), ("undecided", None, "could not be decided"), ("passed", True, "passed")]
    found = [
        (kind, words, tuple(one for one in evaluation.findings if one.passed is passed))
        for kind, passed, words in kinds
    ]
    return tuple(
        Checks(kind, f"{len(some)} check{'' if len(some) == 1 else 's'} {words}", some)
        for kind, words, some in found
        if some
    )


def _attack_rows(evaluation: Evaluation, examples: Examples | None) -> tuple[AttackRow, ...]:
    rows = []
    for result in evaluation.attacks:
        broken = alone = None
        if examples is not None and result.name in examples.attacks:
            mine = examples.broken_by(result.name)
            others = [examples.broken_by(name) for name in examples.attacks if name != result.name]
            broken = int(mine.sum())
            if others and evaluation.mode == "every":
                alone = int((mine & ~np.any(others, axis=0)).sum())
        words = tuple((key.replace("_", " "), setting(value)) for key, value in result.settings.items())
        rows.append(AttackRow(result, broken, alone, words))
    return tuple(rows)


def embedded_json(value: object) -> str:
    """JSON that can stand inside a script element: no character in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def passes(result: AttackResult) -> str:
    """Mean passes per example: `9.1 + 8.0`."""
    return f"{tenths(result.forwards)} + {tenths(result.backwards)}"
