"""Run an attack and confirm its successes with a second forward pass."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustly.attacks import Attack, AttackResult
from robustly.evaluation.parts import Arrays, Task
from robustly.evaluation.recording import as_array, stored_images
from robustly.evaluation.target import EvaluationTarget, Progress, attack_generator
from robustly.evidence import StoredImages
from robustly.evidence.schema import AttackColumns, Whole, column_fields
from robustly.memory import in_halves


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
    images, unconfirmed = [found.images], 0
    chunks = [as_array(chunk) for chunk in target.chunks(rows)]
    parts = target.crew.share(
        Task("attack", name, target.threat.extent_text),
        [{"rows": chunk} for chunk in chunks],
        lambda part: attack_part(target, attack, name, part),
        lambda done: progress(name, min(done * target.batch_size, len(rows)), len(rows)),
    )
    for chunk, part in zip(chunks, parts, strict=True):
        for column in column_fields(AttackColumns):
            getattr(found.columns, column)[chunk] = part[column]
        images.append(StoredImages(part["ids"], part["images"], part.get("theta")))
        unconfirmed += int(part["unconfirmed"][0])
    progress(name, len(rows), len(rows))
    return Confirmed(found.columns, StoredImages.joined(images), unconfirmed)


def attack_part(target: EvaluationTarget, attack: Attack, name: str, part: Arrays) -> Arrays:
    """Attack one batch, `rows` of a part; returns the columns of its examples, and the images to store.

    A batch that does not fit into the memory is attacked in halves, as no result depends on the other images.
    """
    found = in_halves(lambda rows: _attack_rows(target, attack, name, rows), part["rows"])
    if len(found) == 1:
        return found[0]
    joined = {key: np.concatenate([one[key] for one in found]) for key in found[0]}
    return joined | {"unconfirmed": joined["unconfirmed"].sum(keepdims=True)}


def _attack_rows(target: EvaluationTarget, attack: Attack, name: str, places: Whole) -> Arrays:
    rows = torch.from_numpy(places).to(target.data.device)
    columns = AttackColumns.untried(len(rows))
    kept, unconfirmed = _confirm(target, _attacked(target, attack, rows, name), rows, columns)
    return {
        **{column: getattr(columns, column) for column in column_fields(AttackColumns)},
        "ids": kept.ids,
        "images": kept.images,
        **({} if kept.theta is None else {"theta": kept.theta}),
        "unconfirmed": np.array([unconfirmed]),
    }


def untried(target: EvaluationTarget) -> Confirmed:
    """The results of an attack that was not run on any image."""
    none = torch.zeros(0, dtype=torch.int64, device=target.data.device)
    images = stored_images(target.data.ids[none], target.data.floats(none))
    return Confirmed(AttackColumns.untried(len(target.data)), images, 0)


def _attacked(target: EvaluationTarget, attack: Attack, rows: Tensor, name: str) -> AttackResult:
    data = target.data
    return attack(
        target.attacked,
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
    stored = as_array(candidates[holds])
    # NaN outputs count as misclassified
    columns.broken[:] = columns.broken_8bit[:] = columns.invalid[:] = as_array(found.invalid)
    columns.broken[as_array(candidates[broken])] = True
    columns.distance[stored] = as_array(measured[holds], torch.float32)
    columns.prediction[stored] = as_array(prediction[holds])
    columns.forwards[:], columns.backwards[:] = as_array(found.forwards), as_array(found.backwards)
    columns.tried[:] = True
    if found.margin is not None:
        columns.margin[:] = as_array(found.margin, torch.float32)
    if found.zero_gradients is not None:
        columns.zero_gradients[:] = as_array(found.zero_gradients)
    unconfirmed = int(np.sum(as_array(found.broken[candidates] & ~broken)))
    return stored_images(
        data.ids[wanted[holds]], images[holds], None if theta is None else theta[holds]
    ), unconfirmed
