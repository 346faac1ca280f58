"""Graphs of PyTorch modules: outputs equal those of the module, and bad modules are refused in one sentence."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import robustly
from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph, UnsupportedOperationError
from robustly.certification.readers.aten import TABLE
from robustly.certification.readers.torch_reader import ModuleError, read_module
from robustly.models.registry import ModelConfig, build_model

FAMILIES = ("small_cnn", "resnet18", "preact_resnet18", "wrn16_4")
LARGE = ("resnet18_lbgat", "wrn28_10_silu")  # the others differ from one of these in depth and width only


class Own(nn.Module):
    """A user's model: a function of the module and the input."""

    def __init__(self, function: Callable, *parts: nn.Module, **buffers: Tensor) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def assert_equal(graph: Graph, model: nn.Module, shape: tuple[int, ...]) -> None:
    """Compare outputs on inputs outside of [0, 1], one batch and one by one, in float64."""
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = model.double().eval()
    with torch.no_grad():
        theirs = model(x.clone()).reshape(5, -1)
        torch.testing.assert_close(evaluate(graph, x), theirs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(evaluate(graph, x[2:3]), theirs[2:3], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)])
def test_networks_of_the_registry(name: str) -> None:
    channels, side = (1, 28) if name == "small_cnn" else (3, 32)
    config = ModelConfig(name=name, width=0.1, mean=(0.1, 0.5, 0.4)[:channels], std=(0.3, 0.2, 0.4)[:channels])
    model = build_model(config, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.05)
        for _ in range(2):  # running statistics that are not 0 and 1
            model.train()(torch.rand(8, channels, side, side, generator=torch.Generator().manual_seed(4)))
    graph = read_module(model, (channels, side, side))
    assert all(module.training for module in model.modules())
    assert_equal(graph, model, (channels, side, side))


class RecursiveNetwork(nn.Module):
    """The tiny recursive network of Veriphi: modules applied many times, states that start at learned vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.y, self.z = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(6))
        self.to_z, self.to_y = nn.Linear(9 + 4 + 6, 6), nn.Linear(4 + 6, 4)
        self.mlp_z = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 6))
        self.mlp_y = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        y, z = self.y.expand(len(x), -1), self.z.expand(x.size(0), -1)
        for _ in range(2):
            for _ in range(2):
                z = self.mlp_z(self.to_z(torch.cat([x, y, z], 1)))
            y = self.mlp_y(self.to_y(torch.cat([y, z], 1)))
        return self.head(y)


def test_module_called_many_times_is_unrolled() -> None:
    torch.manual_seed(0)
    model = RecursiveNetwork()
    graph = read_module(model, (1, 3, 3))
    assert sum(node.op == "relu" for node in graph.nodes) == 2 * 2 + 2
    assert any(node.name.startswith("mlp_z.0:") for node in graph.nodes)
    assert_equal(graph, model, (1, 3, 3))


def _assigned(self: Own, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 6)
    out = out.to(x.dtype)
    out[:, :5] = self.parts[0](x)
    out[:, 5] = 1
    return out


def _view_changed_in_place(self: Own, x: Tensor) -> Tensor:
    h = self.parts[0](x)
    part = h[:, :2]
    part.relu_()
    h[:, 3] += x[:, 0]
    return h


def _all_pools(self: Own, x: Tensor) -> Tensor:
    pooled = [
        F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        F.adaptive_avg_pool2d(x, (3, 5)),
        F.adaptive_avg_pool2d(x, (None, 2)),
        F.adaptive_max_pool2d(x, 4),
        F.max_pool2d(x, 2, return_indices=True)[0],
        F.max_pool1d(x.flatten(2), 5, 3, 1, 2),
        F.avg_pool1d(x.flatten(2), 5, 3, 1),
        F.adaptive_avg_pool1d(x.flatten(2), 7),
        x.amax((2, 3)),
        x.max(1).values,
        F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 3, 2),
        F.pad(x, ()),
    ]
    return torch.cat([one.flatten(1) for one in pooled], 1)


def _all_activations(self: Own, x: Tensor) -> Tensor:
    parts = [
        *(F.relu(x), F.relu6(4 * x), F.hardtanh(x), F.hardswish(x), F.hardsigmoid(x), F.softplus(x, beta=3)),
        *(
            F.selu(x),
            F.elu(x, alpha=0.3),
            F.gelu(x, approximate="tanh"),
            F.gelu(x),
            F.silu(x),
            x.sigmoid(),
            x.tanh(),
        ),
        *(x.clamp(min=0.2), x.clamp(max=0.3), x.clamp(0.1, 0.5), x.abs(), F.leaky_relu(x, 0.2), x**2, x.square()),
        *(
            torch.maximum(x, self.b),
            torch.minimum(self.b, x),
            torch.max(x, 1 - x),
            *(part(x) for part in self.parts),
        ),
    ]
    return torch.cat(parts, 1)


def _arithmetic(self: Own, x: Tensor) -> Tensor:
    h = torch.add(x, self.parts[0](x), alpha=3) - torch.sub(2, x, alpha=2) + torch.rsub(x, 1.5, alpha=0.5)
    h = h + torch.rsub(x, self.parts[0](x), alpha=2) + torch.addmm(self.b, x, self.w, beta=2, alpha=0.5)
    h = h + (x @ self.w) / self.b - (self.w.T @ x.unsqueeze(2)).squeeze(2) * 3 + (x @ self.b).unsqueeze(1)
    h.mul_(2).sub_(x)
    return h * x.mean(1, keepdim=True) - (-x).sum(-1, keepdim=True)


def _all_shapes(self: Own, x: Tensor) -> Tensor:
    h = torch.stack([*x.transpose(1, 3).permute(0, 2, 1, 3)[:, ::2, -3:, 1].unbind(2)], -1)
    h = h.flatten(1).unflatten(1, (3, -1)).unsqueeze(1).squeeze(1).flip(1)
    first, *others = h.split([1, 2], 1)
    h = torch.cat([*others, first, *h.chunk(2, 1), h[:, [2, 0, -1]], h.index_select(1, self.index)], 1)
    return h.unsqueeze(2).expand(-1, -1, 2, -1).repeat(1, 1, 1, 2).reshape(len(x), -1)


SLOPES = nn.PReLU(5)
SLOPES.weight.data = torch.tensor([0.1, -0.3, 2.0, 0.0, 1.0])
OWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch baked in": (lambda: Own(lambda s, x: s.parts[0](x.view(len(x), -1)), nn.Linear(8, 3)), (2, 4)),
    "assigned to parts": (lambda: Own(_assigned, nn.Linear(5, 5)), (5,)),
    "view changed in place": (lambda: Own(_view_changed_in_place, nn.Linear(5, 5)), (5,)),
    "input changed in place": (lambda: Own(lambda s, x: x.mul_(2).relu_() + 1), (5,)),
    "pools": (lambda: Own(_all_pools), (2, 8, 8)),
    "activations": (lambda: Own(_all_activations, nn.PReLU(), SLOPES, b=torch.tensor(0.3)), (5,)),
    "arithmetic": (lambda: Own(_arithmetic, nn.Linear(4, 4), w=torch.rand(4, 4), b=torch.rand(4) + 1), (4,)),
    "shapes": (lambda: Own(_all_shapes, index=torch.tensor([1, 1])), (2, 6, 4)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, bias=False),
            nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.Conv2d(2, 2, 4, padding="same"),
            nn.ZeroPad2d((0, 1, 2, 0)),
            nn.Conv2d(2, 3, 3, padding="same", dilation=2),
            nn.Flatten(2),
            nn.BatchNorm1d(3),
            nn.Conv1d(3, 2, 2, padding="same"),
            nn.ConvTranspose1d(2, 1, 3, stride=2),
        ),
        (4, 9, 9),
    ),
    "one number": (lambda: Own(lambda s, x: s.parts[0](x).squeeze(1), nn.Linear(4, 1)), (4,)),
    "normalised weights": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (4,)),
    "identity": (nn.Identity, (4,)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_models_of_users(name: str) -> None:
    torch.manual_seed(0)
    build, shape = OWN[name]
    model = build()
    assert_equal(read_module(model, shape), model, shape)


def test_network_for_one_input_only() -> None:
    model = nn.Sequential(nn.Unflatten(0, (1, -1)), nn.Linear(4, 3), nn.Flatten(0, 1))
    one = Own(lambda s, x: s.parts[0](x.reshape(1, -1)), nn.Linear(8, 3))
    graph = read_module(one, (2, 4))
    x = torch.rand(1, 2, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(evaluate(graph, x), one.double()(x))
    with pytest.raises(UnsupportedOperationError, match="batch"):
        read_module(model, (4,))


def test_adapted_models_and_objects_with_logits() -> None:
    torch.manual_seed(0)
    network = Own(lambda s, x: (s.parts[0](x.flatten(1)), x), nn.Linear(12, 3))
    plain = read_module(network, (3, 2, 2))
    wrapped = robustly.wrap(network, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    graph = read_module(wrapped, (3, 2, 2))
    assert graph.source == plain.source == "Own"
    assert_equal(graph, wrapped, (3, 2, 2))
    x = torch.rand(3, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(evaluate(plain, x), network.double()(x)[0])


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(-1), nn.Sequential(nn.Softmax(1), nn.Dropout())])
def test_softmax_at_the_end_is_left_out_on_demand(last: nn.Module) -> None:
    body = nn.Linear(4, 3)
    graph = read_module(nn.Sequential(body, last), (4,), drop_softmax=True)
    assert_equal(graph, body, (4,))
    with pytest.raises(UnsupportedOperationError, match="drop_softmax=True"):
        read_module(nn.Sequential(nn.Linear(4, 3), last), (4,))
    with pytest.raises(UnsupportedOperationError, match="softmax' of module '0'"):
        read_module(nn.Sequential(nn.Softmax(1), nn.Linear(4, 3)), (4,), drop_softmax=True)


def _with_weight(value: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    layer = nn.Linear(4, 3, dtype=dtype)
    layer.weight.data[0, 0] = value
    return nn.Sequential(layer, nn.Sigmoid())


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "NaN": (lambda: _with_weight(float("nan")), "NaN or infinite numbers in '0.weight'"),
    "infinite": (lambda: _with_weight(-float("inf")), "NaN or infinite numbers in '0.weight'"),
    "half": (lambda: _with_weight(1.0, torch.bfloat16), r"weights in bfloat16: use model.float\(\)"),
    "half inside": (lambda: Own(lambda s, x: x.half().float()), "computes in float16"),
    "random": (lambda: Own(lambda s, x: x + torch.rand(4)), "not deterministic"),
    "active dropout": (lambda: Own(lambda s, x: F.dropout(x)), "not deterministic"),
    "control flow": (lambda: Own(lambda s, x: x if x.sum() > 0 else -x), "control flow that depends on its input"),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
        r"'layer_norm' of module '1' \(LayerNorm\) in Sequential is not supported; supported are abs, ",
    ),
    "batch statistics": (lambda: nn.BatchNorm1d(4, track_running_stats=False), "no running statistics"),
    "mean over the batch": (lambda: Own(lambda s, x: x - x.mean(0)), "batch axis"),
    "number of examples": (lambda: Own(lambda s, x: x * len(x)), "other outputs alone than in a batch"),
    "place in the batch": (lambda: Own(lambda s, x: x * torch.arange(len(x)).unsqueeze(1)), "between the examples"),
    "float32": (lambda: Own(lambda s, x: F.relu(x + 2**25) - F.relu(x + 2**25 - 1)), "too large for float32"),
    "no numbers": (lambda: nn.Sequential(nn.LazyLinear(3)), "weights without numbers"),
    "meta": (lambda: nn.Linear(4, 3, device="meta"), "weights without numbers"),
    "inference": (torch.inference_mode()(lambda: nn.Linear(4, 3)), r"copy.deepcopy\(model\)"),
    "NumPy": (lambda: Own(lambda s, x: torch.from_numpy(x.numpy() * 2)), "consists of PyTorch operations"),
    "wrong shape": (lambda: nn.Linear(5, 3), r"fails on inputs of shape \(4,\)"),
    "no batch axis": (lambda: Own(lambda s, x: x.sum()), r"returns a tensor of shape \(\)"),
    "text": (lambda: Own(lambda s, x: "dog"), "must return a tensor of logits, got str"),
    "product of two": (lambda: Own(lambda s, x: x.unsqueeze(1) @ x.unsqueeze(2)), "multiplies two values"),
    "quotient": (lambda: Own(lambda s, x: x / (x + 1)), "divides by a value"),
    "threshold of softplus": (lambda: nn.Softplus(threshold=5), "jumps at its threshold 5"),
    "powers": (lambda: Own(lambda s, x: x ** torch.tensor([2.0, 1.0, 2.0, 2.0])), "exponents 1 and 2 only"),
    "batch as channels": (
        lambda: Own(lambda s, x: F.max_pool2d(x.unflatten(1, (2, 2)), 2)),
        r"batches `\(N, C, L\)`",
    ),
    "adaptive, batch as channels": (
        lambda: Own(lambda s, x: F.adaptive_avg_pool2d(x.unflatten(1, (2, 2)), 1)),
        r"batches `\(N, C, L\)`",
    ),
    "some examples": (lambda: Own(lambda s, x: x[:7]), "depend on other inputs of a batch"),
    "TorchScript": (lambda: torch.jit.trace(nn.Linear(4, 3), torch.rand(1, 4)), "TorchScript"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_verified_is_refused_in_one_sentence(name: str) -> None:
    build, reason = REFUSED[name]
    with pytest.raises((ModuleError, UnsupportedOperationError), match=reason) as caught:
        read_module(build(), (4,))
    assert "\n" not in str(caught.value)


def test_impossible_shape_of_the_input() -> None:
    with pytest.raises(ModuleError, match=r"input_shape is \(4, -1\)"):
        read_module(nn.Linear(4, 3), (4, -1))


def test_modes_and_weights_stay_as_they_were() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    read_module(model, (4,))
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_translation_has_a_name_of_torch() -> None:
    names = {name.removeprefix("aten::").partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    assert not set(TABLE) - names
