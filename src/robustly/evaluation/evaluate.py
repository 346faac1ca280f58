"""Attack and certify a model on a data set, and keep the evidence."""

import warnings
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.data import ImageData
from robustly.evaluation.batch_size import in_full_precision, measure
from robustly.evaluation.checkpoint import Partial
from robustly.evaluation.curve import curve_by_attack, curve_by_distances, curve_radii
from robustly.evaluation.diagnostics import cheap_findings, masking_suspected
from robustly.evaluation.evidence import Evidence
from robustly.evaluation.metrics import contradictions, metrics
from robustly.evaluation.provenance import describe
from robustly.evaluation.stages import EvaluationError, Stages, run_stages
from robustly.evaluation.suites import suite_named
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget, Mode, Progress, no_progress, run_certificate
from robustly.objectives import ClassificationGoal, margin
from robustly.threats.exact_size import fraction_text
from robustly.threats.lp import ThreatModel

GALLERY = 12


def evaluate(
    model: nn.Module,
    data: ImageData,
    threat: ThreatModel,
    suite: Suite | str,
    *,
    mode: Mode = "every",
    seed: int = 0,
    batch_size: int | None = None,
    curve_count: int | None = 500,
    partial: Partial | None = None,
    progress: Progress | None = None,
    about: dict[str, Any] | None = None,
) -> Evidence:
    """Evaluate a model and return the evidence.

    Args:
        model: any module from images in [0, 1] to logits.
        data: labelled images, on the model's device.
        threat: what the adversary may do; one epsilon for all examples.
        suite: attacks and certificates, or the name of a known suite.
        mode: "every" runs every attack on every example that the model has right (a table as in papers);
            "worst_case" spares each attack what an earlier one broke (the worst case is the same verdict, sooner).
            Suites that hand survivors on, such as AutoAttack, run in "worst_case" whatever is said here.
        seed: seed of every random number.
        batch_size: images at a time; the verdict does not depend on it. Without it two or three are measured, and
            whether searching in bfloat16 pays.
        curve_count: how many examples, from the first, the security curve is drawn from; None takes all.
        partial: where to keep what finished attacks found, so that a killed evaluation goes on.
        progress: hears (what, done, total).
        about: more entries of the summary: who was tested.

    Raises:
        EvaluationError: NaN or infinite logits on clean images; another number of outputs than classes; an attack
            that is not defined for the threat's norm; every attack failed.
    """
    if isinstance(threat.epsilon, Tensor):
        raise EvaluationError("an evaluation has one epsilon for all examples, not one per example")
    suite = suite_named(suite, threat.norm) if isinstance(suite, str) else suite
    mode = "worst_case" if suite.worst_case else mode
    _check_attacks(suite, threat)
    progress = progress or no_progress
    target = EvaluationTarget(model, data, threat, seed, batch_size or len(data))
    clean = _clean_logits(replace(target, batch_size=batch_size or 250))
    tuning = None
    if batch_size is None:
        tuning = measure(target)
        target = replace(target, batch_size=tuning.batch_size)
    tuned = suite if tuning is None or tuning.half_pays else in_full_precision(suite)
    label = data.labels
    table: dict[str, Tensor] = {
        "id": data.ids,
        "label": label,
        "clean_prediction": clean.argmax(1),
        "clean_margin": -margin(clean, ClassificationGoal(label)),
    }
    wrong = table["clean_prediction"] != label
    findings = cheap_findings(target)
    run = run_stages(
        target, tuned, table, mode=mode, suspicions=masking_suspected(findings), partial=partial, progress=progress
    )
    table, images = run.table, run.images
    table |= _certificates(target, suite, progress)
    radii = curve_radii(threat, suite) if suite.curve not in run.failures else []
    if radii:
        name, attack = suite.curve or "", tuned.attacks[suite.curve or ""]
        met_all = bool((table[f"{name}.tried"] | wrong).all())
        if attack.minimum_norm and met_all:
            columns, kept = curve_by_distances(table, images, name, wrong, radii)
        else:
            columns, kept = curve_by_attack(
                target, name, attack, wrong, radii=radii, count=curve_count, progress=progress
            )
        table |= columns
        images |= kept
    images |= _gallery(target, table, images, list(suite.attacks))
    table = {name: values.cpu() for name, values in table.items()}
    certified = {name: certificate.certifies for name, certificate in suite.certificates.items()}
    contradicted = int(contradictions(table, list(suite.attacks), certified).sum())
    if contradicted:
        raise EvaluationError(
            f"{contradicted} examples are certified at a radius at which an attack broke them: "
            "a certificate is wrong"
        )
    numbers = metrics(
        table,
        attacks=list(suite.attacks),
        certificates=certified,
        classes=data.classes,
        epsilon=float(threat.epsilon),
        curve=[float(radius) for radius in radii],
    )
    for name, value in run.seconds.items():
        numbers["attacks"][name]["seconds"] = value
    summary = describe(target, suite, mode) | numbers
    summary["precision"] = "full" if tuned is not suite else "as the suite says"
    summary["failures"] = run.failures
    summary["findings"] = [asdict(finding) for finding in (*findings, *run.findings)]
    summary["masking"] = [*masking_suspected(findings), *run.suspicions]
    if radii:
        summary["security_curve"] |= {
            "attack": suite.title(suite.curve or ""),
            "epsilon_text": ["0", *(fraction_text(radius) for radius in radii)],
        }
    summary["warnings"] = _warnings(clean, numbers, run)
    return Evidence(table, images, summary | (about or {}))


def _clean_logits(target: EvaluationTarget) -> Tensor:
    data = target.data
    rows = torch.arange(len(data), device=data.images.device)
    clean = target.logits(data.floats, rows)
    first = rows[: target.batch_size]
    again = target.logits(data.floats, first)
    if bool(((again - clean[: len(first)]).abs() > 1e-4 * clean[: len(first)].abs().amax().clamp_min(1.0)).any()):
        raise EvaluationError(
            "the model answers the same images differently each time: wrap a randomised model in "
            "robustly.attacks.adaptive.ExpectationOverTransformation, which averages over its randomness"
        )
    bad = int((~clean.isfinite().all(1)).sum())
    if bad:
        raise EvaluationError(f"the model answers {bad} of {len(data)} clean images with NaN or infinite logits")
    if clean.shape[1] != data.num_classes:
        raise EvaluationError(f"the model has {clean.shape[1]} outputs, the data {data.num_classes} classes")
    return clean


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether every row is non-negative and adds up to one."""
    sums = logits.sum(1)
    return bool((logits >= -1e-5).all() and (logits <= 1 + 1e-5).all() and ((sums - 1).abs() <= 1e-4).all())


def _certificates(target: EvaluationTarget, suite: Suite, progress: Progress) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = {}
    for name, certificate in suite.certificates.items():
        found = run_certificate(target, certificate, name, progress)
        columns |= {f"certificate.{name}.radius": found.radius, f"certificate.{name}.prediction": found.prediction}
    return columns


def _gallery(
    target: EvaluationTarget, table: dict[str, Tensor], images: dict[str, Tensor], attacks: list[str]
) -> dict[str, Tensor]:
    """Originals of some broken examples, one class after the other, for the picture grid."""
    data = target.data
    shown = torch.zeros(len(data), dtype=torch.bool, device=data.images.device)
    for name in attacks:
        shown |= torch.isin(data.ids, images[f"{name}.ids"])
    rows: list[int] = []
    by_class = [((data.labels == label) & shown).nonzero()[:, 0].tolist() for label in range(data.num_classes)]
    for turn in range(GALLERY):
        rows += [members[turn] for members in by_class if turn < len(members)]
    chosen = torch.tensor(rows[:GALLERY], dtype=torch.int64, device=data.images.device)
    return {"gallery.ids": data.ids[chosen], "gallery.images": data.floats(chosen)}


def _check_attacks(suite: Suite, threat: ThreatModel) -> None:
    for name, attack in suite.attacks.items():
        if not isinstance(attack, Attack):
            raise EvaluationError(
                f"the attack {name!r} lacks `needs` or `minimum_norm`: see `robustly.attacks.Attack`"
            )
        if not attack.needs.accept(threat):
            raise EvaluationError(
                f"the attack {name!r} of suite {suite.name!r} is defined for {attack.needs.words()}, "
                f"the threat is {threat}"
            )


def _warnings(clean: Tensor, numbers: dict[str, Any], run: Stages) -> list[str]:
    found = [
        f"The attack {name!r} failed ({message}). Robust accuracy is an upper bound without it."
        for name, message in run.failures.items()
    ]
    if looks_like_probabilities(clean):
        found.append(
            "The model seems to return probabilities, not logits: attacks see vanishing gradients, and robust "
            "accuracy may be overestimated. Remove the final softmax."
        )
    if numbers["invalid"]:
        found.append(f"The model answered {numbers['invalid']} attacked images with NaN; they count as broken.")
    if run.unconfirmed:
        found.append(
            f"{run.unconfirmed} attack successes did not survive a second forward pass and were not counted."
        )
    for text in found:
        warnings.warn(text, stacklevel=3)
    return found
