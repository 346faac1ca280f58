"""A network that processes hold together computes what a whole one does, and refuses what it cannot."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustly.analysis.landscapes import weight_landscape
from robustly.attacks import PGD
from robustly.attacks.core.contract import frozen
from robustly.attacks.core.model_access import half_precision_copy
from robustly.evaluation.shards import ServedError, ShardedCrew, check_divisible
from robustly.models import ModelConfig, as_classifier, build_model, tafd_small_cnn, weights_hash
from robustly.models.adapter import model_name
from robustly.models.divided import DividedModel
from robustly.models.layout import in_fastest_layout
from robustly.processes import Group, ProcessError, join_group, start_group
from robustly.randomness import KeyedGenerator
from robustly.runtime import Place
from robustly.sharding import ShardingError, local
from robustly.threats import ThreatModel

COUNT = 3
CPU = torch.device("cpu")


class Residual(nn.Module):
    """A convolution with normalisation, beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x)).relu()


class Headed(nn.Module):
    """Blocks whose logits are a part of the output, as in models of Hugging Face."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem, self.blocks = (
            nn.Conv2d(channels, 6, 3, stride=2),
            nn.Sequential(Residual(), Residual(), Residual()),
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.blocks(self.stem(x)).mean((2, 3)))}


class Failing(nn.Module):
    """Fails for a pixel of 0.25."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if bool((x == 0.25).any()):
            raise RuntimeError("a quarter")
        return self.head(x.mean((2, 3)))


class Severed(nn.Module):
    """Has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)).detach())


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return as_classifier(build(), torch.rand(2, 3, 9, 7)).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: seeded(Headed),
    "last": lambda: in_fastest_layout(seeded(Headed), torch.rand(2, 3, 9, 7)),
    "double": lambda: seeded(Headed).double(),
    "severed": lambda: seeded(Severed),
    "rows": lambda: seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(189, 4), nn.ReLU(), nn.Linear(4, 2))),
}


def serve(place: Place, names: list[str], built: dict[str, Callable[[], nn.Module]] | None = None) -> None:
    group = join_group(place)
    crew = ShardedCrew(group, place)
    try:
        for name in names:
            with suppress(ServedError):
                crew.divided((built or MODELS)[name](), CPU)
        group.leave()
    except ProcessError as error:
        group.refuse(str(error))
    finally:
        crew.close()


@dataclass
class Shared:
    """Networks that processes hold, of which the last one asked for is there."""

    group: Group
    crew: ShardedCrew
    names: list[str]

    def network(self, name: str) -> tuple[DividedModel, nn.Module]:
        """The network of this name, divided and whole; those before it are passed over, as tests are."""
        for before in self.names.copy():
            found = self.crew.divided(MODELS[self.names.pop(0)](), CPU)
            if before == name:
                assert isinstance(found, DividedModel)
                return found, MODELS[name]()
        raise AssertionError(f"{name} has been asked for before")


@pytest.fixture(scope="class")
def shared() -> Iterator[Shared]:
    group = start_group(COUNT, serve, [[*MODELS]])
    crew = ShardedCrew(group)
    try:
        yield Shared(group, crew, [*MODELS])
    finally:
        crew.close()
        group.close()


def images(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 3, 9, 7, generator=torch.Generator().manual_seed(count), dtype=torch.float32).to(dtype)


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Logits, gradients of each logit in turn through one graph, and those of two passes at once."""
    here = x.clone().requires_grad_()
    with frozen(model):
        logits = model(here)
        each = [torch.autograd.grad(logits[:, k].sum(), here, retain_graph=True)[0] for k in range(2)]
        both = (model(here).square().sum() + logits.exp().sum()) * 2
        return logits.detach(), *each, torch.autograd.grad(both, here)[0]


def check_passes(divided: DividedModel, whole: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for count in (0, 1, 2, 3, 7):
        x = images(count, dtype)
        for one, other in zip(gradients(divided, x), gradients(whole, x), strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype == dtype
            assert torch.allclose(one, other, rtol=10 * tolerance, atol=tolerance), count
        with torch.no_grad():
            assert not divided(x.requires_grad_()).requires_grad


@pytest.mark.slow
class TestPasses:
    """One group of processes for all networks, in their order."""

    def test_passes_and_gradients_are_those_of_a_whole_network(self, shared: Shared) -> None:
        divided, whole = shared.network("plain")
        check_passes(divided, whole)
        assert weights_hash(divided) == weights_hash(whole)
        assert model_name(divided) == model_name(whole) == "Headed"
        assert as_classifier(divided, images(2)) is divided
        sizes = [sum(p.numel() for p in model.parameters()) for model in (divided, whole)]
        assert sizes[0] == sizes[1]
        own = sum(local(p).numel() for p in divided.parameters())
        assert own < 0.45 * sizes[1], "a third, and what does not divide evenly"

        graph = divided(images(4).requires_grad_())
        worker = divided.passes._worker  # type: ignore[attr-defined]
        assert len(worker._graphs) == 1
        (given,) = torch.autograd.grad(graph.sum(), graph.grad_fn.next_functions[0][0].variable)
        assert given.shape == (4, 3, 9, 7)
        assert not worker._graphs, "a graph that is not kept is released at once"
        with pytest.raises(RuntimeError, match="a second time"):
            graph.sum().backward()
        kept = divided(images(4).requires_grad_())
        del kept
        gc.collect()
        divided(images(1))
        assert not worker._graphs, "a graph that nothing refers to is released with the next pass"

        here = images(2).requires_grad_()
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(divided(here).sum(), here, create_graph=True)

        twin, other = half_precision_copy(divided, images(2)), half_precision_copy(whole, images(2))
        assert twin is not None
        assert other is not None
        assert twin is half_precision_copy(divided, images(2)), "it is made once"
        assert torch.allclose(twin(images(5)), other(images(5)), atol=2e-2)
        assert twin(images(5)).dtype == torch.bfloat16
        assert not torch.equal(twin(images(5)).float(), divided(images(5)))
        check_passes(divided, whole)

        y = torch.arange(6) % 5
        surfaces = [weight_landscape(model, images(6), y, points=3, seed=1) for model in (divided, whole)]
        assert torch.allclose(surfaces[0].loss, surfaces[1].loss, rtol=1e-4)
        assert float(surfaces[1].loss.std()) > 0.01
        check_passes(divided, whole)

        divided.train()
        with pytest.raises(ValueError, match="in evaluation mode only"):
            divided(images(2))
        divided.eval()

    def test_channels_last_networks_attack_alike(self, shared: Shared) -> None:
        divided, whole = shared.network("last")
        assert not next(p for p in whole.parameters() if p.ndim == 4).is_contiguous()
        check_passes(divided, whole)
        threat, y = ThreatModel("linf", 0.1), torch.arange(7) % 5
        found = [
            PGD(3)(model, images(7), y, threat=threat, generator=KeyedGenerator(0, torch.arange(7)))
            for model in (divided, whole)
        ]
        assert torch.equal(found[0].broken, found[1].broken)
        assert torch.allclose(found[0].x_adv, found[1].x_adv, atol=1e-6)
        assert torch.equal(found[0].backwards, found[1].backwards)
        last = images(5).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            assert torch.allclose(divided(last), whole(last), atol=1e-6)

    def test_double_precision(self, shared: Shared) -> None:
        check_passes(*shared.network("double"), dtype=torch.float64)

    def test_outputs_without_gradient_have_none(self, shared: Shared) -> None:
        divided, whole = shared.network("severed")
        x = images(2).requires_grad_()
        assert not divided(x).requires_grad
        assert not whole.requires_grad_(False)(x).requires_grad

    def test_weights_with_fewer_rows_than_processes(self, shared: Shared) -> None:
        """One process has no row of a weight with two; the network has no blocks."""
        divided, whole = shared.network("rows")
        check_passes(divided, whole)
        y = torch.arange(6) % 2
        surfaces = [weight_landscape(model, images(6), y, points=3) for model in (divided, whole)]
        assert torch.allclose(surfaces[0].loss, surfaces[1].loss, rtol=1e-4)


def other_weights() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return as_classifier(Headed()).eval()


def serve_others(place: Place) -> None:
    serve(place, ["other"], {"other": other_weights})


@pytest.mark.slow
def test_processes_with_other_weights_are_refused() -> None:
    group = start_group(2, serve_others, [])
    crew = ShardedCrew(group)
    try:
        with pytest.raises(ProcessError, match="process 1 of 2 cannot take part: its weights differ from those of"):
            crew.divided(MODELS["plain"](), CPU)
    finally:
        crew.close()
        group.close()


def serve_failing(place: Place) -> None:
    with suppress(RuntimeError):
        serve(place, ["failing"], {"failing": lambda: seeded(Failing)})


@pytest.mark.slow
def test_a_pass_that_fails_ends_the_work_with_its_reason() -> None:
    group = start_group(2, serve_failing, [])
    crew = ShardedCrew(group)
    try:
        model = crew.divided(seeded(Failing), CPU)
        x = images(4)
        x[3] = 0.25  # of process 1
        began = time.monotonic()
        with pytest.raises(
            ProcessError, match=r"process 1 of 2 cannot take part: a pass failed in it \(a quarter\)"
        ):
            model(x)
        assert time.monotonic() - began < 60
        with pytest.raises(ProcessError, match="have ended"):
            model(images(4))
    finally:
        crew.close()
        group.close()


def forged() -> nn.Module:
    class Passes:
        forward = backward = move = half = None

    return DividedModel(nn.Linear(2, 2), Passes(), "of another model")


def test_a_model_of_ones_own_does_not_state_its_hash() -> None:
    with pytest.raises(ValueError, match="the factory returned a DividedModel, which states its own hash"):
        build_model(ModelConfig(f"{__name__}:forged"), 0, allow_code=True)


def test_models_that_cannot_be_divided_are_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

    cases: list[tuple[Any, str]] = [
        (nn.Flatten(), "the model has no weights to divide"),
        (Scaled(), "the parameter scale of the model is a single number"),
        (torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)), "the model is a TorchScript program"),
        (tafd_small_cnn(domains=2), "attacks call the branches of a network with threat domains one by one"),
    ]
    for model, sentence in cases:
        with pytest.raises(ShardingError, match=f"runtime.strategy fsdp: {sentence}"):
            check_divisible(model)
