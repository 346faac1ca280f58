"""Weights that no module registers are found, switched and hashed."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustly.models import AdapterError, as_classifier, weights_hash

X = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def network(scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        net[2].weight.mul_(scale)
    return net


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.net = network()
        self.scales = [torch.tensor(scale, requires_grad=True), self.net[2].weight]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x * self.scales[0])
        return out


class OfClass(nn.Module):
    nets = (network().train(),)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.nets[0](x)
        return out


SHARED = network().train()
net = network(3.0)  # has the name of an attribute of `Scaled`


class OfModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = SHARED(x)
        return out


class Slotted:
    __slots__ = ("model",)

    def __init__(self, scale: float) -> None:
        self.model = network(scale).train()

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


def closed_over(mean: float) -> Callable[[Tensor], Tensor]:
    shift, inner = torch.tensor(mean), network()
    return lambda x: inner(x - shift)


def frozen(scale: float) -> nn.Module:
    program: nn.Module = torch.jit.freeze(torch.jit.script(network(scale).eval()))
    return program


def quantised(scale: float) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done: nn.Module = torch.ao.quantization.quantize_dynamic(network(scale).eval(), {nn.Linear})
        return done


@pytest.mark.parametrize("make", [Scaled, closed_over, Slotted, frozen, quantised])
def test_models_that_differ_in_one_unregistered_weight_have_different_hashes(
    make: Callable[[float], object],
) -> None:
    one, same, other = (weights_hash(as_classifier(make(number), X)) for number in (1.0, 1.0, 1.5))
    assert one == same != other


@pytest.mark.parametrize("make", [OfClass, OfModule, lambda: Slotted(1.0)])
def test_unregistered_networks_are_evaluated_in_evaluation_mode(make: Callable[[], object]) -> None:
    adapted = as_classifier(make(), X).eval()
    with torch.no_grad():
        assert torch.equal(adapted(X)[:2], adapted(X[:2]))


def test_a_global_network_with_the_name_of_an_attribute_is_not_part_of_a_model() -> None:
    assert sum(one.numel() for one in as_classifier(Scaled(1.0)).parameters()) == sum(
        one.numel() for one in network().parameters()
    )


def test_weights_made_in_inference_mode_are_named() -> None:
    with torch.inference_mode():
        made = network().half().float()
    with pytest.raises(AdapterError, match=r"inference_mode.*deepcopy"):
        as_classifier(made, X)


@pytest.mark.parametrize("change", [lambda z: z.argmax(1), lambda z: z.int(), lambda z: z + 0j])
def test_outputs_that_are_not_real_numbers_are_named(change: Callable[[Tensor], Tensor]) -> None:
    inner = network()
    with pytest.raises(AdapterError, match=r"returns torch\.\w+, not logits"):
        as_classifier(lambda x: change(inner(x)), X)


def test_a_model_that_changes_its_buffers_in_evaluation_mode_is_named() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            out: Tensor = self.inner(x)
            return out

    with pytest.warns(UserWarning, match="changes seen in evaluation mode"):
        as_classifier(Counting(), X)
