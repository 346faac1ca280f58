"""The content of a run's page for the templates: sentences, headline, attack rows and facts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from robustly.evidence import Finding, Summary
from robustly.evidence.partial_unions import LeftOut
from robustly.evidence.schema import RULES_SINCE
from robustly.reports.figures.analysis_figures import (
    MeasureRow,
    analysis_figures,
    measure_rows,
)
from robustly.reports.figures.certificate_figures import certificate_figures
from robustly.reports.figures.charts import Figure, Table
from robustly.reports.figures.evaluation_figures import evaluation_figures
from robustly.reports.figures.threat_curves import threat_curves
from robustly.reports.figures.threat_rows import ThreatRow, threat_rows
from robustly.reports.figures.training_figures import metrics_table, training_figures
from robustly.reports.formats import count, percent
from robustly.reports.pages.attack_rows import AttackRow, attack_rows, not_needed
from robustly.reports.pages.certificate_rows import CertificateRow, OpenRow, certificate_rows, open_rows
from robustly.reports.pages.corruption_rows import CorruptionView, corruption_view
from robustly.reports.pages.cost_rows import CostView, cost_view
from robustly.reports.pages.domain_rows import DomainView, domain_view
from robustly.reports.pages.facts import FactGroup, audit_words, facts
from robustly.reports.pages.gallery import MOST_BYTES, Gallery, gallery
from robustly.reports.pages.protocol_rows import ProtocolView, protocol_view
from robustly.reports.run import RunEvidence
from robustly.reports.source_names import shown_path
from robustly.reports.strength import StrengthRow, strength_words
from robustly.reports.verdict import Verdict, verdict


@dataclass(frozen=True)
class Segment:
    """One part of the bar of outcomes of all examples; `share` in [0, 1]."""

    kind: str
    words: str
    count: int
    share: float


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
    about: str
    sentence: str
    warnings: tuple[str, ...]
    segments: tuple[Segment, ...]
    attacks: tuple[AttackRow, ...]
    not_needed: tuple[str, ...]
    charts: tuple[Figure, ...]
    training: tuple[Figure, ...]
    metrics: Table | None
    gallery: Gallery | None
    pictures_left_out: bool
    config: tuple[ConfigLine, ...]
    facts: tuple[FactGroup, ...]
    checks: tuple[Checks, ...] = ()
    analysis: tuple[Figure, ...] = ()
    measures: tuple[MeasureRow, ...] = ()
    union: tuple[ThreatRow, ...] = ()
    threat_curves: tuple[Figure, ...] = ()
    audit: str = ""
    left_out: tuple[LeftOut, ...] = ()
    strength: tuple[StrengthRow, ...] = ()
    proofs: tuple[Figure, ...] = ()
    certificates: tuple[CertificateRow, ...] = ()
    open: tuple[OpenRow, ...] = ()
    corruptions: CorruptionView | None = None
    costs: CostView | None = None
    protocols: tuple[ProtocolView, ...] = ()
    domains: DomainView | None = None


def view(run: RunEvidence, key: str, picture_bytes: int = MOST_BYTES) -> RunView:
    """Prepare the evidence of a run for the page.

    Args:
        run: the evidence.
        key: prefix of letters and digits for the ids of this run's elements.
        picture_bytes: most bytes of its pictures.
    """
    evaluation, analysis = run.evaluation, run.analysis
    pictures = None
    if evaluation is not None and run.pictures is not None:
        pictures = gallery(evaluation, run.table, run.pictures, picture_bytes)
    return RunView(
        run=run,
        key=key,
        verdict=verdict(run),
        badges=badges(run),
        audit_command=run.check or f"robustly audit {shown_path(run.path)}",
        evaluate_command=f"robustly evaluate {shown_path(run.path)}",
        about=_about(run),
        sentence=_sentence(run),
        warnings=_warnings(run),
        segments=() if evaluation is None else _segments(evaluation),
        attacks=() if evaluation is None else attack_rows(evaluation, run.table),
        not_needed=() if evaluation is None else not_needed(evaluation),
        charts=() if evaluation is None else evaluation_figures(evaluation, run.table),
        training=() if run.training is None else training_figures(run.training),
        metrics=None if run.training is None else metrics_table(run.training),
        gallery=pictures,
        pictures_left_out=pictures is None and run.pictures is not None and len(run.pictures.ids) > 0,
        config=() if run.config is None else config_lines(run.config),
        facts=facts(run),
        checks=() if evaluation is None else _checks(evaluation),
        analysis=() if analysis is None else analysis_figures(analysis, evaluation.threat if evaluation else None),
        measures=() if analysis is None or analysis.gradients is None else measure_rows(analysis.gradients),
        union=() if run.union is None else threat_rows(run.union, run.tests),
        threat_curves=threat_curves([run]),
        audit=audit_words(run),
        left_out=run.left_out,
        strength=() if evaluation is None else strength_words(evaluation),
        proofs=() if evaluation is None else certificate_figures(evaluation, run.table),
        certificates=() if evaluation is None else certificate_rows(evaluation),
        open=() if evaluation is None else open_rows(evaluation, run.table),
        corruptions=None if run.corruptions is None else corruption_view(run.corruptions),
        costs=None if evaluation is None or run.costs is None else cost_view(evaluation, run.costs),
        protocols=tuple(map(protocol_view, run.protocols)),
        domains=None
        if evaluation is None or run.domains is None
        else domain_view(run.domains, run.source_audit, evaluation.data),
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
    states = [outcome.state for outcome in evaluation.outcomes if outcome.state]
    left = [f"{states.count(state)} {state}" for state in ("failed", "not needed") if state in states]
    joined = ", ".join(left)
    attacks = f"{len(suite.attacks)} attack{'' if len(suite.attacks) == 1 else 's'}"
    return (
        f"{network}, tested on {count(data.count)} {where} under {evaluation.threat.text} by suite {suite.name} of "
        f"{attacks}{'' if not left else f' ({joined})'}."
    )


def _about(run: RunEvidence) -> str:
    """The line under the title of a chart that leaves the page."""
    evaluation = run.evaluation
    parts = [run.name] if evaluation is None else [run.name, evaluation.threat.text, evaluation.data.source]
    return " \u00b7 ".join(parts)


def _warnings(run: RunEvidence) -> tuple[str, ...]:
    found = list(run.notes)
    evaluation, training = run.evaluation, run.training
    if training is not None and training.status.state == "diverged":
        found.append(f"The training diverged. {training.status.message}".strip())
    if training is not None and training.status.state == "stopped":
        found.append(f"The training was stopped before its end. {training.status.message}".strip())
    shows_last = evaluation is not None and evaluation.model.is_last_epoch
    if training is not None and training.collapsed is not None and not shows_last:
        found.append(
            "In the best epoch of the training every validation image was predicted as class "
            f"{training.collapsed}: the network had collapsed."
        )
    if run.weak_guide is not None:
        found.append(
            f"In the last epoch the guide classified only {percent(run.weak_guide)} of the training images "
            "correctly, and the model learned from its answers."
        )
    if evaluation is not None:
        found += evaluation.warnings
        if evaluation.data.seen:
            found.append(f"{evaluation.data.seen_words.capitalize()}. Accuracies may be too high.")
    if evaluation is not None and evaluation.schema < RULES_SINCE:
        found.append(
            f"The evidence is of schema {evaluation.schema}, which an audit checks by older rules. Evaluate again "
            "for all checks."
        )
    return tuple(found)


def _segments(evaluation: Summary) -> tuple[Segment, ...]:
    """The outcomes of the examples; the shares add up to 1."""
    metrics = evaluation.metrics
    worst, certified = metrics.worst_case.robust, metrics.proved
    total, clean, held = metrics.clean.count, metrics.clean.hits, metrics.attacked.hits
    if worst.count != total or not held <= worst.hits <= clean:
        return ()
    proved = 0
    if certified is not None and certified.count == total and certified.hits <= held:
        proved = certified.hits
    parts = [
        ("proved", "proved robust", proved),
        ("held", "not broken, not proved" if proved else "not broken by these attacks", held - proved),
        ("refuted", "broken by a certificate's counterexample alone", worst.hits - held),
        ("broken", "broken by an attack", clean - worst.hits),
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


def embedded_json(value: object) -> str:
    """JSON for a script element, without characters that could end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
