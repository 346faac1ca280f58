"""Networks of a method's own: forward passes at its own inputs, optimisers, checkpoints, what is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_tools import NormNet, Stop, final, last, make_job, make_step, mlp, run, same

from robustly.data import Splits
from robustly.training import (
    AuxiliaryNetwork,
    CleanLoss,
    GuideLabels,
    Job,
    Method,
    MethodError,
    OptimizerConfig,
    Part,
    PGDInner,
    Step,
    Terms,
    WeightPerturbation,
)
from robustly.training.cost import step_cost
from robustly.training.engine.checkpoint import CheckpointError
from robustly.training.losses.terms import label_loss
from robustly.training.method import outer_loss
from robustly.training.parts import CONVENTIONAL_NETWORKS

OWN = OptimizerConfig(name="adamw", learning_rate=0.003, clip_norm=0.5)


@dataclass(frozen=True)
class TwoLosses(Part):
    """Two networks, each with its own cross-entropy: they train as if alone."""

    reads = ("clean", "helper@clean")

    def __call__(self, step: Step) -> Terms:
        return {
            "clean": label_loss(step.clean_logits, step.labels),
            "helper": label_loss(step.logits("helper"), step.labels),
        }


@dataclass(frozen=True)
class Extrapolated(Part):
    """HAT's third term: the model at x + 2 (x' - x) takes the label of a helper at x'."""

    reads = ("clean", "adversarial", "helper@adversarial")

    def __call__(self, step: Step) -> Terms:
        further = step.x + 2 * (step.adversarial.x_adv - step.x)
        label = step.logits("helper", "adversarial").argmax(1)
        logits = step.logits_at("model", further)
        return {
            "clean": label_loss(step.clean_logits, step.labels),
            "helper": nn.functional.cross_entropy(logits, label, reduction="none"),
            "adversarial": label_loss(step.adversarial_logits, step.labels),
        }


# forward passes


def test_a_network_that_learns_has_a_gradient_and_a_frozen_one_none() -> None:
    x, y = torch.rand(8, 1, 16, 16), torch.arange(8)
    model, helper, teacher = NormNet(0).train(), NormNet(1).train(), NormNet(2).requires_grad_(False).train()
    step = make_step(x, y, model, trained={"helper": helper}, teachers={"still": teacher})
    point = (x + 0.1).requires_grad_()
    for name, network in (("model", model), ("helper", helper)):
        logits = step.logits_at(name, point)
        assert logits.requires_grad
        assert int(network.norm.num_batches_tracked) == 1, "in train mode"
        assert step.network(name) is network
    logits = step.logits_at("still", point)
    assert not logits.requires_grad
    assert int(teacher.norm.num_batches_tracked) == 0, "in evaluation mode"
    assert teacher.training, "and back in the mode that it had"
    assert torch.equal(logits, NormNet(2).eval()(point))
    with pytest.raises(ValueError, match="uses the network 'other', the run has model, helper, still"):
        step.network("other")


@pytest.mark.parametrize(("name", "frozen"), [("helper", True), ("helper", False)])
def test_own_forward_passes_are_counted(name: str, frozen: bool) -> None:
    method = Method(inner=PGDInner(steps=3), loss=Extrapolated())
    cost = step_cost(method, 1, frozen=(name,) if frozen else ())
    assert cost.forwards == {"model": 3 + 3, "helper": 1}
    assert cost.backwards == {"model": 3 + 3, "helper": 0}
    perturbed = Method(inner=PGDInner(steps=3), loss=Extrapolated(), parameters=(WeightPerturbation(),))
    assert step_cost(perturbed, 1, frozen=(name,)).forwards == {"model": 3 + 3 + 3, "helper": 1}


def test_a_second_evaluation_leaves_the_statistics_of_all_networks_alone() -> None:
    class Both(Part):
        reads = ("clean",)
        networks = ("helper",)

        def __call__(self, step: Step) -> Terms:
            own = step.logits_at("helper", step.x + 0.1)
            return {"clean": label_loss(step.clean_logits, step.labels), "own": label_loss(own, step.labels)}

    model, helper = mlp(0).train(), mlp(1).train()
    step = make_step(torch.rand(8, 6).double(), torch.arange(8) % 4, model, trained={"helper": helper})
    outer_loss(Method(loss=Both(), parameters=(WeightPerturbation(gamma=0.1),)), step)
    assert int(model[1].num_batches_tracked) == int(helper[1].num_batches_tracked) == 1


def test_a_loss_by_hand_with_a_helper() -> None:
    x, y = torch.rand(8, 6).double(), torch.arange(8) % 4
    model, helper = mlp(0), mlp(1).requires_grad_(False).eval()
    inner = PGDInner(steps=2)
    step = make_step(x, y, model, inner=inner, teachers={"helper": helper})
    value, _ = outer_loss(Method(inner=inner, loss=Extrapolated()), step)
    again, x_adv = mlp(0), step.adversarial.x_adv
    z, z_adv = again(x), again(x_adv)
    third = nn.functional.cross_entropy(again(2 * x_adv - x), helper(x_adv).argmax(1))
    expected = nn.functional.cross_entropy(z, y) + nn.functional.cross_entropy(z_adv, y) + third
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)


# runs


def two(little: Splits, helper: nn.Module, optimizer: OptimizerConfig | None, epochs: int = 2) -> Job:
    networks = {"helper": AuxiliaryNetwork(helper, optimizer=optimizer)}
    training = {"epochs": epochs, "select_by": "clean"}
    return make_job(little, Method(loss=TwoLosses()), NormNet(0), networks=networks, training=training)


def alone(little: Splits, model: nn.Module, folder: Path, optimizer: OptimizerConfig | None) -> dict[str, Tensor]:
    changes = {} if optimizer is None else {"optimizer": optimizer}
    run(make_job(little, Method(), model, training={"select_by": "clean"}, **changes), folder)
    return dict(model.state_dict())


@pytest.mark.parametrize("optimizer", [None, OWN], ids=["shared", "own"])
def test_a_network_trains_with_its_own_optimiser_as_if_alone(
    optimizer: OptimizerConfig | None, little: Splits, tmp_path: Path
) -> None:
    helper = NormNet(1)
    outcome = run(two(little, helper, optimizer), tmp_path / "both")
    state = last(tmp_path / "both")
    assert same(state["networks"]["model"], alone(little, NormNet(0), tmp_path / "model", None))
    assert same(state["networks"]["helper"], alone(little, NormNet(1), tmp_path / "helper", optimizer))
    assert list(state["optimizers"]) == (["model"] if optimizer is None else ["model", "helper"])
    assert outcome.rows[-1]["helper_accuracy"] is not None


@pytest.mark.parametrize("steps", [2, 7])
def test_resumption_is_exact_with_several_optimisers(steps: int, little: Splits, tmp_path: Path) -> None:
    run(two(little, NormNet(1), OWN, 3), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(two(little, NormNet(1), OWN, 3), tmp_path / "cut", Stop(steps))
    run(two(little, NormNet(1), OWN, 3), tmp_path / "cut")
    one, other = last(tmp_path / "whole"), last(tmp_path / "cut")
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))
    assert same(one["networks"]["helper"], other["networks"]["helper"])
    for name in ("model", "helper"):
        mine, theirs = (state["optimizers"][name]["state"] for state in (one, other))
        assert all(same(mine[key], theirs[key]) for key in mine), name


def test_a_run_does_not_go_on_without_the_optimiser_that_it_had(little: Splits, tmp_path: Path) -> None:
    run(two(little, NormNet(1), None, 1), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit the networks of the run"):
        run(two(little, NormNet(1), OWN), tmp_path)


def test_a_frozen_network_of_any_name_never_learns(little: Splits, tmp_path: Path) -> None:
    helper = NormNet(3)
    before = {name: value.clone() for name, value in helper.state_dict().items()}
    method = Method(inner=PGDInner(steps=1), loss=Extrapolated())
    run(make_job(little, method, networks={"helper": AuxiliaryNetwork(helper, frozen=True)}), tmp_path)
    assert same(before, dict(helper.state_dict()))
    assert list(last(tmp_path)["networks"]) == ["model"]
    other = {"helper": AuxiliaryNetwork(NormNet(4), frozen=True)}
    with pytest.raises(CheckpointError, match="the weights of the helper differ"):
        run(make_job(little, method, networks=other, training={"epochs": 3}), tmp_path)


# what is refused


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ({}, r"uses the network 'helper', the run has none: set the key 'networks\.helper'"),
        (
            {"helper": AuxiliaryNetwork(mlp()), "other": AuxiliaryNetwork(mlp())},
            r"has the network 'other' that the method does not use: set the key 'networks\.other' to null",
        ),
    ],
)
def test_networks_are_exactly_those_that_the_method_uses(
    networks: dict[str, AuxiliaryNetwork], message: str, little: Splits
) -> None:
    with pytest.raises(MethodError, match=message):
        make_job(little, Method(loss=TwoLosses()), networks=networks)


def test_names_have_their_conventional_kind(little: Splits) -> None:
    assert CONVENTIONAL_NETWORKS == {"guide": "trained", "teacher": "frozen", "standard_teacher": "frozen"}
    frozen_guide = {"guide": AuxiliaryNetwork(mlp(), frozen=True)}
    method = Method(labels=GuideLabels(), loss=CleanLoss())
    with pytest.raises(MethodError, match="'guide' is the name of a trained network, this one is frozen"):
        make_job(little, method, networks=frozen_guide)
    for name in ("model", "a.b", "my helper"):

        class Named(CleanLoss):
            networks = (name,)

        with pytest.raises(MethodError, match=f"other than 'model', got '{name}'"):
            make_job(little, Method(loss=Named()), networks={name: AuxiliaryNetwork(mlp())})


@pytest.mark.parametrize("make", [lambda: AuxiliaryNetwork(mlp(), frozen=True, optimizer=OWN)])
def test_a_frozen_network_has_no_optimiser(make: Callable[[], object]) -> None:
    with pytest.raises(MethodError, match="a frozen network has no optimizer"):
        make()
