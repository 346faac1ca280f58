"""Statistics of an epoch and their table."""

import csv
import io
from collections.abc import Mapping

import torch
from torch import Tensor

from robustly.runtime import Runtime
from robustly.training.engine.checkpoint import Row
from robustly.training.quantities import quantity_of
from robustly.training.step import Step


class Totals:
    """Sums over an epoch, on the device until its end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, total: Tensor, count: int) -> None:
        """Add a sum over `count` images."""
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        self._sums[name] = self._sums.get(name, zero) + total.detach().double()
        self._counts[name] = self._counts.get(name, 0) + count

    def add_step(self, step: Step, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Add loss, terms, accuracies from the logits that the step has computed, and columns of its parts."""
        count = len(step.y)
        self.add("train_loss", loss * count, count)
        for name, value in terms.items():
            self.add(f"loss_{name}", value * count, count)
        beside = {f"{name}_accuracy": quantity_of(name, "clean") for name in step.networks.trained}
        columns = {"train_clean_accuracy": "clean", "train_robust_accuracy": "adversarial", **beside}
        for name, quantity in columns.items():
            logits = step.quantities.computed(quantity)
            if logits is not None:
                self.add(name, (logits.argmax(1) == step.y).sum(), count)
        for name, values in step.columns.items():
            self.add(name, values.sum(), len(values))

    def state(self, runtime: Runtime) -> dict[str, tuple[float, int]]:
        """Sum and number of images of all processes, by column."""
        found = {}
        for name in self._sums:
            pair = torch.stack([self._sums[name], self._sums[name].new_tensor(self._counts[name])])
            total, count = runtime.sum(pair).tolist()
            found[name] = total, int(count)
        return found

    def restore(self, state: Mapping[str, tuple[float, int]], rank: int) -> None:
        """Continue from the sums of all processes, which the first one adds."""
        for name, (total, count) in state.items():
            share = (total, count) if rank == 0 else (0.0, 0)
            self._sums[name] = torch.tensor(share[0], dtype=torch.float64, device=self._device)
            self._counts[name] = share[1]

    def means(self, runtime: Runtime) -> Row:
        """Means over the images of all processes, by column."""
        return {name: total / count for name, (total, count) in self.state(runtime).items()}


def as_csv(rows: list[Row]) -> str:
    """Rows as CSV, columns in order of first appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
