"""The batches of costs are parts that another process carries out, whatever the seed of its own settings is."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import nn

from robustly.attacks import PGD
from robustly.cost_matrix import CostMatrix
from robustly.data import ImageData
from robustly.evaluation import EvaluationTarget, Suite, evaluate
from robustly.evaluation.checkpoint import Speed
from robustly.evaluation.costs import COSTS, evaluate_costs
from robustly.evaluation.costs_8bit import COSTS_8BIT
from robustly.evaluation.parts import ALONE, Arrays, OnPart, Task, Work, no_report
from robustly.evaluation.task_work import work_of_tasks
from robustly.evidence.cost_pairs import CostPairs
from robustly.threats import parse_threat

THREAT = parse_threat("linf:0.1")
COSTS_OF_CLASSES = CostMatrix.of(np.random.default_rng(0).uniform(0.1, 3, (4, 4)) * (1 - np.eye(4)), "random")
SUITE = Suite("test", {"pgd": PGD(steps=2)}, curve=None)


class Elsewhere:
    """A crew whose parts are carried out by another process, with a seed of its own.

    Args:
        model: the network.
        data: the images.
    """

    size = 2

    def __init__(self, model: nn.Module, data: ImageData) -> None:
        self._work_of = work_of_tasks(model, data, THREAT, SUITE, 99, 2)
        self.kinds: set[str] = set()

    def share(
        self, task: Task, parts: Sequence[Arrays], work: Work, on_part: OnPart = no_report
    ) -> Iterator[Arrays]:
        self.kinds.add(task.kind)
        yield from ALONE.share(task, parts, self._work_of(Speed(1, half_pays=True), task), on_part)

    def finished(self, task: Task, parts: Sequence[Arrays]) -> Iterator[Arrays]:
        return iter(())

    def first(self, value: object) -> int:
        raise AssertionError

    def forget_parts(self) -> None:
        self.kinds.add("forgotten")


def test_costs_are_those_of_one_process() -> None:
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(60, 196, (16, 1, 6, 4), generator=draws)
    hidden, last = nn.Linear(24, 32), nn.Linear(32, 4)
    hidden.weight.data = torch.randn(32, 24, generator=draws)
    hidden.bias.data = -0.5 * hidden.weight.data.sum(1)
    last.weight.data, last.bias.data = torch.randn(4, 32, generator=draws), torch.zeros(4)
    model = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), last).eval()
    labels = model(pixels / 255).argmax(1)
    data = ImageData(pixels.to(torch.uint8), labels, torch.arange(16) + 5, ("a", "b", "c", "d"), "noise")
    evidence = evaluate(model, data, THREAT, SUITE, seed=3, batch_size=4)
    target, costs = EvaluationTarget(model, data, THREAT, 3, 4), COSTS_OF_CLASSES
    alone = evaluate_costs(target, evidence, costs, evaluation="0" * 64)
    crew = Elsewhere(model, data)
    found = evaluate_costs(replace(target, crew=crew), evidence, costs, evaluation="0" * 64)
    assert crew.kinds == {COSTS, COSTS_8BIT, "forgotten"}
    assert alone.pairs.tried.any()
    for field in fields(CostPairs):
        assert np.array_equal(getattr(found.pairs, field.name), getattr(alone.pairs, field.name)), field.name
    assert np.array_equal(found.images.images, alone.images.images)
    assert len(alone.images) > 0
    assert found.saved is not None
    assert alone.saved is not None
    assert np.array_equal(found.saved.levels, alone.saved.levels)
