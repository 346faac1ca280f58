"""Every shipped recipe: its settings are valid, and a little run of it that is stopped and resumed ends bit by bit
as an unbroken one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training_tools import Stop, final, last, same, small_net

from robustly.cli.recipes import read_recipe, recipe_names
from robustly.experiments.configuration import build_config
from robustly.experiments.overrides import apply_overrides
from robustly.experiments.run_folder import build_job
from robustly.models import save_weights
from robustly.runtime import Runtime, RuntimeConfig
from robustly.training import Job, Observer, train
from robustly.training.engine.job import check_networks
from robustly.training.parts import CONVENTIONAL_NETWORKS

EPOCHS, STEPS_PER_EPOCH = 3, 3
LITTLE = {
    "threat": "linf:0.1",
    "data.source": "mnist5k",
    "data.train_limit": "90",
    "data.validation": "20",
    "data.test": "20",
    "data.image_size": "16",
    "training.epochs": str(EPOCHS),
    "training.batch_size": "32",
    "training.validation_steps": "1",
    "training.validation_batch_size": "20",
}


WITH_NORMS = {
    "cifar10/at_awp": {},  # attacks in train mode
    "cifar10/gkl": {"training.epsilon_ramp": "2"},  # averages over epochs, its own prior, AWP
    "cifar10/dynat_inner_awp": {},
    "cifar10/free_at": {},
    "cifar10/trades_extra": {},  # moving average, attacks in train mode that statistics do not see
    "cifar10/pgd_at": {"method.parameters": "{swa: {start: 1}, grad_align: {weight: 0.1}}"},
}
"""Recipes whose networks keep running statistics, as those of `mnist5k` do not."""


def little_job(recipe: str, teacher: Path, extra: Path) -> Job:
    """The recipe's method on 90 digits, its late parts at work from the second epoch on."""
    settings = read_recipe(recipe)
    words = LITTLE | WITH_NORMS.get(recipe, {})
    for role in ("model", *CONVENTIONAL_NETWORKS):
        if settings.get(role) is not None or role == "model":
            words[f"{role}.width"] = "0.0625" if recipe in WITH_NORMS else "0.25"
            if recipe in WITH_NORMS:
                words |= {f"{role}.name": "resnet18", f"{role}.mean": "[0.1]", f"{role}.std": "[0.3]"}
            elif role == "model":
                words["model.dropout"] = "0.3"
            if role.endswith("teacher"):
                words[f"{role}.weights"] = str(teacher)
    data, method = settings["data"], settings["method"]
    assert isinstance(data, dict)
    assert isinstance(method, dict)
    if "extra_source" in data:
        words["data.extra_source"] = str(extra)
    late = {"weights": method.get("weights"), "loss": method.get("loss")}
    late |= {f"parameters.{name}": part for name, part in (method.get("parameters") or {}).items()}
    for slot, part in late.items():
        for key in ("burn_in", "start", "begin") + (("warm_up",) if slot.endswith("awp") else ()):
            if isinstance(part, dict) and part.get(key, 0) > 1:
                words[f"method.{slot}.{key}"] = "1"
    plain = apply_overrides(settings, [word for key, value in words.items() for word in (f"--{key}", value)])
    return build_job(build_config(plain), lambda name: False)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learnt nothing, but says something."""
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    net = small_net()
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    save_weights(net, path)
    return path


@pytest.fixture(scope="module")
def extra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of nothing, with labels."""
    path = tmp_path_factory.mktemp("extra") / "noise.npz"
    numbers = np.random.default_rng(0)
    np.savez(path, image=numbers.integers(256, size=(40, 16, 16), dtype=np.uint8), label=np.arange(40) % 10)
    return path


def go(job: Job, folder: Path, observer: Observer | None = None) -> None:
    folder.mkdir(exist_ok=True)
    train(job, Runtime(RuntimeConfig(device="cpu")), folder, config_digest="test", observer=observer)


@pytest.mark.parametrize("recipe", [*(name for name in recipe_names() if name.startswith("mnist5k/")), *WITH_NORMS])
def test_a_stopped_run_ends_as_an_unbroken_one(recipe: str, teacher: Path, extra: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    go(little_job(recipe, teacher, extra), whole)
    steps = STEPS_PER_EPOCH * little_job(recipe, teacher, extra).method.replays
    with pytest.raises(KeyboardInterrupt):
        go(little_job(recipe, teacher, extra), cut, Stop(steps + 2))  # in the second epoch
    with pytest.raises(KeyboardInterrupt):
        go(little_job(recipe, teacher, extra), cut, Stop(steps + 1))  # in the third
    go(little_job(recipe, teacher, extra), cut)
    assert same(final(whole), final(cut))
    one, other = last(whole), last(cut)
    assert one["networks"].keys() == other["networks"].keys()
    for role, weights in one["networks"].items():
        assert same(weights, other["networks"][role]), role
    assert one["memory"].keys() == other["memory"].keys()
    for part, tensors in one["memory"].items():
        assert same(tensors, other["memory"][part]), part


@pytest.mark.parametrize("recipe", recipe_names())
def test_settings_are_valid_and_name_their_source(recipe: str) -> None:
    settings = read_recipe(recipe)
    for role in ("teacher", "standard_teacher"):
        if isinstance(network := settings.get(role), dict):
            assert "weights" not in network, "whose teacher that is says the user"
            settings[role] = {**network, "weights": "FILE"}
    config = build_config(settings)
    config.method.check_epochs(config.training.epochs)
    check_networks(config.method, {name: network.frozen for name, network in config.networks.items()})
    assert config.recipe == recipe


def test_every_method_of_the_literature_is_there_for_both_data_sets() -> None:
    for method in WANTED:
        for data in ("mnist5k", "cifar10"):
            assert f"{data}/{method}" in recipe_names(), f"{data}/{method}"


WANTED = (
    *("standard", "pgd_at", "trades", "fast_at", "n_fgsm", "gradalign", "free_at", "alp", "mart", "fat", "sat"),
    *("h_sat", "lbgat0", "lbgat6"),
    *("gairat", "mail_at", "mail_trades", "mail_mart", "at_awp", "trades_awp", "gkl", "ikl", "kd_swa"),
    *("ard", "rslad", "iad", "iad2", "adaad", "trades_smoothed", "trades_awp_ema", "trades_extra"),
    *("fat_trades", "fat_mart", "gair_fat", "mail_mse"),
    *("dynat", "dynat_inner", "dynat_awp_0", "dynat_awp_1", "dynat_inner_awp", "dynat_gairat"),
    *("dynat_inner_gairat", "dynat_mail", "dynat_inner_mail", "dynat_swapped"),
)
