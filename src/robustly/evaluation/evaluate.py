"""Attack and certify a model on a data set, and return the evidence."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.attacks.core.compiled import CompiledNetwork
from robustly.data import ImageData
from robustly.evaluation.batch_size import measure
from robustly.evaluation.certificates import Certified, check_certificates, run_certificates
from robustly.evaluation.checkpoint import EvaluationCheckpoint, Speed
from robustly.evaluation.crew import Leads
from robustly.evaluation.curve import (
    Curve,
    GivenCurve,
    curve_by_attack,
    curve_by_distances,
    curve_points,
    curve_radii,
)
from robustly.evaluation.derived import (
    derived_warnings,
    gallery,
    picture_words,
    unconfirmed_counterexamples,
    unconfirmed_warning,
)
from robustly.evaluation.diagnostics import cheap_findings, masking_suspected
from robustly.evaluation.door import as_evaluated, check_arguments, clean_logits
from robustly.evaluation.identity import evaluation_identity
from robustly.evaluation.overhead import Overhead
from robustly.evaluation.recording import (
    as_array,
    data_record,
    model_record,
    suite_record,
    threat_record,
)
from robustly.evaluation.stages import EvaluationError, Stages, run_stages
from robustly.evaluation.suites.suite import Suite, in_full_precision
from robustly.evaluation.target import EvaluationTarget, Mode, Progress, no_progress
from robustly.evidence import Evidence, EvidenceImages, EvidenceTable, Finding, Summary
from robustly.evidence.collapse import collapse_words
from robustly.evidence.metrics import contradiction_problem, metrics
from robustly.evidence.provenance import now, software_versions
from robustly.evidence.schema import ExampleColumns
from robustly.evidence.summary import Metrics
from robustly.objectives import ClassificationGoal, margin
from robustly.threats import Threat


def evaluate(
    model: nn.Module | Callable[[Tensor], object],
    data: ImageData,
    threat: Threat,
    suite: Suite | str | Attack | Sequence[Attack | str],
    *,
    mode: Mode = "every",
    seed: int = 0,
    batch_size: int | None = None,
    curve_count: int | None = 500,
    curve: GivenCurve = None,
    checkpoint: EvaluationCheckpoint | Path | None = None,
    progress: Progress | None = None,
    leader: Leads | None = None,
    known_size: int | None = None,
    compiled: bool = False,
) -> Evidence:
    """Evaluate a model and return the evidence.

    Args:
        model: any module or function from images in [0, 1] to logits; see `robustly.models.as_classifier`.
        data: labelled images, on the model's device.
        threat: the threat, with one extent for all examples.
        suite: attacks and certificates, the name of a known suite, names of attacks separated by commas, an attack,
            or a list of attacks; see `as_suite`.
        mode: "every" runs every attack on every correctly classified example, as in tables of papers. "worst_case"
            runs each attack on the unbroken examples only: the same worst case in less time. Suites in stages
            always use it.
        seed: seed of every random number.
        batch_size: images per batch; None measures two or three sizes, and the speed of searches in bfloat16.
        curve_count: number of examples, from the first, of the security curve; None for all.
        curve: the security curve, see `with_curve`: "off", "on", or sizes of the threat as a list or a text
            ("1/255, 2/255", "50%, 100%"); None for the curve of the suite.
        checkpoint: storage of finished attacks, or its folder, so that a killed evaluation continues.
        progress: callback with (name, done, total).
        leader: the processes that share the attacks; see `robustly.evaluation.crew`. It needs a checkpoint.
        known_size: the fastest batch size, if it was measured before; only the precision is timed then.
        compiled: whether searches run in passes compiled by `torch.compile`; verdicts are those of the model.

    Raises:
        AdapterError: the model is not one, or fails on the images.
        EvaluationError: clean images have NaN or infinite logits, the number of outputs is not that of the classes,
            an attack or a certificate is not defined for the threat or the model, the box of the threat is not
            [0, 1], every attack or a certificate failed, or evidence refutes a certificate.
        ProcessError: another process has stopped.
    """
    check_arguments(mode, batch_size)
    model, threat, suite = as_evaluated(model, data, threat, suite, curve)
    if isinstance(checkpoint, Path):
        identity = evaluation_identity(
            model, data, threat, suite, mode=mode, seed=seed, batch_size=batch_size, curve_count=curve_count
        )
        checkpoint = EvaluationCheckpoint(checkpoint, identity)
    target = EvaluationTarget(model, data, threat, seed, batch_size or len(data))
    check_certificates(target, suite)
    clean = clean_logits(replace(target, batch_size=batch_size or 250))
    examples = _clean_columns(target, clean)
    overhead = Overhead()
    with overhead.measured("tuning"):
        speed = _speed(target, batch_size, checkpoint, examples, known_size, compiled)
        target, tuned = replace(target, batch_size=speed.batch_size), at_precision(suite, speed)
    if speed.compiled:
        target = replace(target, compiled=CompiledNetwork(model, speed.batch_size))
    if leader is not None and checkpoint is not None:
        leader.begin(checkpoint.identity, speed)
        target = replace(target, crew=leader)
    mode = "worst_case" if suite.worst_case else mode
    progress = progress or no_progress
    with overhead.measured("diagnostics"):
        findings = cheap_findings(target)
    suspicions = masking_suspected(findings)
    run = run_stages(
        target, tuned, examples, mode=mode, suspicions=suspicions, checkpoint=checkpoint, progress=progress
    )
    certified = run_certificates(target, suite, progress, checkpoint)
    with overhead.measured("curve"):
        drawn = _security_curve(target, tuned, examples, run, curve_count, progress)
    found = _Found(examples, findings, run, certified, drawn)
    table, images = _table(found), _images(target, found)
    numbers = _numbers(table, target, suite, certified)
    derived = derived_warnings(clean, numbers.invalid, run.failures)
    sentences = _warn(derived, run, certified)
    collapse = collapse_words(examples, data.classes)
    sentences = (*sentences, collapse) if collapse else sentences
    precision = "full" if tuned is not suite else "as the suite says"
    summary = replace(_summary(target, suite, mode, numbers, found), warnings=sentences, precision=precision)
    words = picture_words(target, images.attacks, images.gallery)
    summary = replace(summary, overhead=overhead.seconds, picture_words=words)
    return Evidence(table, images, summary)


@dataclass(frozen=True)
class _Found:
    """The results of the parts of an evaluation."""

    examples: ExampleColumns
    findings: list[Finding]
    run: Stages
    certified: Certified
    curve: Curve | None


def _speed(
    target: EvaluationTarget,
    batch_size: int | None,
    checkpoint: EvaluationCheckpoint | None,
    examples: ExampleColumns,
    known_size: int | None,
    compiled: bool,
) -> Speed:
    """The given batch size; without one, the size and the precision that are faster here.

    An evaluation that continues keeps the size, the precision and the form of passes with which it began.
    """

    def speed() -> Speed:
        if batch_size:
            return Speed(batch_size, half_pays=True, compiled=compiled)
        tuning = measure(target, known=known_size)
        return Speed(tuning.batch_size, tuning.half_pays, compiled)

    return speed() if checkpoint is None else checkpoint.begin(speed, examples.clean_margin)


def at_precision(suite: Suite, speed: Speed) -> Suite:
    """The suite in the precision of an evaluation."""
    return suite if speed.half_pays else in_full_precision(suite)


def _clean_columns(target: EvaluationTarget, clean: Tensor) -> ExampleColumns:
    data = target.data
    return ExampleColumns(
        id=as_array(data.ids).copy(),
        label=as_array(data.labels).copy(),
        clean_prediction=as_array(clean.argmax(1)),
        clean_margin=as_array(-margin(clean, ClassificationGoal(data.labels))),
    )


def _security_curve(
    target: EvaluationTarget,
    suite: Suite,
    examples: ExampleColumns,
    run: Stages,
    count: int | None,
    progress: Progress,
) -> Curve | None:
    """The security curve; None if the suite or the threat has none, or its attack failed."""
    name, radii = suite.curve, curve_radii(target.threat, suite)
    if name is None or name in run.failures or not radii:
        return None
    attack, wrong = suite.attacks[name], ~examples.correct
    if attack.minimum_norm and bool((run.attacks[name].tried | wrong).all()):
        return curve_by_distances(run.attacks[name], run.images[name], examples.id, wrong, radii)
    return curve_by_attack(target, name, attack, wrong, radii=radii, count=count, progress=progress)


def _numbers(table: EvidenceTable, target: EvaluationTarget, suite: Suite, certified: Certified) -> Metrics:
    """The numbers of the table.

    Raises:
        EvaluationError: evidence refutes a certificate.
    """
    problem = contradiction_problem(table, certified.terms)
    if problem:
        raise EvaluationError(f"{problem}: the certificate is wrong")
    threat = target.threat
    return metrics(
        table,
        certificates=certified.terms,
        classes=target.data.classes,
        limit=float(threat.extent),
        curve=[] if table.curve is None else curve_points(curve_radii(threat, suite)),
    )


def _table(found: _Found) -> EvidenceTable:
    curve = None if found.curve is None else found.curve.columns
    return EvidenceTable(found.examples, found.run.attacks, found.run.worst_case, found.certified.columns, curve)


def _images(target: EvaluationTarget, found: _Found) -> EvidenceImages:
    return EvidenceImages(
        attacks=found.run.images,
        gallery=gallery(target, found.run.images),
        certificates=found.certified.images,
        curve=None if found.curve is None else found.curve.images,
        threat={name: as_array(values) for name, values in target.threat.arrays.items()},
        eight_bit=found.run.eight_bit,
    )


def _summary(target: EvaluationTarget, suite: Suite, mode: Mode, numbers: Metrics, found: _Found) -> Summary:
    return Summary(
        model=model_record(target),
        data=data_record(target),
        threat=threat_record(target.threat),
        suite=suite_record(target, suite, mode),
        metrics=numbers,
        findings=(*found.findings, *found.run.findings),
        masking=(*masking_suspected(found.findings), *found.run.suspicions),
        failures=found.run.failures,
        seconds=found.run.seconds,
        created=now(),
        device=str(target.data.device),
        versions=software_versions(),
    )


def _warn(derived: tuple[str, ...], run: Stages, certified: Certified) -> tuple[str, ...]:
    """Warn the caller of `evaluate`; returns the sentences."""
    found = list(derived)
    if run.unconfirmed:
        found.append(unconfirmed_warning(run.unconfirmed))
    found += [unconfirmed_counterexamples(count, name) for name, count in certified.unconfirmed.items() if count]
    for text in found:
        warnings.warn(text, stacklevel=3)
    return tuple(found)
