"""Captured passes: results, keys and refusals, by a stand-in for CUDA graphs with fixed tensors."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from kinds_of_passes import METHODS, net, trained_weights
from robustly.attacks.core import graphs as graphs_module
from robustly.attacks.core.contract import ModelMode, frozen
from robustly.attacks.core.graphs import Pass, PassGraphs, eager_capture
from robustly.objectives import OBJECTIVES, ClassificationGoal, cross_entropy
from robustly.runtime import RuntimeConfig
from robustly.training.engine import stepping

pytestmark = pytest.mark.slow


class Counting:
    """The stand-in, with the number of captures."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, body: Callable[[], Pass]) -> tuple[Callable[[], None], Pass]:
        self.count += 1
        return eager_capture(body)


def given(count: int = 5, seed: int = 0) -> tuple[Tensor, ClassificationGoal]:
    drawn = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, 8, 8, generator=drawn)
    goal = ClassificationGoal(torch.randint(10, (count,), generator=drawn), reference=torch.randn(count, 10))
    return x, goal


def direct(model: nn.Module, x: Tensor, objective: Any, goal: ClassificationGoal) -> Pass:
    here = x.detach().requires_grad_()
    output = model(here)
    value = objective(output, goal)
    return output.detach(), value.detach(), torch.autograd.grad(value.sum(), here)[0]


def same(one: Pass | None, other: Pass) -> bool:
    assert one is not None
    return all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


@pytest.mark.parametrize("objective", ["cross_entropy", "margin", "dlr", "kl"])
@pytest.mark.parametrize("mode", ["eval", "train_nostat"])
def test_a_replay_is_the_pass(objective: str, mode: ModelMode) -> None:
    """With other inputs, labels and references than at the capture, and after the weights have changed in place."""
    capture, model = Counting(), net()
    passes, chosen = PassGraphs(capture), OBJECTIVES[objective]
    with frozen(model, mode):
        results = []
        for seed in range(3):
            x, goal = given(seed=seed)
            found = passes.run(model, x, chosen, goal)
            wanted = direct(model, x, chosen, goal)
            assert same(found, wanted)
            results.append((found, wanted))
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(0.9).add_(0.01)
        assert all(same(*pair) for pair in results)  # later replays have not written over earlier results
    assert capture.count == 1


def test_shapes_goals_modes_and_places_of_weights_have_graphs_of_their_own() -> None:
    capture, model = Counting(), net()
    passes, (x, goal) = PassGraphs(capture), given()

    def run(count: int, mode: ModelMode = "eval", points: Tensor = x, of: ClassificationGoal = goal) -> None:
        with frozen(model, mode):
            found = passes.run(model, points, cross_entropy, of)
            assert same(found, direct(model, points, cross_entropy, of))
        assert capture.count == count

    run(1)
    run(2, "train_nostat")
    run(2)
    run(3, points=x[:3].clone(), of=goal.select(torch.arange(3)))
    run(4, of=ClassificationGoal(goal.y))
    run(5, of=ClassificationGoal(goal.y, target=(goal.y + 1) % 10))
    run(6, points=x.contiguous(memory_format=torch.channels_last))
    run(6)
    model[0].weight.data = model[0].weight.data.clone()  # weights that lie elsewhere
    run(7)
    run(7)


def test_few_graphs_are_kept() -> None:
    capture, model = Counting(), net().eval()
    passes = PassGraphs(capture)
    for count in range(1, 20):
        x, goal = given(count)
        assert same(passes.run(model, x, cross_entropy, goal), direct(model, x, cross_entropy, goal))
    assert len(passes) == graphs_module.MOST
    passes.forget()
    assert len(passes) == 0


def test_an_objective_that_is_new_each_time_ends_the_captures() -> None:
    passes, model, (x, goal) = PassGraphs(eager_capture), net().eval(), given()

    def run() -> Pass | None:
        def objective(logits: Tensor, goal: ClassificationGoal) -> Tensor:
            return cross_entropy(logits, goal)

        return passes.run(model, x, objective, goal)

    assert all(run() is not None for _ in range(graphs_module.CAPTURES))
    with pytest.warns(UserWarning, match=r"cannot be captured \(more than 64 shapes or objectives\)"):
        assert run() is None
    assert passes.run(model, x, cross_entropy, goal) is None
    assert passes.refusal


@pytest.mark.parametrize("mode", ["train", "train_nostat"])
def test_passes_that_change_statistics_or_draw_dropout_are_not_captured(mode: ModelMode) -> None:
    passes, model, (x, goal) = PassGraphs(eager_capture), net().train(), given()
    with frozen(model, mode):
        found = passes.run(model, x, cross_entropy, goal)
    assert (found is None) == (mode == "train")
    assert passes.refusal == ""


def test_a_failed_capture_is_said_once_and_passes_run_without() -> None:
    def failing(body: Callable[[], Pass]) -> tuple[Callable[[], None], Pass]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    passes, model, (x, goal) = PassGraphs(failing), net().eval(), given()
    with pytest.warns(UserWarning, match="operation not permitted when stream is capturing") as said:
        assert passes.run(model, x, cross_entropy, goal) is None
    assert "and more" not in str(said[0].message)
    with warnings.catch_warnings(action="error"):
        assert passes.run(model, x, cross_entropy, goal) is None


def test_a_capture_without_memory_is_an_error_of_memory() -> None:
    def short(body: Callable[[], Pass]) -> tuple[Callable[[], None], Pass]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    passes, model, (x, goal) = PassGraphs(short), net().eval(), given()
    with pytest.raises(torch.OutOfMemoryError):
        passes.run(model, x, cross_entropy, goal)
    assert passes.refusal == ""


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_with_graphs_trains_the_same_weights(
    name: str, precision: Literal["32-true", "bf16-mixed"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = Counting()
    monkeypatch.setattr(stepping, "_graphs_for", lambda runtime: PassGraphs(capture))
    runtime = RuntimeConfig(device="cpu", precision=precision)
    plain = trained_weights(METHODS[name], tmp_path / "plain", runtime)
    assert capture.count == 0
    assert trained_weights(METHODS[name], tmp_path / "graphs", replace(runtime, graphs=True)) == plain
    assert capture.count == (0 if name == "train mode" else 2)  # one for each size of a batch


def test_a_cpu_without_graphs_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"runtime\.graphs: only a GPU has graphs; attacks on cpu run without"):
        trained_weights(METHODS["pgd"], tmp_path / "run", RuntimeConfig(device="cpu", graphs=True))
