"""Run an attack and confirm its successes with a second forward pass."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustly.attacks import Attack, AttackResult
from robustly.evaluation.recording import as_array, stored_images
from robustly.evaluation.target import EvaluationTarget, Progress, attack_generator
from robustly.evidence import StoredImages
from robustly.evidence.schema import AttackColumns


@dataclass(frozen=True)
class Confirmed:
    """The confirmed results of an attack.

    Args:
        columns: columns of the evidence table; `broken` is by this attack alone.
        images: adversarial images.
        unconfirmed: number of successes that a second forward pass did not confirm.
    """

    columns: AttackColumns
    images: StoredImages
    unconfirmed: int


def attack_rows(target: EvaluationTarget, attack: Attack, rows: Tensor, name: str, progress: Progress) -> Confirmed:
    """Run an attack batch by batch; memory holds one batch and the adversarial images.

    An example is broken if the stored image lies in the threat set and a separate forward pass misclassifies it.
    Images that a minimum-norm attack found beyond epsilon are confirmed and stored too. Images of 8 bits are a task
    of `save_in_8_bits`; only NaN outputs count as broken in 8 bits here.

    Args:
        target: the model, the data and the threat.
        attack: the attack.
        rows: rows of the images.
        name: name of the attack, on which its random numbers depend.
        progress: callback.
    """
    found = untried(target)
    images, unconfirmed, done = [found.images], 0, 0
    for chunk in target.chunks(rows):
        progress(name, done, len(rows))
        result = _attacked(target, attack, chunk, name)
        kept, doubtful = _confirm(target, result, chunk, found.columns)
        images.append(kept)
        unconfirmed += doubtful
        done += len(chunk)
    progress(name, done, len(rows))
    return Confirmed(found.columns, StoredImages.joined(images), unconfirmed)


def untried(target: EvaluationTarget) -> Confirmed:
    """The results of an attack that was not run on any image."""
    none = torch.zeros(0, dtype=torch.int64, device=target.data.images.device)
    images = stored_images(target.data.ids[none], target.data.floats(none))
    return Confirmed(AttackColumns.untried(len(target.data)), images, 0)


def _attacked(target: EvaluationTarget, attack: Attack, rows: Tensor, name: str) -> AttackResult:
    data = target.data
    return attack(
        target.model,
        data.floats(rows),
        data.labels[rows],
        threat=target.threat,
        generator=attack_generator(target, name, rows),
    )


def _confirm(
    target: EvaluationTarget, found: AttackResult, rows: Tensor, columns: AttackColumns
) -> tuple[StoredImages, int]:
    """Fill in the columns of a batch; returns the images to store, and the number of unconfirmed successes."""
    data, images = target.data, found.x_adv
    if found.beyond is not None:
        images = torch.where(found.broken.reshape(-1, *[1] * (images.ndim - 1)), images, found.beyond)
    candidates = ((found.broken | found.distance.isfinite()) & ~found.invalid).nonzero()[:, 0]
    images, wanted = images[candidates], rows[candidates]
    theta = None if found.theta is None else found.theta[candidates]
    x, label = data.floats(wanted), data.labels[wanted]
    allowed = target.threat.around(x)
    measured, inside = (call(images if theta is None else theta) for call in (allowed.size, allowed.contains))
    low, high = target.threat.box
    in_box = ((images >= low) & (images <= high)).flatten(1).all(1)
    prediction = target.verdict(images, label).argmax(1)
    holds = in_box & (prediction != label)
    broken = holds & inside
    here, stored = as_array(rows), as_array(wanted[holds])
    # NaN outputs count as misclassified
    columns.broken[here] = columns.broken_8bit[here] = columns.invalid[here] = as_array(found.invalid)
    columns.broken[as_array(wanted[broken])] = True
    columns.distance[stored] = as_array(measured[holds], torch.float32)
    columns.prediction[stored] = as_array(prediction[holds])
    columns.forwards[here], columns.backwards[here] = as_array(found.forwards), as_array(found.backwards)
    columns.tried[here] = True
    if found.margin is not None:
        columns.margin[here] = as_array(found.margin, torch.float32)
    if found.zero_gradients is not None:
        columns.zero_gradients[here] = as_array(found.zero_gradients)
    unconfirmed = int(np.sum(as_array(found.broken[candidates] & ~broken)))
    return stored_images(
        data.ids[wanted[holds]], images[holds], None if theta is None else theta[holds]
    ), unconfirmed
