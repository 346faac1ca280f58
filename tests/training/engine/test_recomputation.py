"""`training.recompute_activations`: less memory, the same weights and statistics bit for bit."""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_tools import final, last, make_job, mlp, run, same

from robustly.cli.recipes import read_recipe
from robustly.data import Splits
from robustly.experiments.configuration import build_config
from robustly.experiments.overrides import apply_overrides
from robustly.models import ModelConfig, build_model
from robustly.models.blocks import long_sequences, pieces, repeated_blocks
from robustly.training import AdversarialLoss, CleanLoss, Method, PGDInner, WeightPerturbation
from robustly.training.engine.recomputation import RecomputationError, check_blocks, recomputed_activations
from robustly.training.losses.consistency import TradesLoss
from robustly.training.parameters.gradalign import GradAlign

pytestmark = pytest.mark.slow


class Residual(nn.Module):
    """A block with statistics, dropout and a keyword argument."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
        )

    def forward(self, x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, float]:
        return x + scale * self.layers(x), scale


class Net(nn.Module):
    """A stem, residual blocks in a list, and a head."""

    def __init__(self, blocks: int = 3, seed: int = 0, side: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(1, 6, 4, stride=4)
        self.blocks = nn.ModuleList(Residual() for _ in range(blocks))
        self.head = nn.Linear(6 * side * side, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x, _ = block(x, scale=0.5)
        logits: Tensor = self.head(x.flatten(1))
        return logits


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Gradients of two passes in training mode with one backward pass, the images' included."""
    torch.manual_seed(3)
    here = x.clone().requires_grad_()
    loss = network(here).logsumexp(1).sum() + network(here.flip(0)).square().sum()
    found: list[Tensor] = list(torch.autograd.grad(loss, [here, *network.parameters()]))
    return [*found, torch.rand(2), *(buffer.clone() for buffer in network.buffers())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_statistics_and_random_numbers_are_those_of_an_ordinary_pass(dtype: torch.dtype) -> None:
    x = torch.rand(5, 1, 16, 16, dtype=dtype)
    plain, saving = Net().to(dtype), Net().to(dtype)
    wanted = gradients(plain, x)
    with recomputed_activations(saving):
        found = gradients(saving, x)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
    assert int(saving.blocks[0].layers[1].num_batches_tracked) == 2  # type: ignore[union-attr, index, arg-type]
    again = gradients(saving, x), gradients(plain, x)
    assert all(torch.equal(one, other) for one, other in zip(*again, strict=True))
    assert "forward" not in vars(saving.blocks[0])


def test_mixed_precision_is_that_of_an_ordinary_pass() -> None:
    x, plain, saving = torch.rand(5, 1, 16, 16), Net(), Net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = gradients(plain, x)
    with recomputed_activations(saving), torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(saving, x)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


@pytest.mark.parametrize("side", [(16, 16), (16, 24)])
@pytest.mark.parametrize(
    "name", ["small_cnn", "resnet18", "preact_resnet18", "wrn16_4", "conv_small", "tafd_resnet18"]
)
def test_every_kind_of_network_of_the_registry(name: str, side: tuple[int, int]) -> None:
    settings: dict[str, Any] = {"name": name, "width": 0.1, "channels": 1, "image_size": side}
    if name == "conv_small" and side != (16, 16):
        side = settings["image_size"] = (28, 28)
    plain, saving = (build_model(ModelConfig(**settings), seed=1).train() for _ in range(2))
    x = torch.rand(3, 1, *side)
    wanted = gradients(plain, x)
    check_blocks(saving, name)
    with recomputed_activations(saving):
        found = gradients(saving, x)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes of the distinct tensors that a forward pass keeps, the weights excluded."""
    weights = {p.data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        if value.data_ptr() not in weights:
            kept[value.data_ptr()] = value.untyped_storage().nbytes()
        held.append(value)  # an address must not be used twice
        return value

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        output = network(x)
    assert output.requires_grad
    return sum(kept.values())


def test_a_forward_pass_keeps_the_inputs_of_blocks_alone() -> None:
    x, network = torch.rand(4, 1, 16, 16), Net(blocks=6)
    whole = saved_bytes(network, x)
    with recomputed_activations(network):
        kept = saved_bytes(network, x)
    inputs = 6 * 4 * 6 * 4 * 4  # of six blocks: 4 images, 6 channels, 4x4 pixels
    assert kept == 4 * (x.numel() + inputs + 4 * 6 * 4 * 4)  # and of stem and head
    assert whole > 2.5 * kept


@pytest.mark.parametrize(
    "method",
    [
        Method(inner=PGDInner(objective="kl", steps=2), loss=TradesLoss()),
        Method(
            inner=PGDInner(steps=1, mode="train"),
            loss=AdversarialLoss(),
            parameters=(WeightPerturbation(gamma=0.01), GradAlign(weight=0.1)),
        ),
    ],
)
def test_a_run_ends_with_the_same_state(method: Method, little: Splits, tmp_path: Path) -> None:
    for name in ("plain", "saving"):
        training = {"recompute_activations": name == "saving", "epochs": 1}
        run(make_job(little, method, Net(), training=training), tmp_path / name)
    assert same(final(tmp_path / "plain"), final(tmp_path / "saving"))
    first, second = last(tmp_path / "plain"), last(tmp_path / "saving")
    assert same(first["networks"]["model"], second["networks"]["model"])
    assert first["rows"][0]["train_loss"] == second["rows"][0]["train_loss"]


def test_blocks_are_the_inner_members_of_lists_or_repeated_modules() -> None:
    def stage() -> nn.Module:
        return nn.Sequential(Residual(), Residual())

    in_stages = nn.Sequential(nn.Conv2d(1, 6, 3), stage(), stage())
    assert list(repeated_blocks(in_stages)) == ["1.0", "1.1", "2.0", "2.1"]

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = Residual(), Residual(), nn.Linear(2, 2)

    assert list(repeated_blocks(Named())) == ["first", "second"]
    assert repeated_blocks(mlp()) == {}
    layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
    assert [len(piece) for piece in pieces(layers)] == [3, 4, 3]
    assert list(long_sequences(layers)) == [""]
    nested = nn.Sequential(layers, *(nn.Linear(2, 2) for _ in range(3)))
    assert list(long_sequences(nested)) == ["0"]
    mixed = nn.Sequential(
        nn.Flatten(), *(layer for _ in range(4) for layer in (nn.Linear(2, 2), nn.ReLU(inplace=True)))
    )
    assert [len(piece) for piece in pieces(mixed)] == [3, 2, 4]
    found = [layer for piece in pieces(mixed) for layer in piece]
    assert found == list(mixed)
    assert [len(piece) for piece in pieces(nn.Sequential(nn.Linear(2, 2), *(nn.ReLU() for _ in range(8))))] == [9]


def test_a_network_without_blocks_is_refused_by_name(little: Splits) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(256, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1))  # type: ignore[no-any-return]

    job = make_job(little, Method(loss=CleanLoss()), Flat(), training={"recompute_activations": True})
    with pytest.raises(RecomputationError, match=r"recompute_activations: the model \(Flat\) has no blocks"):
        run(job, Path("unused"))
    traced = torch.jit.trace(Net().eval(), torch.rand(2, 1, 16, 16))
    with pytest.raises(RecomputationError, match="the guide is a TorchScript program"):
        check_blocks(traced, "guide")


def test_a_block_that_changes_its_input_is_refused() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.linear = nn.ReLU(inplace=True), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.act(x))  # type: ignore[no-any-return]

    network = nn.Sequential(nn.Linear(4, 4), InPlace(), InPlace())
    with recomputed_activations(network), pytest.raises(RecomputationError, match="the input of the block 1"):
        network(torch.rand(2, 4))


def test_layers_in_a_row_may_work_in_place() -> None:
    torch.manual_seed(0)
    layers = [
        part for _ in range(4) for part in (nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.ReLU(inplace=True))
    ]
    plain = nn.Sequential(*layers, nn.Flatten())
    saving = copy.deepcopy(plain)
    x = torch.rand(3, 1, 8, 6)
    wanted = gradients(plain, x)
    with recomputed_activations(saving):
        found = gradients(saving, x)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


def test_an_input_that_is_changed_after_the_block_is_refused() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Residual(2) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            for layer in self.layers:
                found, _ = layer(x)
                x += found
            return x.flatten(1)

    network = Late()
    with recomputed_activations(network):
        output = network(torch.rand(2, 2, 4, 4))
        with pytest.raises((RecomputationError, RuntimeError), match=r"in-?place operation"):
            output.sum().backward()


def test_a_pass_in_evaluation_mode_has_the_statistics_of_its_time() -> None:
    x = torch.rand(4, 1, 16, 16)
    found = []
    for saving in (False, True):
        network = Net()
        with recomputed_activations(network) if saving else nullcontext():
            here = x.clone().requires_grad_()
            early = network.eval()(here)
            if saving:
                network.train()(x)  # moves the running statistics
            found.append(torch.autograd.grad(early.logsumexp(1).sum(), here)[0])
        assert network.training == saving
    assert torch.equal(*found)


def test_vectors_of_spectral_normalisation_are_those_of_the_first_pass() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        made = Net()
        for block in made.blocks:
            torch.nn.utils.parametrizations.spectral_norm(block.layers[0])  # type: ignore[union-attr, index, arg-type]
        return made

    x, plain, saving = torch.rand(4, 1, 16, 16), network(), network()
    wanted = gradients(plain, x)
    with recomputed_activations(saving):
        found = gradients(saving, x)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


def test_the_digest_of_a_run_does_not_depend_on_it() -> None:
    recipe = read_recipe("mnist5k/trades")
    digests = {
        flag: build_config(apply_overrides(recipe, ["--training.recompute_activations", flag])).digest()
        for flag in ("true", "false")
    }
    assert digests["true"] == digests["false"] == build_config(recipe).digest()
