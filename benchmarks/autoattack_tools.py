"""Verdict, CPU time and counted passes of our suites, and of torchattacks' four attacks of AutoAttack."""

import json
import time
from dataclasses import replace
from pathlib import Path

import torch
import torchattacks
from torch import Tensor, nn

from robustly import ThreatModel, evaluate
from robustly.data import ImageData
from robustly.evaluation import suite_named


class Passes:
    """Counts that a model shares with its copies."""

    def __init__(self) -> None:
        self.forwards, self.backwards = 0, 0

    def __deepcopy__(self, memo: dict[int, object]) -> "Passes":
        return self

    def back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class Counted(nn.Module):
    """A model that counts the images of its forward passes and the gradients of its backward passes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, Passes()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        self.passes.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self.passes.back)
        return logits


def by_torchattacks(model: Counted, data: ImageData, threat: ThreatModel) -> Tensor:
    """Images unbroken by AutoAttack's four attacks, batch by batch, each on the images unbroken before it."""
    eps = float(threat.epsilon)
    attacks = [
        torchattacks.APGD(model, eps=eps, steps=100, loss="ce", n_restarts=1),
        torchattacks.APGDT(model, eps=eps, steps=100, n_classes=10, n_restarts=1),
        torchattacks.FAB(model, eps=eps, steps=100, multi_targeted=True, n_classes=10, n_restarts=1),
        torchattacks.Square(model, eps=eps, n_queries=5000, n_restarts=1),
    ]
    robust = torch.zeros(len(data), dtype=torch.bool)
    for rows in torch.arange(len(data)).split(250):
        x, y = data.floats(rows), data.labels[rows]
        with torch.no_grad():
            unbroken = (model(x).argmax(1) == y).nonzero()[:, 0]
        for attack in attacks:
            if len(unbroken):
                found = attack(x[unbroken], y[unbroken])
                with torch.no_grad():
                    unbroken = unbroken[model(found).argmax(1) == y[unbroken]]
        robust[rows[unbroken]] = True
    return robust


def by_us(name: str, model: Counted, data: ImageData, threat: ThreatModel, batch_size: int | None) -> Tensor:
    """Images unbroken by one of our suites."""
    suite = replace(suite_named(name, threat.norm), curve=None)
    return torch.from_numpy(~evaluate(model, data, threat, suite, batch_size=batch_size).table.worst_case.broken)


def measured(
    tool: str,
    model: nn.Module,
    data: ImageData,
    threat: ThreatModel,
    record: Path,
    batch_size: int | None = None,
) -> dict[str, object]:
    """Verdicts and cost of one tool on one network, from the record if there is one.

    `batch_size` is that of our suites; None lets them measure it, as users do.
    """
    if record.exists():
        stored: dict[str, object] = json.loads(record.read_text())
        return stored
    counted = Counted(model).eval()  # torchattacks restores the mode of the outer module
    for parameter in counted.parameters():
        parameter.requires_grad_(True)  # the default for users of all tools
    began = time.process_time()
    if tool == "torchattacks":
        robust = by_torchattacks(counted, data, threat)
    else:
        robust = by_us(tool, counted, data, threat, batch_size)
    row = {
        "robust": robust.tolist(),
        "seconds": time.process_time() - began,
        "forwards": counted.passes.forwards,
        "backwards": counted.passes.backwards,
    }
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(row))
    return row
