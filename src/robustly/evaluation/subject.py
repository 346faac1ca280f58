"""What is evaluated, how an attack is run on it, and how a success is confirmed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robustly.attacks import Attack, AttackResult
from robustly.attacks.contract import check_logits, frozen
from robustly.certification import Certificate, CertificateResult
from robustly.data import ImageData
from robustly.objectives import Goal
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threat import ThreatModel

Mode = Literal["every", "worst_case"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model on images under a threat.

    Args:
        model: from images in [0, 1] to logits; on the images' device.
        data: labelled images.
        threat: what the adversary may do.
        seed: seed of every random number.
        batch_size: images at a time.
    """

    model: nn.Module
    data: ImageData
    threat: ThreatModel
    seed: int = 0
    batch_size: int = 250

    def chunks(self, rows: Tensor) -> list[Tensor]:
        """Rows in batches."""
        return [rows[first : first + self.batch_size] for first in range(0, len(rows), self.batch_size)]

    def logits(self, images: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Verdict logits: evaluation mode, full precision, in batches of this subject's size."""
        parts = []
        with frozen(self.model), torch.no_grad():
            for chunk in self.chunks(rows):
                goal = Goal(self.data.labels[chunk])
                parts.append(check_logits(self.model(images(chunk)), goal).float())
        return torch.cat(parts) if parts else torch.zeros(0, 2, device=self.data.images.device)


def run_attack(subject: Subject, attack: Attack, rows: Tensor, name: str, hear: Progress) -> AttackResult:
    """An attack on some rows, in batches."""
    data, results, done = subject.data, [], 0
    for chunk in subject.chunks(rows):
        hear(name, done, len(rows))
        results.append(
            attack(
                subject.model,
                data.floats(chunk),
                data.labels[chunk],
                threat=subject.threat,
                generator=attack_generator(subject, name, chunk),
            )
        )
        done += len(chunk)
    hear(name, done, len(rows))
    if not results:
        none = torch.zeros(0, dtype=torch.int64, device=data.images.device)
        x = data.floats(none)
        return AttackResult(x, none.bool(), x.new_zeros(0), none, none, none, none.bool())
    return _joined(results)


def run_certificate(subject: Subject, certificate: Certificate, name: str, hear: Progress) -> CertificateResult:
    """A certificate on all images, in batches."""
    data, parts = subject.data, []
    for done, chunk in enumerate(subject.chunks(torch.arange(len(data), device=data.images.device))):
        hear(name, done * subject.batch_size, len(data))
        parts.append(
            certificate(
                subject.model,
                data.floats(chunk),
                data.labels[chunk],
                threat=subject.threat,
                generator=attack_generator(subject, name, chunk),
            )
        )
    return CertificateResult(
        torch.cat([part.prediction for part in parts]), torch.cat([part.radius for part in parts])
    )


def unheard(what: str, done: int, total: int) -> None:
    """For work whose progress nobody follows."""


def places(rows: Tensor, total: int) -> Tensor:
    """Where each of `total` rows stands among `rows`, -1 for those that do not, `(total,)`."""
    place = torch.full((total,), -1, dtype=torch.int64, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    return place


def _joined(results: list[AttackResult]) -> AttackResult:
    """The results of consecutive batches as one."""
    columns = [name for name in AttackResult.__dataclass_fields__ if name != "beyond"]
    whole = AttackResult(*(torch.cat([getattr(result, name) for result in results]) for name in columns))
    if all(result.beyond is None for result in results):
        return whole
    beyond = torch.cat([result.x_adv if result.beyond is None else result.beyond for result in results])
    return replace(whole, beyond=beyond)


def attack_generator(subject: Subject, name: str, rows: Tensor) -> KeyedGenerator:
    """The random numbers of an attack in an evaluation."""
    return KeyedGenerator(derive_seed(subject.seed, "evaluation", name), subject.data.ids[rows])


def round_to_8_bits(x_adv: Tensor, x: Tensor) -> Tensor:
    """The image as an 8-bit file holds it: every change rounded towards zero, which stays inside every ball."""
    change = ((x_adv - x) * 255).double()
    return (x * 255 + (change + change.sign() * 1e-4).trunc()).round().clamp(0, 255).to(x.dtype) / 255


def confirm(
    subject: Subject, found: AttackResult, rows: Tensor, name: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Table columns, images worth keeping, and how many examples a second look did not confirm.

    An example counts as broken if the very tensor that is stored lies in the threat set and is misclassified by
    a forward pass of its own. What a minimum-norm attack found beyond epsilon is confirmed and stored alike.
    """
    data, total = subject.data, len(subject.data)
    images, distance = found.x_adv, found.distance
    if found.beyond is not None:
        images = torch.where(found.broken.reshape(-1, *[1] * (images.ndim - 1)), images, found.beyond)
    candidates = ((found.broken | distance.isfinite()) & ~found.invalid).nonzero()[:, 0]
    wanted = rows[candidates]
    place = places(rows, total)
    measured = subject.threat.distance(images[candidates], data.floats(wanted))
    inside = subject.threat.contains(images[candidates], data.floats(wanted))
    logits = subject.logits(lambda chunk: images[place[chunk]], wanted)
    in_box = (images[candidates].flatten(1) >= subject.threat.box[0]).all(1)
    in_box &= (images[candidates].flatten(1) <= subject.threat.box[1]).all(1)
    holds = in_box & (logits.argmax(1) != data.labels[wanted])
    kept = candidates[holds]
    broken = candidates[holds & inside]
    eight_bit = subject.logits(
        lambda chunk: round_to_8_bits(images[place[chunk]], data.floats(chunk)), rows[broken]
    )
    columns = {
        f"{name}.broken": torch.zeros(total, dtype=torch.bool),
        f"{name}.broken_8bit": torch.zeros(total, dtype=torch.bool),
        f"{name}.distance": torch.full((total,), torch.nan),
        f"{name}.prediction": torch.full((total,), -1),
        f"{name}.forwards": torch.zeros(total, dtype=torch.int64),
        f"{name}.backwards": torch.zeros(total, dtype=torch.int64),
        f"{name}.invalid": torch.zeros(total, dtype=torch.bool),
        f"{name}.tried": torch.zeros(total, dtype=torch.bool),
    }
    columns = {key: value.to(rows.device) for key, value in columns.items()}
    columns[f"{name}.broken"][rows[broken]] = True
    columns[f"{name}.broken"][rows[found.invalid]] = True  # no answer is no right answer
    columns[f"{name}.broken_8bit"][rows[found.invalid]] = True
    columns[f"{name}.broken_8bit"][rows[broken]] = eight_bit.argmax(1) != data.labels[rows[broken]]
    columns[f"{name}.distance"][rows[kept]] = measured[holds].to(torch.float32)
    columns[f"{name}.prediction"][rows[kept]] = logits.argmax(1)[holds]
    columns[f"{name}.forwards"][rows] = found.forwards
    columns[f"{name}.backwards"][rows] = found.backwards
    columns[f"{name}.invalid"][rows] = found.invalid
    columns[f"{name}.tried"][rows] = True
    stored = {f"{name}.ids": data.ids[rows[kept]], f"{name}.images": images[kept]}
    unconfirmed = found.broken[candidates] & ~(holds & inside)
    return columns, stored, int(unconfirmed.sum())
