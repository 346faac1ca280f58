"""Compiled passes: results, counts of compilations, and refusals, by backends that need no compiler."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import APGD, PGD, Square
from robustly.attacks.core import compiled as compiled_module
from robustly.attacks.core.compiled import MOST, CompiledNetwork
from robustly.attacks.core.contract import AttackResult, frozen
from robustly.attacks.core.model_access import input_gradient, logits_of
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

pytestmark = pytest.mark.slow
THREAT = ThreatModel("linf", 0.03)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler: g++")


def net(channels: int = 3, side: int = 8) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(4 * (side - 2) ** 2, 10))


def images(count: int = 6, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(3))


def attacked(attack: Any, model: nn.Module, x: Tensor, y: Tensor) -> AttackResult:
    found = attack(model, x, y, threat=THREAT, generator=KeyedGenerator(0, torch.arange(len(x))))
    assert isinstance(found, AttackResult)
    return found


def gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    here = x.clone().requires_grad_()
    output = logits_of(model, here)
    return output.detach(), input_gradient(output[:, 0].sum(), here)


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9).add_(0.01)


@pytest.mark.parametrize(
    "attack", [PGD(steps=4), PGD(steps=3, precision="bfloat16"), APGD(steps=6), Square(queries=9)]
)
def test_attacks_find_what_they_find_uncompiled(attack: Any) -> None:
    """Bit for bit, also after the weights have changed in place, which compiles nothing again."""
    model, x = net(), images()
    y, twin, counts = model.eval()(x).argmax(1), CompiledNetwork(model, len(x), "aot_eager"), []
    for _ in range(3):
        one, other = attacked(attack, model, x, y), attacked(attack, twin, x, y)
        for name in ("x_adv", "broken", "distance", "backwards"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        counts.append(twin.compilations)
        change(model)
    assert 1 <= counts[0] <= counts[2] <= 4
    assert counts[1] == counts[2] or not bool(one.broken.all())  # examples that drop out: another number of them
    assert twin.refusal == ""


def test_numbers_of_examples_share_one_compilation_beside_the_usual_number() -> None:
    twin = CompiledNetwork(net().eval(), 5, "aot_eager")
    with frozen(twin.net):
        for count in (5, 4, 3, 2, 7, 5, 1, 11):
            x = images(count)
            assert all(map(torch.equal, gradient(twin, x), gradient(twin.net, x)))
    assert twin.compilations == 2


def test_the_number_of_compilations_is_bounded() -> None:
    twin = CompiledNetwork(net().eval(), None, "eager")
    with frozen(twin.net):
        for count in range(2, 2 + MOST):
            gradient(twin, images(count))
        assert twin.compilations == MOST
        with pytest.warns(UserWarning, match=f"runtime.compile: there are more than {MOST} kinds of passes; such"):
            gradient(twin, images(2 + MOST))
        with warnings.catch_warnings(action="error"):
            assert all(map(torch.equal, gradient(twin, images(12)), gradient(twin.net, images(12))))
            gradient(twin, images(3))
    assert twin.compilations == MOST


def test_precision_and_modes_have_compilations_of_their_own() -> None:
    twin, x = CompiledNetwork(net().eval(), 6, "aot_eager"), images()
    for count, mode in ((1, "eval"), (2, "train_nostat"), (2, "train"), (2, "eval")):
        statistics = twin.net[1].running_mean.clone()
        with frozen(twin.net, mode):
            torch.manual_seed(1)
            found = gradient(twin, x)
            moved = not torch.equal(statistics, twin.net[1].running_mean)
            torch.manual_seed(1)
            assert all(map(torch.equal, found, gradient(twin.net, x))), mode
        assert (twin.compilations, moved) == (count, False), mode
    twin.net.train()
    with frozen(twin.net, "train"):  # draws dropout and updates statistics
        gradient(twin, x)
    assert twin.compilations == 2
    twin.net.eval()
    with frozen(twin.net), torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, gradient(twin, x), gradient(twin.net, x)))
    assert twin.compilations == 3


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if float(x.sum()) > 0 else self.net(-x)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return self.net(x)


def test_a_network_that_cannot_be_compiled_is_said_once_and_attacked() -> None:
    model, x = Branching().eval(), images()
    y, twin = model(x).argmax(1), CompiledNetwork(model, 6, "aot_eager")
    with pytest.warns(UserWarning, match=r"runtime\.compile: .*; such passes run uncompiled") as said:
        found = attacked(PGD(steps=4), twin, x, y)
    assert len([one for one in said if "runtime.compile" in str(one.message)]) == 1
    assert torch.equal(found.x_adv, attacked(PGD(steps=4), model, x, y).x_adv)
    with warnings.catch_warnings(action="error"):
        attacked(PGD(steps=4), twin, x, y)


class OneByOne(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(one[None]) for one in x])


def test_a_network_that_depends_on_the_number_of_examples_is_compiled_for_the_usual_one() -> None:
    model = OneByOne().eval()
    twin = CompiledNetwork(model, 4, "aot_eager")
    with frozen(model):
        gradient(twin, images(4))
        with pytest.warns(UserWarning, match=r"compile: the passes depend on the number of examples; such"):
            assert all(map(torch.equal, gradient(twin, images(3)), gradient(model, images(3))))
        with warnings.catch_warnings(action="error"):
            assert all(map(torch.equal, gradient(twin, images(4)), gradient(model, images(4))))


def test_a_network_that_changes_its_input_is_attacked_as_without() -> None:
    model, x = InPlace().eval(), images()
    y, twin = model(x.clone()).argmax(1), CompiledNetwork(model, 6, "aot_eager")
    found, wanted = (attacked(PGD(steps=4), one, x.clone(), y) for one in (twin, model))
    assert torch.equal(found.x_adv, wanted.x_adv)
    assert torch.equal(found.broken, wanted.broken)


def test_the_error_of_a_network_is_its_own() -> None:
    twin = CompiledNetwork(net().eval(), None, "aot_eager")
    with warnings.catch_warnings(action="error"), pytest.raises(RuntimeError, match="channels"):
        twin(images(channels=1))
    assert twin.refusal == ""


def scaled(factor: float) -> Any:
    """A wrong compiler: results that are `factor` times too large."""

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return lambda *given: tuple(factor * one for one in graph(*given))

    return backend


@pytest.mark.parametrize("factor", [1.05, 0.0, float("nan")])
def test_a_wrong_compilation_is_not_used(factor: float) -> None:
    model, x = net().eval(), images()
    twin = CompiledNetwork(model, 6, scaled(factor))
    with frozen(model), pytest.warns(UserWarning, match="compiled logits differ from those of the network by"):
        assert all(map(torch.equal, gradient(twin, x), gradient(model, x)))


@pytest.mark.parametrize("later", [0.0, -1.0, float("nan")])
def test_verdicts_are_those_of_the_network_whatever_compiled_passes_return(later: float) -> None:
    """A compilation that agrees at first and is wrong later breaks nothing that the network does not confirm."""
    wrong = [0]

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        calls = []

        def run(*given: Tensor) -> tuple[Tensor, ...]:
            wrong[0] += bool(calls)
            factor = later if calls else 1.0
            calls.append(factor)
            return tuple(factor * one for one in graph(*given))

        return run

    model, x = net().eval(), images()
    y = model(x).argmax(1)
    found = attacked(PGD(steps=3), CompiledNetwork(model, None, backend), x, y)
    assert wrong[0] > 1
    assert not bool(found.invalid.any())
    assert torch.equal(found.broken, model(found.x_adv).argmax(1) != y)
    assert not bool(found.broken.all())


def test_missing_memory_is_an_error_of_memory() -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        def run(*given: Tensor) -> tuple[Tensor, ...]:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    model = net().eval()
    with frozen(model), pytest.raises(torch.OutOfMemoryError):
        gradient(CompiledNetwork(model, 6, backend), images())


@pytest.mark.parametrize(
    ("device", "reason"), [("cpu", "no C\\+\\+ compiler .* was found"), ("cuda", "Triton is not")]
)
def test_a_machine_without_compiler_is_said(device: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_module.shutil, "which", lambda name: None)
    monkeypatch.setattr(compiled_module.importlib.util, "find_spec", lambda name: None)
    missing, model = compiled_module.missing_compiler, net().eval()
    monkeypatch.setattr(compiled_module, "missing_compiler", lambda given: missing(torch.device(device)))
    with pytest.warns(UserWarning, match=f"runtime.compile: {reason}.*run uncompiled"):
        CompiledNetwork(model)(images())


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8)])
def test_few_examples_and_double_precision(shape: tuple[int, ...]) -> None:
    model = net().double().eval()
    twin, x = CompiledNetwork(model, 6, "aot_eager"), torch.rand(shape, dtype=torch.float64)
    y = model(x).argmax(1)
    found, wanted = (attacked(PGD(steps=2), one, x, y) for one in (twin, model))
    assert found.x_adv.dtype == torch.float64
    assert torch.equal(found.x_adv, wanted.x_adv)


@needs_compiler
def test_a_real_compiler_agrees(tmp_path: Path) -> None:
    model, x = net(), images()
    y = model.eval()(x).argmax(1)
    twin = CompiledNetwork(model, 6)
    with frozen(model):
        for one, other in zip(gradient(twin, x), gradient(model, x), strict=True):
            assert torch.allclose(one, other, atol=1e-5)
    found = attacked(PGD(steps=4), twin, x, y)
    assert torch.equal(found.broken, model(found.x_adv).argmax(1) != y)
    assert found.broken.any()
    assert twin.refusal == ""
    count = twin.compilations
    change(model)
    with frozen(model):
        for one, other in zip(gradient(twin, x), gradient(model, x), strict=True):
            assert torch.allclose(one, other, atol=1e-5)
    assert 1 <= count == twin.compilations
