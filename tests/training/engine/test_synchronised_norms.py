"""`training.sync_batch_norm`: batch normalisation over the batch of all processes, as in one process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from group import in_group
from safetensors.torch import load_file
from torch import Tensor, nn
from training_tools import blocks_net, final, make_job, run, same, small_digits

from robustly.cli.recipes import read_recipe
from robustly.data import Splits
from robustly.experiments.configuration import build_config
from robustly.experiments.overrides import apply_overrides
from robustly.runtime import Runtime, RuntimeConfig
from robustly.training import AdversarialLoss, CleanLoss, Job, Method, MethodError, PGDInner, train
from robustly.training.engine.placing import fewest_images, place_networks
from robustly.training.engine.synchronised_norms import SynchronisedNormError, check_norms, synchronised_norms
from robustly.training.engine.trial import TrialError
from robustly.training.inner.early_stopped import FriendlyInner
from robustly.training.losses.consistency import TradesLoss
from robustly.training.parameters.averaging import WeightAverage

NORMS: dict[str, Callable[[], nn.Module]] = {
    "images": lambda: nn.BatchNorm2d(3),
    "vectors": lambda: nn.BatchNorm1d(3, momentum=None),
    "volumes": lambda: nn.BatchNorm3d(3, affine=False, momentum=0.9),
    "without running statistics": lambda: nn.BatchNorm1d(3, track_running_stats=False),
}


def inputs_of(norm: nn.Module) -> Tensor:
    torch.manual_seed(2)
    sides = {nn.BatchNorm1d: (), nn.BatchNorm2d: (4, 5), nn.BatchNorm3d: (2, 3, 2)}[type(norm)]
    return 10 + torch.rand(7, 3, *sides, dtype=torch.float64)  # far from 0, where a difference of squares is noise


def results(norm: nn.Module, x: Tensor, weights: Tensor) -> list[Tensor]:
    """Outputs of two passes, first and second derivatives with respect to inputs and parameters, and buffers."""
    here = x.clone().requires_grad_()
    output = norm(here) + norm(here * here)
    parameters = list(norm.parameters())
    (first,) = torch.autograd.grad((output.exp() * weights).sum(), here, create_graph=True)
    second = torch.autograd.grad(
        (first.sin() * weights).sum(), [here, *parameters], retain_graph=True, allow_unused=True
    )
    third = torch.autograd.grad((output.exp() * weights).sum(), parameters) if parameters else ()
    summed = [value for value in (*second[1:], *third) if value is not None]
    return [output.detach(), first.detach(), second[0], *summed, *norm.buffers()]


def _compared(rank: int, folder: Path) -> None:
    runtime = Runtime(RuntimeConfig(device="cpu", processes=2))
    found: dict[str, Any] = {}
    rows = slice(0, 4) if rank == 0 else slice(4, 7)
    for name, made in NORMS.items():
        norm = made().double()
        x = inputs_of(norm)
        weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
        with synchronised_norms([norm]):
            found[name] = results(norm, x[rows], weights[rows])
        assert "forward" not in vars(norm)
        norm.eval()
        with synchronised_norms([norm]):
            found[f"{name}, evaluated"] = norm(x[rows]).detach()
    half = nn.BatchNorm2d(3)
    with synchronised_norms([half]), torch.autocast("cpu", dtype=torch.bfloat16):
        found["half"] = half(inputs_of(half).float().bfloat16()[rows]).detach()
    torch.save(found, folder / f"{rank}.pt")
    for name, made_job in JOBS.items():
        path = folder / name
        path.mkdir(exist_ok=True)
        train(made_job(small_digits(34)), runtime, path, config_digest="test")
    runtime.close()


def job(splits: Splits, method: Method, **training: Any) -> Job:
    return make_job(splits, method, blocks_net(), training={"sync_batch_norm": True, "batch_size": 16} | training)


AT = Method(inner=PGDInner(steps=2, mode="train", start="random"), loss=AdversarialLoss())
JOBS: dict[str, Callable[[Splits], Job]] = {
    "attacked": lambda splits: job(splits, AT),
    "averaged": lambda splits: job(
        splits,
        Method(inner=PGDInner(objective="kl", steps=1), loss=TradesLoss(), parameters=(WeightAverage(start=0),)),
    ),
    "recomputed": lambda splits: job(splits, AT, recompute_activations=True),
    "one image each": lambda splits: job(splits, Method(loss=CleanLoss()), batch_size=2),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    in_group(_compared, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_a_layer_over_two_processes_is_that_of_the_whole_batch(name: str, two: Path) -> None:
    norm = NORMS[name]().double()
    x = inputs_of(norm)
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    wanted = results(norm, x, weights)
    first, second = (torch.load(two / f"{rank}.pt", weights_only=True) for rank in range(2))
    for place, value in enumerate(wanted):
        one, other = first[name][place], second[name][place]
        if place < 3:
            joined = torch.cat([one, other])
        elif place < len(wanted) - len(list(norm.buffers())):
            joined = one + other  # gradients of parameters are summed by data parallelism
        else:
            joined = one
            assert torch.equal(one, other)
        assert torch.allclose(joined, value, rtol=1e-8, atol=1e-8), place
    norm.eval()
    evaluated = torch.cat([content[f"{name}, evaluated"] for content in (first, second)])
    assert torch.allclose(evaluated, norm(x).detach(), rtol=1e-10)


@pytest.mark.slow
def test_half_precision_is_that_of_the_whole_batch(two: Path) -> None:
    norm = nn.BatchNorm2d(3)
    wanted = norm(inputs_of(norm).float().bfloat16())
    found = torch.cat([torch.load(two / f"{rank}.pt", weights_only=True)["half"] for rank in range(2)])
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), wanted.float(), atol=0.02)


class OwnNorm(nn.BatchNorm2d):
    """A normalisation with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_networks_without_such_layers_are_refused(little: Splits) -> None:
    bare = make_job(little, Method(loss=CleanLoss()), training={"sync_batch_norm": True})
    with pytest.raises(SynchronisedNormError, match="sync_batch_norm has no effect: no trained network has"):
        place_networks(bare, torch.device("cpu"))
    with pytest.raises(SynchronisedNormError, match="1 of the guide is a OwnNorm with a forward pass of its own"):
        check_norms({"model": blocks_net(), "guide": nn.Sequential(nn.Conv2d(1, 2, 3), OwnNorm(2))})
    scripted = torch.jit.trace(blocks_net().eval(), torch.rand(2, 1, 16, 16))
    with pytest.raises(SynchronisedNormError, match="the model is a TorchScript program"):
        check_norms({"model": scripted})


def test_an_attack_that_stops_early_in_training_mode_is_refused_with_several_processes(little: Splits) -> None:
    early = Method(inner=FriendlyInner(steps=3, taus=(0,), boundaries=(), mode="train"), loss=AdversarialLoss())
    made = job(little, early)
    made.check_processes(1)
    with pytest.raises(MethodError, match=r"inner \(FriendlyInner\) stops early .* set method.inner.mode to eval"):
        made.check_processes(2)
    replace(made, method=replace(early, inner=replace(early.inner, mode="eval"))).check_processes(2)  # type: ignore[type-var]


def test_one_process_is_not_changed(little: Splits, tmp_path: Path) -> None:
    for name in ("plain", "synchronised"):
        run(job(little, AT, sync_batch_norm=name != "plain", epochs=1), tmp_path / name)
    assert same(final(tmp_path / "plain"), final(tmp_path / "synchronised"))


def test_with_it_a_process_needs_one_image_of_a_batch(little: Splits) -> None:
    made = replace(job(little, AT, batch_size=2), model=vectors_net())
    placed = place_networks(made, torch.device("cpu"), 2)
    assert fewest_images(made, placed, 2, 1) == 2
    with pytest.raises(TrialError, match="batch normalisation of the networks needs at least 4 images"):
        place_networks(
            replace(made, training=replace(made.training, sync_batch_norm=False)), torch.device("cpu"), 2
        )


def vectors_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


def test_the_digest_names_it_only_where_it_is_set() -> None:
    recipe = read_recipe("mnist5k/trades")
    plain, false, true = (
        build_config(apply_overrides(recipe, words)).digest()
        for words in ([], ["--training.sync_batch_norm", "false"], ["--training.sync_batch_norm", "true"])
    )
    assert plain == false != true


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_two_processes_train_what_one_trains(name: str, two: Path, tmp_path: Path) -> None:
    run(JOBS[name](small_digits(34)), tmp_path)
    first, second = load_file(tmp_path / "model.safetensors"), load_file(two / name / "model.safetensors")
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.allclose(value, second[key], atol=2e-5), key
