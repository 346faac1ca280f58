"""Rates by depth, and epochs of the head alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_tools import NormNet, Splits, Stop, final, make_job, run, same

from robustly.training import (
    AdversarialLoss,
    ExponentialAverage,
    Job,
    Method,
    MethodError,
    Observer,
    OptimizerConfig,
    PGDInner,
    WeightAverage,
    WeightPerturbation,
)
from robustly.training.engine.depth import blocks_of, head_of, rate_scales
from robustly.training.engine.optimisation import Optimizers, build_optimizer
from robustly.training.modes import frozen_parts, train_mode

pytestmark = pytest.mark.slow


def sizes(network: nn.Module, head: str | None = None) -> list[int]:
    return [len(block) for block in blocks_of(network, head_of(network, head)[1])]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))


class Residual(nn.Module):
    """The module tree of a residual network; the head is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 10)
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.layer1, self.layer2 = nn.Sequential(Block(), Block()), nn.Sequential(Block())


class Encoder(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) if i else nn.Linear(8, 8) for i in range(layers))


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.embed = nn.Parameter(torch.zeros(1, 1, 8)), nn.Linear(4, 8)
        self.encoder, self.norm = Encoder(5), nn.LayerNorm(8)


class Transformer(nn.Module):
    """The module tree of a transformer of Hugging Face: everything but the head is in one child."""

    def __init__(self) -> None:
        super().__init__()
        self.vit, self.classifier = Backbone(), nn.Linear(8, 10)


def test_blocks_of_common_module_trees() -> None:
    plain = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    assert sizes(plain) == [4, 2, 2], "a normalisation belongs to the layer before it"
    assert sizes(Residual()) == [4, 6, 6, 6, 2], "blocks are not divided, the head comes last"
    assert sizes(Transformer()) == [3, 2, 2, 2, 2, 4, 2], "the token is at the depth of the embedding"
    assert sizes(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))) == [4, 2]
    wrapped = nn.Sequential(nn.Identity(), Residual())
    assert sizes(wrapped) == [4, 6, 6, 6, 2]


@pytest.mark.parametrize("network", [Residual(), Transformer(), NormNet()], ids=["residual", "transformer", "norm"])
def test_every_parameter_is_in_one_group_with_its_rate(network: nn.Module) -> None:
    config = OptimizerConfig(learning_rate=0.1, layer_decay=0.5, weight_decay=0.1, decay_norms=False)
    optimizer = build_optimizer(config, [network])
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, network.parameters()))
    Optimizers({"model": config}, [optimizer]).set_rates(0.5)
    blocks = blocks_of(network, head_of(network)[1])
    for place, block in enumerate(blocks):
        for parameter in block:
            group = next(one for one in optimizer.param_groups if any(parameter is p for p in one["params"]))
            assert group["lr"] == pytest.approx(0.1 * 0.5 * 0.5 ** (len(blocks) - 1 - place))
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


def test_without_layer_decay_the_groups_are_those_of_before() -> None:
    groups = build_optimizer(OptimizerConfig(), [NormNet()]).param_groups
    assert [len(group["params"]) for group in groups] == [2, 4]
    assert all("rate_scale" not in group for group in groups)


def test_a_shared_parameter_has_one_rate_that_of_the_head() -> None:
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    tied[2].weight = tied[0].weight
    assert rate_scales(tied, 0.5) == {tied[0].weight: 1.0}
    both = build_optimizer(OptimizerConfig(), [tied, tied])
    assert [len(group["params"]) for group in both.param_groups] == [1]


def test_heads_that_do_not_exist_are_refused_by_name() -> None:
    with pytest.raises(MethodError, match=r"no layer 'fc2' with weights; its last layers are .*head"):
        head_of(NormNet(), "fc2")
    with pytest.raises(MethodError, match="no linear layer as its head: set"):
        head_of(nn.Sequential(nn.Conv2d(1, 10, 3), nn.Flatten()))
    assert head_of(NormNet(), "conv")[0] == "conv"


@pytest.mark.parametrize("decay", [0.0, 1.5, float("nan")])
def test_layer_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="layer_decay must lie in"):
        OptimizerConfig(layer_decay=decay)


def test_settings_of_the_head_without_an_effect_are_refused(little: Splits) -> None:
    with pytest.raises(ValueError, match=r"training\.head has no effect"):
        make_job(little, Method(), NormNet(), training={"head": "head"})
    with pytest.raises(ValueError, match="head_epochs must lie between 0 and epochs"):
        make_job(little, Method(), NormNet(), training={"head_epochs": 3})
    job = make_job(little, Method(), NormNet(), training={"head_epochs": 1})
    with pytest.raises(MethodError, match=r"head_epochs.* use one process"):
        job.check_processes(2)


# frozen parts


def test_frozen_parts_are_the_largest_ones() -> None:
    network = Residual()
    network.layer1.requires_grad_(False)
    network.layer2[0].norm.requires_grad_(False)
    assert frozen_parts(network) == [network.layer1, network.layer2[0].norm]
    train_mode(network, frozen_parts(network))
    assert not network.layer1[1].norm.training
    assert network.norm.training
    assert frozen_parts(Residual()) == []


def test_frozen_parts_of_a_user_stay_as_they_are(little: Splits, tmp_path: Path) -> None:
    network = NormNet()
    network.conv.requires_grad_(False)
    network.norm.requires_grad_(False)
    before = state_of(network)
    run(make_job(little, Method(inner=PGDInner(steps=1), loss=AdversarialLoss()), network), tmp_path)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("head"))
    assert not torch.equal(before["head.weight"], after["head.weight"])
    assert not network.conv.weight.requires_grad


# epochs of the head alone


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


class States(Observer):
    """States of the model after each epoch, and modes in each step."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.states = network, [state_of(network)]

    def epoch_finished(self, row: Any, is_best: bool) -> None:
        self.states.append(state_of(self.network))


PARTS = {
    "plain": Method(),
    "attacked": Method(inner=PGDInner(steps=1, mode="train"), loss=AdversarialLoss()),
    "perturbed": Method(
        inner=PGDInner(steps=1), loss=AdversarialLoss(), parameters=(WeightPerturbation(), ExponentialAverage())
    ),
    "averaged": Method(parameters=(WeightAverage(start=0),)),
}


def head_job(little: Splits, method: Method, network: nn.Module, **training: Any) -> Job:
    settings = {"epochs": 3, "head_epochs": 2, "batch_size": 64, "validation_steps": 1} | training
    return make_job(little, method, network, training=settings)


@pytest.mark.parametrize("name", PARTS)
def test_the_body_is_bit_identical_after_the_epochs_of_the_head(name: str, little: Splits, tmp_path: Path) -> None:
    network = NormNet()
    seen = States(network)
    run(head_job(little, PARTS[name], network), tmp_path, seen)
    start, *after = seen.states
    body = [key for key in start if not key.startswith("head")]
    assert {"conv.weight", "norm.running_mean", "norm.num_batches_tracked"} <= set(body)
    for state in after[:2]:
        assert all(torch.equal(start[key], state[key]) for key in body)
        assert not torch.equal(start["head.weight"], state["head.weight"])
    assert not torch.equal(start["conv.weight"], after[2]["conv.weight"])
    assert int(after[2]["norm.num_batches_tracked"]) > 0
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_head_alone_is_trained_as_a_linear_model_on_fixed_features(little: Splits, tmp_path: Path) -> None:
    network = NormNet()
    network(torch.rand(32, 1, 16, 16))  # batch statistics that differ from those of a batch
    start = state_of(network)
    job = head_job(little, Method(), network, epochs=1, head_epochs=1, batch_size=150)
    plain = OptimizerConfig(learning_rate=0.5, momentum=0.0, weight_decay=0.0)
    run(
        make_job(
            little, Method(), network, training={"epochs": 1, "head_epochs": 1, "batch_size": 150}, optimizer=plain
        ),
        tmp_path,
    )
    twin = NormNet()
    twin.load_state_dict(start)
    features = twin.eval().norm(twin.conv(job.train.floats())).relu().flatten(1).detach()
    loss = nn.functional.cross_entropy(twin.head(features), job.train.labels)
    (gradient,) = torch.autograd.grad(loss, twin.head.weight)
    assert torch.allclose(network.head.weight, start["head.weight"] - 0.5 * gradient, atol=1e-6)


@pytest.mark.parametrize("stop_after", [4, 8, 11])
@pytest.mark.slow
def test_a_stopped_run_continues_exactly_in_each_phase(stop_after: int, little: Splits, tmp_path: Path) -> None:
    def job() -> Job:
        optimizer = OptimizerConfig(learning_rate=0.05, layer_decay=0.5)
        method = PARTS["perturbed"]
        training = {"epochs": 4, "head_epochs": 2, "batch_size": 64, "validation_steps": 1}
        return make_job(little, method, NormNet(), training=training, optimizer=optimizer)

    run(job(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(job(), tmp_path / "stopped", Stop(stop_after))
    run(job(), tmp_path / "stopped")
    assert same(final(tmp_path / "whole"), final(tmp_path / "stopped"))
    assert (tmp_path / "stopped" / "metrics.csv").read_text().count("\n") == 5
