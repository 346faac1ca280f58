"""Run an attack on some images and keep only what a second look confirms."""

import torch
from torch import Tensor

from robustly.attacks import Attack, AttackResult
from robustly.evaluation.target import EvaluationTarget, Progress, attack_generator, round_to_8_bits

Columns = dict[str, Tensor]


def attack_rows(
    target: EvaluationTarget,
    attack: Attack,
    rows: Tensor,
    name: str,
    progress: Progress,
    *,
    column: str | None = None,
) -> tuple[Columns, dict[str, Tensor], int]:
    """Table columns, images worth keeping, and how many successes a second look did not confirm.

    Batch by batch, so that memory holds one batch and what was broken. An example counts as broken if the very
    tensor that is stored lies in the threat set and is misclassified by a forward pass of its own. What a
    minimum-norm attack found beyond epsilon is confirmed and stored alike.

    Args:
        subject: what is attacked.
        attack: with what.
        rows: which images.
        name: of the attack; its random numbers hang on it.
        hear: progress.
        column: what the table calls it, if not by its name.
    """
    column = column or name
    columns, images = empty_columns(target, column)
    kept_rows, kept_images, unconfirmed, done = [rows[:0]], [images[f"{column}.images"]], 0, 0
    for chunk in target.chunks(rows):
        progress(name, done, len(rows))
        found = _attacked(target, attack, chunk, name)
        kept, tensors, doubtful = _confirm(target, found, chunk, column, columns)
        kept_rows.append(kept)
        kept_images.append(tensors)
        unconfirmed += doubtful
        done += len(chunk)
    progress(name, done, len(rows))
    stored = {f"{column}.ids": target.data.ids[torch.cat(kept_rows)], f"{column}.images": torch.cat(kept_images)}
    return columns, stored, unconfirmed


def broken_by(target: EvaluationTarget, attack: Attack, rows: Tensor, name: str) -> Tensor:
    """Which of some rows an attack breaks by its own account, `(M,)` bool."""
    parts = [_attacked(target, attack, chunk, name).broken for chunk in target.chunks(rows)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool, device=rows.device)


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
    target: EvaluationTarget, found: AttackResult, rows: Tensor, name: str, columns: Columns
) -> tuple[Tensor, Tensor, int]:
    """Fill in the columns of a batch; returns the rows and images to keep, and how many were not confirmed."""
    data, images = target.data, found.x_adv
    if found.beyond is not None:
        images = torch.where(found.broken.reshape(-1, *[1] * (images.ndim - 1)), images, found.beyond)
    candidates = ((found.broken | found.distance.isfinite()) & ~found.invalid).nonzero()[:, 0]
    images, wanted = images[candidates], rows[candidates]
    x, label = data.floats(wanted), data.labels[wanted]
    measured, inside = target.threat.distance(images, x), target.threat.contains(images, x)
    low, high = target.threat.box
    in_box = ((images >= low) & (images <= high)).flatten(1).all(1)
    prediction = target.verdict(images, label).argmax(1)
    holds = in_box & (prediction != label)
    broken = holds & inside
    rounded = target.verdict(round_to_8_bits(images[broken], x[broken]), label[broken]).argmax(1)
    columns[f"{name}.broken"][wanted[broken]] = True
    columns[f"{name}.broken"][rows[found.invalid]] = True  # no answer is no right answer
    columns[f"{name}.broken_8bit"][rows[found.invalid]] = True
    columns[f"{name}.broken_8bit"][wanted[broken]] = rounded != label[broken]
    columns[f"{name}.distance"][wanted[holds]] = measured[holds].to(torch.float32)
    columns[f"{name}.prediction"][wanted[holds]] = prediction[holds]
    columns[f"{name}.forwards"][rows] = found.forwards
    columns[f"{name}.backwards"][rows] = found.backwards
    columns[f"{name}.invalid"][rows] = found.invalid
    columns[f"{name}.tried"][rows] = True
    if found.margin is not None:
        columns[f"{name}.margin"][rows] = found.margin.to(torch.float32)
    if found.zero_gradients is not None:
        columns[f"{name}.zero_gradients"][rows] = found.zero_gradients
    unconfirmed = int((found.broken[candidates] & ~broken).sum())
    return wanted[holds], images[holds], unconfirmed


def empty_columns(target: EvaluationTarget, name: str) -> tuple[Columns, dict[str, Tensor]]:
    """Table columns and images of an attack that has attacked nothing."""
    total, device = len(target.data), target.data.images.device
    columns = {
        f"{name}.broken": torch.zeros(total, dtype=torch.bool),
        f"{name}.broken_8bit": torch.zeros(total, dtype=torch.bool),
        f"{name}.distance": torch.full((total,), torch.nan),
        f"{name}.prediction": torch.full((total,), -1),
        f"{name}.forwards": torch.zeros(total, dtype=torch.int64),
        f"{name}.backwards": torch.zeros(total, dtype=torch.int64),
        f"{name}.invalid": torch.zeros(total, dtype=torch.bool),
        f"{name}.tried": torch.zeros(total, dtype=torch.bool),
        f"{name}.margin": torch.full((total,), torch.nan),
        f"{name}.zero_gradients": torch.zeros(total, dtype=torch.int64),
    }
    none = torch.zeros(0, dtype=torch.int64, device=device)
    images = {f"{name}.ids": target.data.ids[none], f"{name}.images": target.data.floats(none)}
    return {key: value.to(device) for key, value in columns.items()}, images
