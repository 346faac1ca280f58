"""Attack and certify a model on a data set, and keep the evidence."""

import time
import warnings
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.data import ImageData
from robustly.evaluation.describe import describe
from robustly.evaluation.evidence import CURVE, Evidence
from robustly.evaluation.subject import Mode, Progress, Subject, confirm, run_attack, run_certificate, unheard
from robustly.evaluation.suites import Suite
from robustly.evaluation.summary import contradictions, figures
from robustly.objectives import Goal, margin
from robustly.threat import ThreatModel, fraction_text

GALLERY = 12


class EvaluationError(ValueError):
    """A model or data set that cannot be evaluated; the message says why."""


def evaluate(
    model: nn.Module,
    data: ImageData,
    threat: ThreatModel,
    suite: Suite,
    *,
    mode: Mode = "every",
    seed: int = 0,
    batch_size: int = 250,
    curve_count: int | None = 500,
    progress: Progress | None = None,
    about: dict[str, Any] | None = None,
) -> Evidence:
    """Evaluate a model and return the evidence.

    Args:
        model: any module from images in [0, 1] to logits.
        data: labelled images, on the model's device.
        threat: what the adversary may do; one epsilon for all examples.
        suite: attacks and certificates.
        mode: "every" runs every attack on every example that the model has right (a table as in papers);
            "worst_case" spares each attack what an earlier one broke (the worst case is the same verdict, sooner).
        seed: seed of every random number.
        batch_size: images at a time; the verdict does not depend on it.
        curve_count: how many examples, from the first, the security curve is drawn from; None takes all.
        progress: hears (what, done, total).
        about: more entries of the summary: who was tested.

    Raises:
        EvaluationError: NaN or infinite logits on clean images; another number of outputs than classes.
        AttackError: see `Attack`.
    """
    if isinstance(threat.epsilon, Tensor):
        raise EvaluationError("an evaluation has one epsilon for all examples, not one per example")
    subject = Subject(model, data, threat, seed, batch_size)
    hear = progress or unheard
    clean = _clean_logits(subject)
    label = data.labels
    table: dict[str, Tensor] = {
        "id": data.ids,
        "label": label,
        "clean_prediction": clean.argmax(1),
        "clean_margin": -margin(clean, Goal(label)),
    }
    wrong = table["clean_prediction"] != label
    images: dict[str, Tensor] = {}
    standing, standing_8bit = ~wrong, ~wrong
    seconds: dict[str, float] = {}
    unconfirmed = 0
    for name, attack in suite.attacks.items():
        began = time.perf_counter()
        rows = (standing if mode == "worst_case" else ~wrong).nonzero()[:, 0]
        found = run_attack(subject, attack, rows, name, hear)
        columns, kept, doubtful = confirm(subject, found, rows, name)
        broken_before = ~standing if mode == "worst_case" else wrong
        broken_8bit_before = ~standing_8bit if mode == "worst_case" else wrong
        columns[f"{name}.broken"] |= broken_before
        columns[f"{name}.broken_8bit"] |= broken_8bit_before
        standing &= ~columns[f"{name}.broken"]
        standing_8bit &= ~columns[f"{name}.broken_8bit"]
        table |= columns
        images |= kept
        unconfirmed += doubtful
        seconds[name] = time.perf_counter() - began
    table |= {"worst_case.broken": ~standing, "worst_case.broken_8bit": ~standing_8bit}
    table |= _certificates(subject, suite, hear)
    radii = _radii(threat, suite)
    if radii:
        name, attack = suite.curve or "", suite.attacks[suite.curve or ""]
        if getattr(attack, "minimum_norm", False) and mode == "every":
            columns, kept = _curve_of_distances(table, images, name, wrong, radii)
        else:
            columns, kept = _curve(subject, name, attack, wrong, radii=radii, count=curve_count, hear=hear)
        table |= columns
        images |= kept
    images |= _gallery(subject, table, images, list(suite.attacks))
    table = {name: values.cpu() for name, values in table.items()}
    certified = {name: certificate.certifies for name, certificate in suite.certificates.items()}
    contradicted = int(contradictions(table, list(suite.attacks), certified).sum())
    if contradicted:
        raise EvaluationError(
            f"{contradicted} examples are certified at a radius at which an attack broke them: "
            "a certificate is wrong"
        )
    numbers = figures(
        table,
        attacks=list(suite.attacks),
        certificates=certified,
        classes=data.classes,
        epsilon=float(threat.epsilon),
        curve=[float(radius) for radius in radii],
    )
    for name, value in seconds.items():
        numbers["attacks"][name]["seconds"] = value
    summary = describe(subject, suite, mode) | numbers
    if radii:
        summary["security_curve"] |= {
            "attack": suite.title(suite.curve or ""),
            "epsilon_text": ["0", *(fraction_text(radius) for radius in radii)],
        }
    summary["warnings"] = _warnings(clean, numbers, unconfirmed)
    return Evidence(table, images, summary | (about or {}))


def _clean_logits(subject: Subject) -> Tensor:
    data = subject.data
    rows = torch.arange(len(data), device=data.images.device)
    clean = subject.logits(data.floats, rows)
    first = rows[: subject.batch_size]
    again = subject.logits(data.floats, first)
    if bool(((again - clean[: len(first)]).abs() > 1e-4 * clean[: len(first)].abs().amax().clamp_min(1.0)).any()):
        raise EvaluationError(
            "the model answers the same images differently each time: a randomised model needs attacks that "
            "average over its randomness, which this version does not have; fix its random numbers to evaluate it"
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


def _certificates(subject: Subject, suite: Suite, hear: Progress) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = {}
    for name, certificate in suite.certificates.items():
        found = run_certificate(subject, certificate, name, hear)
        columns |= {f"certificate.{name}.radius": found.radius, f"certificate.{name}.prediction": found.prediction}
    return columns


def _radii(threat: ThreatModel, suite: Suite) -> list[Fraction]:
    """Radii of the security curve that make sense for the threat."""
    if suite.curve is None or isinstance(threat.epsilon, Tensor) or threat.epsilon == 0:
        return []
    radii = [threat.epsilon * Fraction(factor).limit_denominator(1000) for factor in suite.curve_factors]
    if threat.norm == "l0":
        radii = [Fraction(round(radius)) for radius in radii if round(radius) > 0]
    width = Fraction(threat.box[1]) - Fraction(threat.box[0])
    return sorted({radius for radius in radii if threat.norm != "linf" or radius <= width})


def _curve(
    subject: Subject,
    name: str,
    attack: Attack,
    wrong: Tensor,
    *,
    radii: list[Fraction],
    count: int | None,
    hear: Progress,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Accuracy against epsilon: ascending radii, and what broke once stays broken."""
    data = subject.data
    distance = torch.full((len(data),), torch.nan, device=wrong.device)
    distance[:count] = torch.where(wrong[:count], 0.0, torch.inf)
    ids, images = [], []
    for done, radius in enumerate(radii):
        hear("security curve", done, len(radii))
        rows = (distance == torch.inf).nonzero()[:, 0]
        at_radius = replace(subject, threat=subject.threat.with_epsilon(radius))
        found = run_attack(at_radius, attack, rows, name, unheard)
        columns, kept, _ = confirm(at_radius, found, rows, CURVE)
        distance[columns[f"{CURVE}.broken"] & (distance == torch.inf)] = float(radius)
        ids.append(kept[f"{CURVE}.ids"])
        images.append(kept[f"{CURVE}.images"])
    hear("security curve", len(radii), len(radii))
    return {f"{CURVE}.distance": distance}, {f"{CURVE}.ids": torch.cat(ids), f"{CURVE}.images": torch.cat(images)}


def _curve_of_distances(
    table: dict[str, Tensor], images: dict[str, Tensor], name: str, wrong: Tensor, radii: list[Fraction]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One run of a minimum-norm attack is the whole curve: each example breaks at the next radius of the grid."""
    found = table[f"{name}.distance"]
    grid = torch.tensor([float(radius) for radius in radii], device=found.device)
    place = torch.bucketize(found.nan_to_num(torch.inf), grid * (1 + 1e-6))
    distance = torch.cat([grid, grid.new_tensor([torch.inf])])[place.clamp_max(len(grid))]
    distance = torch.where(wrong, 0.0, distance)
    reached = table["id"][distance.isfinite() & ~wrong]
    stored = torch.isin(images[f"{name}.ids"], reached)
    return {f"{CURVE}.distance": distance}, {
        f"{CURVE}.ids": images[f"{name}.ids"][stored],
        f"{CURVE}.images": images[f"{name}.images"][stored],
    }


def _gallery(
    subject: Subject, table: dict[str, Tensor], images: dict[str, Tensor], attacks: list[str]
) -> dict[str, Tensor]:
    """Originals of some broken examples, one class after the other, for the picture grid."""
    data = subject.data
    shown = torch.zeros(len(data), dtype=torch.bool, device=data.images.device)
    for name in attacks:
        shown |= torch.isin(data.ids, images[f"{name}.ids"])
    rows: list[int] = []
    by_class = [((data.labels == label) & shown).nonzero()[:, 0].tolist() for label in range(data.num_classes)]
    for turn in range(GALLERY):
        rows += [members[turn] for members in by_class if turn < len(members)]
    chosen = torch.tensor(rows[:GALLERY], dtype=torch.int64, device=data.images.device)
    return {"gallery.ids": data.ids[chosen], "gallery.images": data.floats(chosen)}


def _warnings(clean: Tensor, numbers: dict[str, Any], unconfirmed: int) -> list[str]:
    found = []
    if looks_like_probabilities(clean):
        found.append(
            "The model seems to return probabilities, not logits: attacks see vanishing gradients, and robust "
            "accuracy may be overestimated. Remove the final softmax."
        )
    if numbers["invalid"]:
        found.append(f"The model answered {numbers['invalid']} attacked images with NaN; they count as broken.")
    if unconfirmed:
        found.append(f"{unconfirmed} attack successes did not survive a second forward pass and were not counted.")
    for text in found:
        warnings.warn(text, stacklevel=3)
    return found
