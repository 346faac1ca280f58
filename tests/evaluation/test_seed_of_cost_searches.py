"""The searches for 8-bit images of costly classes draw numbers of the seed, the example and the class alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import APGD, PGD
from robustly.cost_matrix import read_costs
from robustly.data import ImageData
from robustly.evaluation import EvaluationTarget, Suite, costs_8bit, evaluate
from robustly.evaluation.costs import evaluate_costs
from robustly.evaluation.eight_bit import Searched
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator
from robustly.threats import parse_threat

THREAT = parse_threat("linf:0.1")
Drawn = dict[tuple[int, int], tuple[float, ...]]


def target_of(ids: torch.Tensor) -> EvaluationTarget:
    """A model whose logits are the four pixels, and images all of whose classes are within reach."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(110, 130, (len(ids), 1, 2, 2), generator=draws).to(torch.uint8)
    data = ImageData(pixels, pixels.flatten(1).argmax(1), ids, ("a", "b", "c", "d"), "pixels")
    return EvaluationTarget(nn.Flatten(), data, THREAT, batch_size=3)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Numbers that each search draws, by example and class; nothing is searched."""
    seen: Drawn = {}

    def search_for(
        target: EvaluationTarget, rows: Tensor, start: Tensor, goal: ClassificationGoal, generator: KeyedGenerator
    ) -> Searched:
        assert goal.target is not None
        pairs = zip(target.data.ids[rows].tolist(), goal.target.tolist(), strict=True)
        seen.update(zip(pairs, map(tuple, generator.uniform(3).tolist()), strict=True))
        return Searched(
            np.zeros(len(rows), bool), np.ones(len(rows), np.int64), np.zeros((0, 1, 2, 2), np.uint8), None
        )

    monkeypatch.setattr(costs_8bit, "search_for", search_for)
    return seen


def search_all(target: EvaluationTarget, drawn: Drawn, costs: str = "all") -> Drawn:
    """Numbers of all searches of an evaluation and its costs."""
    suite = Suite("test", {"pgd": PGD(steps=5)}, curve=None)
    evidence = evaluate(target.model, target.data, THREAT, suite, batch_size=target.batch_size)
    evidence = replace(evidence, images=replace(evidence.images, eight_bit={}))  # otherwise some are there already
    drawn.clear()
    evaluate_costs(target, evidence, read_costs(costs, 4), evaluation="0" * 64, attack=APGD(steps=5))
    return dict(drawn)


def test_numbers_differ_between_examples_and_classes(drawn: Drawn) -> None:
    target = target_of(torch.tensor([100, 7, 31, 8]))
    found = search_all(target, drawn)
    assert {identity for identity, _ in found} == set(target.data.ids.tolist())
    assert len(set(found.values())) == len(found)
    by_distance = [
        search_all(target, drawn, f"0>{n},1>{(1 + n) % 4},2>{(2 + n) % 4},3>{(3 + n) % 4}") for n in (1, 2)
    ]
    assert [len(one) for one in by_distance] == [4, 4]
    assert not by_distance[0].keys() & by_distance[1].keys(), "other classes of the same examples"
    assert not set(by_distance[0].values()) & set(by_distance[1].values())


def test_numbers_are_those_of_the_seed(drawn: Drawn) -> None:
    target = target_of(torch.tensor([100, 7, 31, 8]))
    first, again, other = (search_all(replace(target, seed=seed), drawn) for seed in (0, 0, 1))
    assert first == again
    assert first.keys() == other.keys()
    assert not set(first.values()) & set(other.values())


def test_numbers_follow_the_example_and_not_its_place_or_batch(drawn: Drawn) -> None:
    ids = torch.tensor([100, 7, 31, 8])
    target = target_of(ids)
    whole = search_all(target, drawn)
    order = torch.tensor([2, 0, 3, 1])
    data = replace(target.data, images=target.data.images[order], labels=target.data.labels[order], ids=ids[order])
    assert search_all(replace(target, data=data, batch_size=1), drawn) == whole
    renamed = search_all(replace(target, data=replace(target.data, ids=ids + 1000)), drawn)
    assert not set(renamed.values()) & set(whole.values())
