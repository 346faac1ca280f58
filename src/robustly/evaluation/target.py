"""What is evaluated, how an attack is run on it, and how a success is confirmed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustly.attacks.core.contract import check_output, frozen
from robustly.attacks.core.model_access import logits_of
from robustly.certification import Certificate, CertificateResult
from robustly.data import ImageData
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats.lp import ThreatModel

Mode = Literal["every", "worst_case"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluationTarget:
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
        parts = [self.verdict(images(chunk), self.data.labels[chunk]) for chunk in self.chunks(rows)]
        return torch.cat(parts) if parts else torch.zeros(0, 2, device=self.data.images.device)

    def verdict(self, images: Tensor, labels: Tensor) -> Tensor:
        """Verdict logits of one batch."""
        if len(images) == 0:
            return torch.zeros(0, 2, device=images.device)
        with frozen(self.model), torch.no_grad():
            return check_output(logits_of(self.model, images), ClassificationGoal(labels)).float()


def run_certificate(
    target: EvaluationTarget, certificate: Certificate, name: str, progress: Progress
) -> CertificateResult:
    """A certificate on all images, in batches."""
    data, parts = target.data, []
    for done, chunk in enumerate(target.chunks(torch.arange(len(data), device=data.images.device))):
        progress(name, done * target.batch_size, len(data))
        parts.append(
            certificate(
                target.model,
                data.floats(chunk),
                data.labels[chunk],
                threat=target.threat,
                generator=attack_generator(target, name, chunk),
            )
        )
    return CertificateResult(
        torch.cat([part.prediction for part in parts]), torch.cat([part.radius for part in parts])
    )


def no_progress(what: str, done: int, total: int) -> None:
    """For work whose progress nobody follows."""


def places(rows: Tensor, total: int) -> Tensor:
    """Where each of `total` rows stands among `rows`, -1 for those that do not, `(total,)`."""
    place = torch.full((total,), -1, dtype=torch.int64, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    return place


def attack_generator(target: EvaluationTarget, name: str, rows: Tensor) -> KeyedGenerator:
    """The random numbers of an attack in an evaluation."""
    return KeyedGenerator(derive_seed(target.seed, "evaluation", name), target.data.ids[rows])


def round_to_8_bits(x_adv: Tensor, x: Tensor) -> Tensor:
    """The image as an 8-bit file holds it: every change rounded towards zero, which stays inside every ball."""
    change = ((x_adv - x) * 255).double()
    return (x * 255 + (change + change.sign() * 1e-4).trunc()).round().clamp(0, 255).to(x.dtype) / 255
