"""Attack and certify a model on a data set, and return the evidence."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from robustly.attacks import ATTACK_KINDS, Attack
from robustly.data import ImageData
from robustly.evaluation.batch_size import measure
from robustly.evaluation.certificates import Certified, check_certificates, run_certificates
from robustly.evaluation.checkpoint import EvaluationCheckpoint, Speed
from robustly.evaluation.curve import (
    Curve,
    GivenCurve,
    curve_by_attack,
    curve_by_distances,
    curve_points,
    curve_radii,
    with_curve,
)
from robustly.evaluation.derived import (
    derived_warnings,
    gallery,
    picture_words,
    unconfirmed_counterexamples,
    unconfirmed_warning,
)
from robustly.evaluation.diagnostics import cheap_findings, masking_suspected
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
from robustly.evaluation.suites import as_suite
from robustly.evaluation.suites.suite import Suite, in_full_precision
from robustly.evaluation.target import EvaluationTarget, Mode, Progress, no_progress
from robustly.evidence import Evidence, EvidenceImages, EvidenceTable, Finding, Summary
from robustly.evidence.collapse import collapse_words
from robustly.evidence.metrics import contradiction_problem, metrics
from robustly.evidence.provenance import now, software_versions
from robustly.evidence.schema import ExampleColumns
from robustly.evidence.summary import Metrics
from robustly.models import as_classifier
from robustly.objectives import ClassificationGoal, margin
from robustly.threats import Affine, Chain, Threat


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
        curve: "off" for no security curve; sizes of the threat for others than those of the suite, as a list or a
            text ("1/255, 2/255"); None for the curve of the suite.
        checkpoint: storage of finished attacks, or its folder, so that a killed evaluation continues.
        progress: callback with (name, done, total).

    Raises:
        AdapterError: the model is not one, or fails on the images.
        EvaluationError: clean images have NaN or infinite logits, the number of outputs is not that of the classes,
            an attack or a certificate is not defined for the threat or the model, the box of the threat is not
            [0, 1], every attack or a certificate failed, or evidence refutes a certificate.
    """
    _check_arguments(mode, batch_size)
    if isinstance(threat.extent, Tensor):
        raise EvaluationError("an evaluation has one epsilon for all examples, not one per example")
    if isinstance(threat, Chain | Affine):
        threat = threat.whole()  # evidence states limits, not shares of others
    if tuple(threat.box) != (0.0, 1.0):
        raise EvaluationError(
            f"the threat has the box {list(threat.box)}, but images are in [0, 1] here: leave the box out, and "
            "give the size in that unit, such as linf:8/255"
        )
    suite = with_curve(as_suite(suite, threat.kind), curve, threat)
    check_fit(data, threat, suite)
    model = as_classifier(model, data.first(2))
    if isinstance(checkpoint, Path):
        identity = evaluation_identity(
            model, data, threat, suite, mode=mode, seed=seed, batch_size=batch_size, curve_count=curve_count
        )
        checkpoint = EvaluationCheckpoint(checkpoint, identity)
    target = EvaluationTarget(model, data, threat, seed, batch_size or len(data))
    check_certificates(target, suite)
    clean = _clean_logits(replace(target, batch_size=batch_size or 250))
    examples = _clean_columns(target, clean)
    overhead = Overhead()
    with overhead.measured("tuning"):
        target, tuned = _tuned(target, suite, batch_size, checkpoint, examples)
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


def _check_arguments(mode: str, batch_size: int | None) -> None:
    if mode not in get_args(Mode):
        raise EvaluationError(f"mode is {mode!r}: use {' or '.join(get_args(Mode))}")
    if batch_size is not None and batch_size < 1:
        raise EvaluationError(f"batch_size is {batch_size}: use at least 1 image, or None to measure sizes")


def check_fit(data: ImageData, threat: Threat, suite: Suite) -> None:
    """Refuse a threat that the images or an attack of the suite are not defined for, before anything is written.

    Raises:
        EvaluationError: an attack is not defined for the threat.
        ThreatError: the threat is not defined for images of this shape.
    """
    _check_attacks(suite, threat)
    rows = torch.arange(min(1, len(data)), device=data.images.device)
    threat.select(rows).around(data.floats(rows))


def _check_attacks(suite: Suite, threat: Threat) -> None:
    for name, attack in suite.attacks.items():
        if not isinstance(attack, Attack):
            raise EvaluationError(
                f"the attack {name!r} lacks `needs` or `minimum_norm`: see `robustly.attacks.Attack`"
            )
        if not attack.needs.accept(threat):
            raise EvaluationError(
                f"the attack {name!r} of suite {suite.name!r} is {attack.needs.refusal(threat)}; attacks that are "
                f"defined for it: {', '.join(_defined_for(threat))}"
            )


def _defined_for(threat: Threat) -> list[str]:
    """Names of the attacks that are defined for a threat."""
    return [name for name, kind in ATTACK_KINDS.items() if kind().needs.accept(threat)]


def _clean_logits(target: EvaluationTarget) -> Tensor:
    data = target.data
    rows = torch.arange(len(data), device=data.images.device)
    clean = target.logits(data.floats, rows)
    first = rows[: target.batch_size]
    again = target.logits(data.floats, first)
    if bool(((again - clean[: len(first)]).abs() > 1e-4 * clean[: len(first)].abs().amax().clamp_min(1.0)).any()):
        raise EvaluationError(
            "the model's outputs for the same images differ from call to call: wrap a randomised model in "
            "robustly.attacks.adaptive.ExpectationOverTransformation, which averages over its randomness"
        )
    bad = int((~clean.isfinite().all(1)).sum())
    if bad:
        raise EvaluationError(f"the model returns NaN or infinite logits for {bad} of {len(data)} clean images")
    if clean.shape[1] != data.num_classes:
        raise EvaluationError(f"the model has {clean.shape[1]} outputs, the data {data.num_classes} classes")
    _check_batches(target, clean[: len(first)])
    return clean


def _check_batches(target: EvaluationTarget, clean: Tensor) -> None:
    """Refuse models whose outputs for an image depend on the other images; warn if they do a little.

    Networks that quantise with the range of a batch, and half precision, do a little.

    Args:
        target: the model and the images.
        clean: logits of the first batch.
    """
    few = torch.arange(min(len(clean), 8) // 2, device=clean.device)
    if len(few) < 2:
        return
    size = max(float(clean.abs().amax()), 1e-30)
    difference = float((target.logits(target.data.floats, few) - clean[: len(few)]).abs().amax()) / size
    words = "the model's outputs for an image depend on the other images of the batch, so that verdicts do too: "
    if difference > 0.05:
        raise EvaluationError(
            f"{words}layers that use statistics of the batch (BatchNorm in training mode or without running "
            "statistics) need fixed ones"
        )
    half = any(one.dtype in (torch.float16, torch.bfloat16) for one in target.model.parameters())
    if difference > (0.03 if half else 1e-3):
        warnings.warn(f"{words}they differ by {100 * difference:.2g} % of the largest logit", stacklevel=4)


def _tuned(
    target: EvaluationTarget,
    suite: Suite,
    batch_size: int | None,
    checkpoint: EvaluationCheckpoint | None,
    examples: ExampleColumns,
) -> tuple[EvaluationTarget, Suite]:
    """The target with its batch size, and the suite in the precision that is faster here, unless a size is given.

    An evaluation that continues keeps the size and precision with which it began.
    """

    def speed() -> Speed:
        if batch_size:
            return Speed(batch_size, half_pays=True)
        tuning = measure(target)
        return Speed(tuning.batch_size, tuning.half_pays)

    used = speed() if checkpoint is None else checkpoint.begin(speed, examples.clean_margin)
    return replace(target, batch_size=used.batch_size), suite if used.half_pays else in_full_precision(suite)


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
        device=str(target.data.images.device),
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
