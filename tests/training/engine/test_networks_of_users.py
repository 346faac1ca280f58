"""Ordinary networks of users: layouts, outputs, hooks, lazy and shared weights, types of numbers, wrappers."""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint
from training_tools import NormNet, Splits, Stop, final, last, make_job, run, same

from robustly.models import as_classifier
from robustly.training import (
    AdversarialLoss,
    ExponentialAverage,
    Method,
    PGDInner,
    WeightAverage,
    WeightPerturbation,
)
from robustly.training.engine.trial import Fit, TrialError, try_training

ATTACKED = Method(inner=PGDInner(steps=1, mode="train"), loss=AdversarialLoss())
AVERAGED = Method(
    inner=PGDInner(steps=1),
    loss=AdversarialLoss(),
    parameters=(WeightPerturbation(gamma=0.01), WeightAverage(start=0)),
)
SHORT = {"epochs": 1, "batch_size": 75, "validation_steps": 1}


class Net(nn.Module):
    """A convolution and a linear layer, with something between them and after them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu, **parts: nn.Module) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(1, 4, 3, stride=2), nn.Linear(196, 10)
        self.between = between
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.between(self.conv(x)).flatten(1))


def trial(network: nn.Module, **changes: Any) -> Fit:
    x = torch.linspace(0, 1, 4 * 256).reshape(4, 1, 16, 16)
    return try_training(network, x, 10, **({"channels_last": True} | changes))


# layouts


class Viewing(Net):
    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.conv(x))
        return self.head(z.view(len(z), -1))


class ViewingWhileTraining(Net):
    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.conv(x))
        return self.head(z.view(len(z), -1) if self.training else z.flatten(1))


class ViewingBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.x.view(len(gradient), -1).view(gradient.shape)


@pytest.mark.parametrize(
    "network",
    [Viewing(), ViewingWhileTraining(), Net(ViewingBackwards.apply)],
    ids=["both", "training", "backward"],
)
def test_networks_that_need_the_contiguous_layout_get_it(
    network: nn.Module, little: Splits, tmp_path: Path
) -> None:
    twin = copy.deepcopy(network)
    assert trial(network).layout == torch.contiguous_format
    assert network.conv.weight.is_contiguous()
    run(make_job(little, ATTACKED, network, training=SHORT), tmp_path / "one")
    run(make_job(little, ATTACKED, twin, training=SHORT | {"channels_last": False}), tmp_path / "two")
    assert same(final(tmp_path / "one"), final(tmp_path / "two"))


def test_other_networks_keep_channels_last() -> None:
    assert trial(Net()).layout == torch.channels_last
    assert trial(Net(), channels_last=False).layout == torch.contiguous_format


# outputs


class Outputs(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda z, aux: (z, aux),
    "list": lambda z, aux: [z, aux],
    "dict": lambda z, aux: {"aux": aux, "logits": z},
    "ordered": lambda z, aux: OrderedDict(out=z, aux=aux),
    "named": Outputs,
    "nested": lambda z, aux: ((z, aux), None),
}


class Auxiliary(Net):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.aux, self.kind = nn.Linear(196, 10), kind

    def forward(self, x: Tensor) -> Any:
        z = torch.relu(self.conv(x)).flatten(1)
        return OUTPUTS[self.kind](self.head(z), self.aux(z)) if self.training else self.head(z)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_first_of_several_outputs_is_trained_and_the_others_are_not(
    kind: str, little: Splits, tmp_path: Path
) -> None:
    network = Auxiliary(kind)
    aux = network.aux.weight.detach().clone()
    run(make_job(little, ATTACKED, network, training=SHORT), tmp_path / "one")
    run(make_job(little, ATTACKED, Net(), training=SHORT), tmp_path / "two")
    trained, alone = final(tmp_path / "one"), final(tmp_path / "two")
    assert all(torch.equal(trained[name], alone[name]) for name in alone)
    assert torch.equal(network.aux.weight, aux)
    assert not network._forward_hooks, "the network of the user is as before"
    network.train()
    assert not isinstance(network(little.train.floats()[:2]), Tensor)


def test_outputs_without_logits_are_refused_in_words() -> None:
    with pytest.raises(
        TrialError, match="the model does not fit: the model must return a tensor of logits, got NoneType"
    ):
        trial(_returns(lambda z: None))
    with pytest.raises(TrialError, match=r"returns \(4, 4\) for 4 images of 10 classes"):
        trial(_returns(lambda z: z[:, :4]))


def _returns(change: Callable[[Tensor], Any]) -> nn.Module:
    class Changed(Net):
        def forward(self, x: Tensor) -> Any:
            return change(super().forward(x))

    return Changed()


def test_layers_in_a_plain_list_are_refused_by_name(little: Splits, tmp_path: Path) -> None:
    class Hidden(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(10, 10)]

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0](super().forward(x))

    with pytest.raises(TrialError, match=r"plain list or dictionary \(layers\.0\).* use nn\.ModuleList"):
        run(make_job(little, Method(), Hidden(), training=SHORT), tmp_path / "refused")
    network = as_classifier(Hidden())
    before = network.inner.layers[0].weight.detach().clone()
    run(make_job(little, AVERAGED, network, training=SHORT), tmp_path / "adapted")
    assert not torch.equal(network.inner.layers[0].weight, before)
    assert "layers.0.weight" in final(tmp_path / "adapted")


# the last batch


def batch_normed(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


def test_a_last_batch_of_one_is_left_out_with_a_warning(little: Splits, tmp_path: Path) -> None:
    method = Method(inner=PGDInner(steps=1), loss=AdversarialLoss(), parameters=(WeightAverage(start=0),))
    training = {"epochs": 2, "batch_size": 149, "validation_steps": 1}
    job = make_job(little, method, batch_normed(), training=training)
    seen = Stop(10**9)
    with pytest.warns(UserWarning, match="150 images in batches of 149 leave a last batch of 1, too few") as found:
        run(job, tmp_path / "whole", seen)
    assert len([one for one in found if "last batch" in str(one.message)]) == 1
    assert seen.images == {149}
    assert int(job.model[2].num_batches_tracked) == 2
    assert last(tmp_path / "whole")["rows"][-1]["step"] == 4, "numbers of steps do not depend on it"
    with pytest.warns(UserWarning, match="last batch"), pytest.raises(KeyboardInterrupt):
        run(make_job(little, method, batch_normed(), training=training), tmp_path / "stopped", Stop(2))
    with pytest.warns(UserWarning, match="last batch"):
        run(make_job(little, method, batch_normed(), training=training), tmp_path / "stopped")
    assert same(final(tmp_path / "whole"), final(tmp_path / "stopped"))


def test_a_last_batch_of_one_is_used_where_it_can_be(little: Splits, tmp_path: Path) -> None:
    seen = Stop(10**9)
    run(make_job(little, Method(), Net(), training=SHORT | {"batch_size": 149}), tmp_path, seen)
    assert seen.images == {149, 1}


def test_batches_of_one_under_batch_normalisation_are_refused(little: Splits, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match=r"training\.batch_size: .* at least 2 images in a batch, there are 1"):
        run(make_job(little, Method(), batch_normed(), training=SHORT | {"batch_size": 1}), tmp_path)


# hooks, lazy and shared weights


def hooked(normalise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    network = NormNet()
    network.conv = normalise(network.conv)
    return network


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("average", [WeightAverage(start=0), ExponentialAverage(decay=0.5, warm_up=0.0)])
@pytest.mark.parametrize("normalise", [weight_norm, parametrizations.weight_norm], ids=["hook", "parametrization"])
def test_weight_normalisation_with_averages_and_perturbed_weights(
    normalise: Callable[[nn.Module], nn.Module], average: Any, little: Splits, tmp_path: Path
) -> None:
    method = Method(inner=PGDInner(steps=1), loss=AdversarialLoss(), parameters=(WeightPerturbation(), average))
    network = hooked(normalise)
    run(make_job(little, method, network, training=SHORT), tmp_path)
    released, own = final(tmp_path), network.state_dict()
    gains = [name for name in released if name.endswith(("weight_g", "original0"))]
    assert len(gains) == 1
    if isinstance(average, WeightAverage):
        assert torch.equal(released[gains[0]], own[gains[0]]), "the average of one epoch"
    else:
        assert not torch.equal(released[gains[0]], own[gains[0]])


def test_networks_that_cannot_be_copied_are_averaged_too(little: Splits, tmp_path: Path) -> None:
    network = NormNet()
    network.lock = threading.Lock()
    with pytest.raises(TypeError, match="pickle"):
        copy.deepcopy(network)
    run(make_job(little, AVERAGED, network, training=SHORT), tmp_path / "one")
    run(make_job(little, AVERAGED, NormNet(), training=SHORT), tmp_path / "two")
    assert same(final(tmp_path / "one"), final(tmp_path / "two"))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


def test_lazy_parameters_depend_on_the_seed_alone(little: Splits, tmp_path: Path) -> None:
    for name, noise in (("one", 1), ("two", 2)):
        torch.manual_seed(noise)
        run(make_job(little, ATTACKED, lazy(), training=SHORT), tmp_path / name)
    assert same(final(tmp_path / "one"), final(tmp_path / "two"))
    run(make_job(little, ATTACKED, lazy(), training=SHORT, seed=1), tmp_path / "three")
    assert not same(final(tmp_path / "one"), final(tmp_path / "three"))


class Tied(nn.Module):
    """Two layers with one matrix."""

    def __init__(self, copies: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(256, 256), nn.Linear(256, 256)
            self.head = nn.Linear(256, 10)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.flatten(1)).relu()).relu())


def test_shared_weights_stay_shared(little: Splits, tmp_path: Path) -> None:
    method = Method(
        inner=PGDInner(steps=1), loss=AdversarialLoss(), parameters=(WeightPerturbation(), ExponentialAverage())
    )
    network = Tied()
    before = network.first.weight.detach().clone()
    run(make_job(little, method, network, training=SHORT | {"epochs": 2}), tmp_path)
    assert network.second.weight is network.first.weight
    assert not torch.equal(network.first.weight, before)
    released = final(tmp_path)
    assert torch.equal(released["first.weight"], released["second.weight"])


# types of numbers, wrappers, checkpoints, images changed in place


def test_double_networks_are_trained_in_double(little: Splits, tmp_path: Path) -> None:
    run(make_job(little, ATTACKED, Net().double(), training=SHORT), tmp_path / "double")
    run(make_job(little, ATTACKED, Net(), training=SHORT), tmp_path / "single")
    double, single = final(tmp_path / "double"), final(tmp_path / "single")
    assert {value.dtype for value in double.values()} == {torch.float64}
    assert all(torch.allclose(double[name].float(), single[name], atol=1e-3) for name in single)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_networks_are_refused_in_words(dtype: torch.dtype, little: Splits, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match=rf"the model has parameters in {dtype}, .*: convert it with \.float\(\)"):
        run(make_job(little, Method(), Net().to(dtype), training=SHORT), tmp_path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_frozen_program_without_modes_can_be_a_teacher() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10)).eval()
    x = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for program in (
        torch.jit.freeze(torch.jit.script(net)),
        as_classifier(torch.jit.freeze(torch.jit.script(net))),
    ):
        fit = try_training(program, x, 10, channels_last=True, trained=False)
        assert not fit.takes_first


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "parallel"])
@pytest.mark.slow
def test_wrappers_are_removed(wrap: Callable[[nn.Module], nn.Module], little: Splits, tmp_path: Path) -> None:
    network = Net()
    run(make_job(little, AVERAGED, wrap(network), training=SHORT), tmp_path / "wrapped")
    run(make_job(little, AVERAGED, Net(), training=SHORT), tmp_path / "bare")
    assert same(final(tmp_path / "wrapped"), final(tmp_path / "bare"))


def test_reentrant_checkpoints_are_refused_with_the_remedy(little: Splits, tmp_path: Path) -> None:
    class Checkpointed(Net):
        reentrant = True

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return super().forward(x)
            return self.head(checkpoint(self.conv, x, use_reentrant=self.reentrant).relu().flatten(1))

    with pytest.raises(TrialError, match=r"reentrant kind.* pass use_reentrant=False to torch\.utils\.checkpoint"):
        run(make_job(little, ATTACKED, Checkpointed(), training=SHORT), tmp_path / "no")
    other = Checkpointed()
    other.reentrant = False
    run(make_job(little, ATTACKED, other, training=SHORT), tmp_path / "one")
    run(make_job(little, ATTACKED, Net(), training=SHORT), tmp_path / "two")
    assert same(final(tmp_path / "one"), final(tmp_path / "two"))


def test_networks_that_change_their_images_get_a_copy(little: Splits, tmp_path: Path) -> None:
    class Standardised(Net):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            self.in_place = in_place

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(0.5).div_(0.25) if self.in_place else (x - 0.5) / 0.25)

    assert trial(Standardised(True)).copies_input
    assert not trial(Standardised(False)).copies_input
    for name, in_place in (("in_place", True), ("plain", False)):
        run(make_job(little, ATTACKED, Standardised(in_place), training=SHORT), tmp_path / name)
    assert same(final(tmp_path / "in_place"), final(tmp_path / "plain"))


def test_scripted_networks_are_trained(little: Splits, tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    twin = copy.deepcopy(plain)
    run(make_job(little, AVERAGED, torch.jit.script(plain), training=SHORT), tmp_path / "script")
    run(make_job(little, AVERAGED, twin, training=SHORT), tmp_path / "plain")
    assert same(final(tmp_path / "script"), final(tmp_path / "plain"))


def test_a_network_without_anything_to_train_is_refused(little: Splits, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="no parameter that requires a gradient: there is nothing to train"):
        run(make_job(little, Method(), Net().requires_grad_(False), training=SHORT), tmp_path)


def test_a_network_that_fails_is_refused_with_its_reason() -> None:
    with pytest.raises(
        TrialError, match=r"the guide fails in a trial on images of shape \(4, 1, 16, 16\): mat1 and mat2"
    ):
        trial(nn.Sequential(nn.Flatten(), nn.Linear(7, 10)), name="guide")


@pytest.mark.parametrize(
    ("message", "reason"), [("", "RuntimeError"), ("\n", "RuntimeError"), ("\n no room\nat all", "no room")]
)
def test_the_reason_of_a_failing_network_is_never_empty(message: str, reason: str) -> None:
    class Failing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError(message)

    with pytest.raises(TrialError, match=rf"fails in a trial on images of shape \(4, 1, 16, 16\): {reason}$"):
        trial(Failing(2, 2), name="model")


def test_a_trial_changes_nothing() -> None:
    network = nn.Sequential(NormNet(), nn.Dropout(0.5)).train()
    network[0].norm.eval()
    network[0].conv.weight.grad = torch.ones_like(network[0].conv.weight)
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    fit = trial(network)
    assert (fit.smallest_batch, fit.unused, fit.takes_first) == (1, (), False)
    assert same(before, network.state_dict())
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network.modules()] == [True, True, True, False, True, True]
    assert torch.equal(network[0].conv.weight.grad, torch.ones_like(network[0].conv.weight))
    assert trial(Auxiliary("tuple")).unused == ("aux.weight", "aux.bias")
