"""Our own networks from a file of their weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustly.models import (
    ModelConfig,
    WeightsError,
    about_model,
    build_model,
    read_weights,
    recognised,
    save_weights,
    weights_hash,
)

THREE = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
CONFIGS = [
    ModelConfig("small_cnn", width=0.25, classes=7, channels=3, image_size=(20, 20)),
    ModelConfig("conv_small", width=0.3, classes=5, channels=3, image_size=(22, 18), **THREE),
    ModelConfig("preact_resnet18", width=0.13, classes=3),
    ModelConfig("wrn16_4", width=0.3, mean=THREE["mean"], std=THREE["std"]),
    ModelConfig("tafd_resnet18", width=0.13, classes=3, **THREE),
    ModelConfig("tafd_small_cnn", width=0.25, classes=7, image_size=(20, 24)),
    ModelConfig("wrn16_4", width=0.25, classes=5, channels=1),  # without a shortcut in its first block
]


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_names_and_shapes_show_the_settings(tmp_path: Path, config: ModelConfig) -> None:
    model, file = build_model(config, 0), tmp_path / "w.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, file)
    found = recognised(file)
    assert (found.name, found.width, found.weights) == (config.name, config.width, str(file))
    rebuilt = build_model(replace(found, image_size=config.image_size), 1)
    assert weights_hash(rebuilt) == weights_hash(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"block1.layer.1.bn2.weight": None},
        {"block1.layer.0.convShortcut.weight": torch.zeros(16, 16, 1, 1)},
        {"normalize.mean": torch.zeros(1, 3, 1, 1)},
        {"normalize.mean": torch.zeros(1, 1, 1, 1), "normalize.std": torch.ones(1, 1, 1, 1)},
        {"conv1.weight": torch.zeros(16)},
        {"fc.weight": torch.zeros(5, 0)},
        {"fc.weight": torch.zeros(2, 64 * 4 * 65)},
    ],
)
def test_missing_and_unknown_weights_show_no_network(
    tmp_path: Path, changed: dict[str, torch.Tensor | None]
) -> None:
    state = build_model(ModelConfig("wrn16_4", width=0.25), 0).state_dict()
    file = tmp_path / "w.pth"
    torch.save({name: value for name, value in {**state, **changed}.items() if value is not None}, file)
    with pytest.raises(WeightsError, match="fits none of the networks"):
        recognised(file)


def test_two_sets_of_weights_of_the_whole_network_are_not_guessed(tmp_path: Path) -> None:
    first, second = (build_model(ModelConfig("wrn16_4", width=0.25), seed).state_dict() for seed in (0, 1))
    file = tmp_path / "w.pth"
    torch.save(
        {f"{key}.{name}": value for key, state in (("a", first), ("b.c", second)) for name, value in state.items()},
        file,
    )
    with pytest.raises(WeightsError, match="fits none of the networks"):
        recognised(file)


def test_networks_of_the_same_shapes_are_not_guessed(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(build_model(ModelConfig("resnet18", width=0.05), 0), file)
    with pytest.raises(WeightsError, match=r"fits resnet18, resnet18_lbgat, which .*choose one with --model"):
        recognised(file)
    assert recognised(file, among=("resnet18_lbgat",)).width == 0.05


def test_the_metadata_of_a_file_states_the_settings_and_leaves_the_hash(tmp_path: Path) -> None:
    config = ModelConfig("resnet18_lbgat", width=0.05, activation="silu", weights="start.pt")
    model, file = build_model(replace(config, weights=None), 0), tmp_path / "w.safetensors"
    save_weights(model, file, about_model(config))
    assert recognised(file) == replace(config, weights=str(file))
    assert weights_hash(read_weights(file)) == weights_hash(model)
    save_weights(model, file, {"robustly": f'{{"model": {about_model(config)["model"]}}}'})  # as exported
    assert recognised(file) == replace(config, weights=str(file))


@pytest.mark.parametrize(
    "text", ["{", '{"name": "nonet"}', '{"nokey": 1}', "[]", '{"name": "small_cnn", "width": 1e9}']
)
def test_wrong_metadata_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "w.safetensors"
    save_weights({"a": torch.zeros(1)}, file, {"model": text})
    with pytest.raises(WeightsError, match="metadata does not state settings of a model"):
        recognised(file)


def test_weights_of_other_networks_are_refused(tmp_path: Path) -> None:
    save_weights({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"fits none of the networks small_cnn.*--timm NAME or --hf-model"):
        recognised(tmp_path / "w.safetensors")
