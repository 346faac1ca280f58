"""The content of a run's page for the templates: sentences, headline, attack rows and facts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import yaml

from robustly.evidence import EvidenceTable, Finding, Summary
from robustly.evidence.partial_unions import LeftOut
from robustly.evidence.schema import SCHEMA
from robustly.evidence.summary import AttackOutcome
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
from robustly.reports.pages.facts import FactGroup, audit_words, facts
from robustly.reports.pages.gallery import Gallery, gallery
from robustly.reports.run import RunEvidence
from robustly.reports.source_names import shown_path
from robustly.reports.strength import StrengthRow, strength, strength_rows
from robustly.reports.verdict import Verdict, verdict


@dataclass(frozen=True)
class Segment:
    """One part of the bar of outcomes of all examples; `share` in [0, 1]."""

    kind: str
    words: str
    count: int
    share: float


@dataclass(frozen=True)
class AttackRow:
    """A row of the table of attacks."""

    outcome: AttackOutcome
    broken: int | None
    alone: int | None
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ConfigLine:
    """One line of the configuration: indentation and key, and the rest."""

    key: str
    value: str


@dataclass(frozen=True)
class Checks:
    """Findings of one outcome: "failed", "undecided" or "passed"."""

    kind: str
    words: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Badge:
    """A mark beside the verdict; `kind` is "good", "bad" or "plain"."""

    kind: str
    words: str


@dataclass(frozen=True)
class RunView:
    """The content of one run's page."""

    run: RunEvidence
    key: str
    verdict: Verdict
    badges: tuple[Badge, ...]
    audit_command: str
    evaluate_command: str
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
    audit: str = ""
    left_out: tuple[LeftOut, ...] = ()
    strength: tuple[StrengthRow, ...] = ()


def view(run: RunEvidence, key: str) -> RunView:
    """Prepare the evidence of a run for the page.

    Args:
        run: the evidence.
        key: prefix of letters and digits for the ids of this run's elements.
    """
    evaluation, analysis = run.evaluation, run.analysis
    pictures = None
    if evaluation is not None and run.pictures is not None:
        pictures = gallery(evaluation, run.table, run.pictures)
    return RunView(
        run=run,
        key=key,
        verdict=verdict(run),
        badges=badges(run),
        audit_command=run.check or f"robustly audit {shown_path(run.path)}",
        evaluate_command=f"robustly evaluate {shown_path(run.path)}",
        sentence=_sentence(run),
        warnings=_warnings(run),
        segments=() if evaluation is None else _segments(evaluation),
        attacks=() if evaluation is None else _attack_rows(evaluation, run.table),
        charts=() if evaluation is None else evaluation_figures(evaluation, run.table),
        training=() if run.training is None else training_figures(run.training),
        metrics=None if run.training is None else metrics_table(run.training),
        gallery=pictures,
        config=() if run.config is None else config_lines(run.config),
        facts=facts(run),
        checks=() if evaluation is None else _checks(evaluation),
        analysis=() if analysis is None else analysis_figures(analysis, evaluation.threat if evaluation else None),
        measures=() if analysis is None or analysis.gradients is None else measure_rows(analysis.gradients),
        union=() if analysis is None or analysis.union is None else union_cells(analysis.union),
        audit=audit_words(run),
        left_out=() if analysis is None else analysis.left_out,
        strength=() if evaluation is None else _strength(evaluation),
    )


def badges(run: RunEvidence) -> tuple[Badge, ...]:
    """The state of audit, masking and certificate as marks."""
    evaluation, audit = run.evaluation, run.audit
    if evaluation is None:
        return (Badge("plain", "Not evaluated"),)
    if audit is None:
        found = [Badge("plain", "Not audited")]
    else:
        passed = f"{audit.checks - len(audit.failed)} of {audit.checks} checks"
        kind, words = ("good", "Audit passed") if audit.passed else ("bad", "Audit FAILED")
        found = [Badge(kind, f"{words}: {passed}")]
    if evaluation.masking:
        found.append(Badge("bad", "Masking suspected"))
    if evaluation.failures:
        number = len(evaluation.failures)
        found.append(Badge("bad", f"{number} attack{'' if number == 1 else 's'} failed"))
    if evaluation.metrics.certified is not None:
        found.append(Badge("good", "Lower bound proved"))
    return tuple(found)


def _strength(evaluation: Summary) -> tuple[StrengthRow, ...]:
    return strength_rows(strength(evaluation), certified=evaluation.metrics.certified is not None)


def config_lines(config: Mapping[str, object]) -> tuple[ConfigLine, ...]:
    """The configuration as YAML lines, split after the key."""
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
        return "This run is trained but not evaluated yet: it has training curves, but no robust accuracy."
    model, data, suite = evaluation.model, evaluation.data, evaluation.suite
    details = [f"{count(model.parameters)} parameters"]
    details += [] if model.checkpoint is None else [f"{model.checkpoint} checkpoint"]
    network = f"{model.name} ({', '.join(details)})"
    where = f"{data.split} examples of {data.source}" if data.split else f"examples of {data.source}"
    attacks = len(suite.attacks)
    return (
        f"{network}, tested on {count(data.count)} {where} under {evaluation.threat.text}, "
        f"by {attacks} attack{'' if attacks == 1 else 's'} (suite {suite.name})."
    )


def _warnings(run: RunEvidence) -> tuple[str, ...]:
    found = list(run.notes)
    evaluation, training = run.evaluation, run.training
    if training is not None and training.status.state == "diverged":
        found.append(f"The training diverged. {training.status.message}".strip())
    if training is not None and training.status.state == "stopped":
        found.append(f"The training was stopped before its end. {training.status.message}".strip())
    if training is not None and training.collapsed is not None:
        found.append(
            "In the best epoch of the training every validation image was predicted as class "
            f"{training.collapsed}: the network had collapsed."
        )
    if evaluation is not None:
        found += evaluation.warnings
        if evaluation.data.seen:
            found.append(f"{evaluation.data.seen_words.capitalize()}. Accuracies may be too high.")
    if evaluation is not None and evaluation.schema < SCHEMA:
        found.append(
            f"The evidence is of schema {evaluation.schema}, which an audit checks by older rules. Evaluate again "
            "for all checks."
        )
    return tuple(found)


def _segments(evaluation: Summary) -> tuple[Segment, ...]:
    """The outcomes of the examples; the shares add up to 1."""
    metrics = evaluation.metrics
    worst, certified = metrics.worst_case.robust, metrics.certified
    total, clean, held = metrics.clean.count, metrics.clean.hits, worst.hits
    if worst.count != total or held > clean:
        return ()
    proved = 0
    if certified is not None and certified.robust.count == total and certified.robust.hits <= held:
        proved = certified.robust.hits
    parts = [
        ("proved", "proved robust", proved),
        ("held", "not broken, not proved" if proved else "not broken by these attacks", held - proved),
        ("broken", "broken by an attack", clean - held),
        ("wrong", "misclassified without an attack", total - clean),
    ]
    return tuple(Segment(kind, words, number, number / total) for kind, words, number in parts if number)


def _checks(evaluation: Summary) -> tuple[Checks, ...]:
    """The findings by outcome: failed, undecided, passed."""
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


def _attack_rows(evaluation: Summary, table: EvidenceTable | None) -> tuple[AttackRow, ...]:
    rows = []
    for outcome in evaluation.outcomes:
        name = outcome.attack.name
        broken = alone = None
        if table is not None and name in table.attacks:
            mine = table.broken_by(name)
            others = [table.broken_by(other) for other in table.attacks if other != name]
            broken = int(mine.sum())
            if others and evaluation.suite.mode == "every":
                alone = int((mine & ~np.any(others, axis=0)).sum())
        words = tuple((key.replace("_", " "), setting(value)) for key, value in outcome.attack.settings.items())
        rows.append(AttackRow(outcome, broken, alone, words))
    return tuple(rows)


def embedded_json(value: object) -> str:
    """JSON for a script element, without characters that could end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def passes(outcome: AttackOutcome) -> str:
    """Mean passes per attacked example: `9.1 + 8.0`."""
    return f"{tenths(outcome.numbers.mean_forwards)} + {tenths(outcome.numbers.mean_backwards)}"
