"""Settings of the networks beside the model: from YAML to a run and back, and what is refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from robustly.cli.arguments import is_model_name, split_overrides, trust_in
from robustly.cli.recipes import read_recipe
from robustly.experiments.configuration import build_config, with_absolute_paths
from robustly.experiments.networks import NetworkConfig
from robustly.experiments.overrides import apply_overrides
from robustly.experiments.run_folder import build_job
from robustly.models import ModelConfig, build_model, save_weights
from robustly.training import LOSSES, MixtureLoss, OptimizerConfig, Part, Step, Terms

LITTLE = {
    "data": {"source": "mnist5k", "train_limit": 60, "validation": 20, "test": 20, "image_size": 16},
    "training": {"epochs": 1, "batch_size": 32, "validation_steps": 1},
    "model": {"width": 0.25},
}


@dataclass(frozen=True)
class Helped(Part):
    """Use another network and a guide."""

    reads = ("clean", "adversarial", "guide", "helper@adversarial")

    def __call__(self, step: Step) -> Terms:
        terms = MixtureLoss()(step)
        terms["guide"] = (step.guide_logits - step.logits("helper", "adversarial")).square().mean(1)
        return terms


@pytest.fixture(autouse=True)
def helped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "helped", Helped)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(build_model(ModelConfig(width=0.25, image_size=(16, 16)), seed=5), tmp_path / "helper.safetensors")
    return tmp_path / "helper.safetensors"


def settings(weights: Path | str, **networks: Any) -> dict[str, Any]:
    helper = {"width": 0.25, "weights": str(weights), "frozen": True}
    method = {"inner": {"name": "pgd", "steps": 1}, "loss": "helped"}
    return {**LITTLE, "method": method, "networks": {"helper": helper, **networks}}


def test_networks_of_a_recipe_become_those_of_a_job(weights: Path) -> None:
    guide = {"width": 0.25, "optimizer": {"name": "adamw", "learning_rate": 0.01}}
    config = build_config(settings(weights, guide=guide))
    assert config.networks == {
        "helper": NetworkConfig(ModelConfig(width=0.25, weights=str(weights)), frozen=True),
        "guide": NetworkConfig(ModelConfig(width=0.25), optimizer=OptimizerConfig("adamw", learning_rate=0.01)),
    }
    assert config.frozen_networks == ["helper"]
    assert config.model_names == ["small_cnn"] * 3
    job = build_job(config, lambda name: False)
    assert {name: network.frozen for name, network in job.networks.items()} == {"helper": True, "guide": False}
    known = build_model(ModelConfig(width=0.25, image_size=(16, 16)), seed=5).state_dict()
    found = job.networks["helper"].module.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in known.items())
    assert job.networks["guide"].optimizer == OptimizerConfig("adamw", learning_rate=0.01)


@pytest.mark.parametrize("guide", ["top level", "networks"])
def test_plain_settings_build_the_same_networks(guide: str, weights: Path) -> None:
    plain = settings(weights, **({"guide": {"width": 0.25}} if guide == "networks" else {}))
    if guide == "top level":
        plain["guide"] = {"width": 0.25}
    config = build_config(plain)
    whole = config.as_plain()
    assert build_config(whole).networks == config.networks
    assert build_config(whole).as_plain() == whole
    assert whole["guide"]["width"] == 0.25
    assert list(whole["networks"]) == ["helper"]
    assert build_config(whole).digest() == config.digest()


def test_an_optimiser_of_its_own_keeps_a_guide_under_networks(weights: Path) -> None:
    whole = build_config(settings(weights, guide={"optimizer": {"momentum": 0.5}})).as_plain()
    assert whole["guide"] is None
    assert whole["networks"]["guide"]["optimizer"]["momentum"] == 0.5


def test_the_command_line_reaches_networks(weights: Path) -> None:
    words = [
        "--networks.helper.width",
        "0.5",
        "--networks.helper.frozen=false",
        "--networks.helper.weights",
        "null",
    ]
    assert split_overrides(words) == ([], words)
    changed = apply_overrides(settings(weights, guide={}), words)
    helper = build_config(changed).networks["helper"]
    assert (helper.model.width, helper.frozen, helper.model.weights) == (0.5, False, None)
    gone = apply_overrides(settings(weights, guide={}), ["--networks.helper", "null"])
    assert list(build_config(gone).networks) == ["guide"]
    assert is_model_name("--networks.helper.name")
    assert not is_model_name("--networks.helper.names")
    assert trust_in(["--networks.helper.name", "my.nets:helper"], False).allows("my.nets:helper")


def test_files_of_weights_are_named_from_the_root(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights.parent)
    config = with_absolute_paths(build_config(settings(weights.name, guide={})))
    assert config.networks["helper"].model.weights == str(weights.resolve())


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ({"helper": {"frozen": True}}, r"networks\.helper: .* set networks\.helper\.weights to its file"),
        ({"teacher": {"frozen": True}}, r"networks\.teacher: .* set networks\.teacher\.weights to its file"),
        ({"teacher": {"weights": "FILE"}}, "'teacher' is the name of a frozen network, this one is trained"),
        ({"helper": {"frozen": True, "weights": "F", "optimizer": {}}}, "a frozen network has no optimizer"),
        ({"helper": {"frozen": 1}}, r"networks\.helper\.frozen: expected true or false, got 1"),
        ({"helper": {"width": "wide"}}, r"networks\.helper\.width"),
        ({"helper": {"widht": 2}}, r"unknown key 'networks\.helper\.widht', did you mean 'width'"),
        ({"helper": {"optimizer": {"rate": 2}}}, r"unknown key 'networks\.helper\.optimizer\.rate'"),
        ({"helper": "resnet18"}, r"networks\.helper: expected settings by name, got 'resnet18'"),
        ("helper", "networks: expected settings by name"),
        ({"model": {}}, "other than 'model'"),
        ({"guide": {}}, r"'guide' is given twice: remove one of 'guide' and 'networks\.guide'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(networks: Any, message: str) -> None:
    with pytest.raises(match=message):
        build_config({"guide": {}, "networks": networks})


def test_recipes_name_their_networks_as_before() -> None:
    config = build_config(read_recipe("mnist5k/dynat"))
    assert list(config.networks) == ["guide"]
    assert not config.networks["guide"].frozen
