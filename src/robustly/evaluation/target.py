"""The target of an evaluation: a model on images under a threat."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from robustly.attacks.core.compiled import CompiledNetwork
from robustly.attacks.core.contract import check_output, frozen
from robustly.attacks.core.model_access import logits_of
from robustly.data import ImageData
from robustly.evaluation.parts import ALONE, Crew
from robustly.evidence.provenance import Mode
from robustly.evidence.schema import Whole
from robustly.memory import in_halves
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats.contract import Threat

__all__ = ["EvaluationTarget", "Mode", "Progress"]

Progress = Callable[[str, int, int], None]
Rows = TypeVar("Rows", Tensor, Whole)


@dataclass(frozen=True)
class EvaluationTarget:
    """A model on images under a threat.

    Args:
        model: maps images in [0, 1] to logits; on the images' device.
        data: labelled images.
        threat: the threat model.
        seed: seed of every random number.
        batch_size: images per batch.
        crew: the processes that carry out the batches.
        compiled: the model with compiled passes for searches; None for none. Verdicts are those of the model.
    """

    model: nn.Module
    data: ImageData
    threat: Threat
    seed: int = 0
    batch_size: int = 250
    crew: Crew = ALONE
    compiled: CompiledNetwork | None = None

    @property
    def attacked(self) -> nn.Module:
        """The model for searches."""
        return self.model if self.compiled is None else self.compiled

    def chunks(self, rows: Rows) -> list[Rows]:
        """Rows, split into batches."""
        return [rows[first : first + self.batch_size] for first in range(0, len(rows), self.batch_size)]

    def logits(self, images: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Logits for verdicts: in evaluation mode, in full precision, batch by batch."""
        chunks = [
            in_halves(lambda some: self.verdict(images(some), self.data.labels[some]), chunk)
            for chunk in self.chunks(rows)
        ]
        parts = [part for chunk in chunks for part in chunk]
        return torch.cat(parts) if parts else torch.zeros(0, 2, device=self.data.device)

    def verdict(self, images: Tensor, labels: Tensor) -> Tensor:
        """Logits for verdicts of one batch."""
        if len(images) == 0:
            return torch.zeros(0, 2, device=images.device)
        with frozen(self.model), torch.no_grad():
            return check_output(logits_of(self.model, images), ClassificationGoal(labels)).float()


def no_progress(name: str, done: int, total: int) -> None:
    """Progress callback that does nothing."""


def places(rows: Tensor, total: int) -> Tensor:
    """Position of each of `total` rows in `rows`, -1 if it is missing, `(total,)`."""
    place = torch.full((total,), -1, dtype=torch.int64, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    return place


def attack_generator(target: EvaluationTarget, name: str, rows: Tensor) -> KeyedGenerator:
    """The random numbers of an attack in an evaluation."""
    return KeyedGenerator(derive_seed(target.seed, "evaluation", name), target.data.ids[rows])
