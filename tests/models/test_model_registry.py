"""Models from configurations: seeds, settings, and a user's own code only where it is allowed."""

from pathlib import Path

import pytest
import torch
from torch import nn

from robustly.models import MODELS, ModelConfig, build_model, save_weights, weights_hash


def small(**settings: object) -> ModelConfig:
    return ModelConfig("resnet18", width=0.1, **settings)  # type: ignore[arg-type]


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = weights_hash(build_model(small(), seed=5))
    torch.manual_seed(2)
    assert weights_hash(build_model(small(), seed=5)) == first
    assert weights_hash(build_model(small(), seed=6)) != first


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_model(small(), seed=0)
    with pytest.raises(FileNotFoundError):
        build_model(small(weights=str(tmp_path / "none.safetensors")), seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_weights_of_the_configuration_are_loaded(tmp_path: Path) -> None:
    model = build_model(small(), seed=1)
    save_weights(model, tmp_path / "w.safetensors")
    again = build_model(small(weights=str(tmp_path / "w.safetensors")), seed=2)
    assert weights_hash(again) == weights_hash(model)


@pytest.mark.parametrize("name", list(MODELS))
def test_open_settings_are_those_of_the_reference(name: str) -> None:
    # width shrinks the hidden layers only, so that input and output show what was chosen
    model = build_model(ModelConfig(name, width=0.02), seed=0).eval()
    channels, side = (1, 28) if name in ("small_cnn", "conv_small", "tafd_small_cnn") else (3, 32)
    assert model(torch.rand(1, channels, side, side)).shape == (1, 10)


def test_dropout_of_small_cnn_is_the_original_one_unless_set() -> None:
    def rate(config: ModelConfig) -> list[float]:
        return [layer.p for layer in build_model(config, 0).modules() if isinstance(layer, nn.Dropout)]

    assert rate(ModelConfig("small_cnn")) == [0.5]
    assert rate(ModelConfig("small_cnn", dropout=0.0)) == [0.0]
    assert set(rate(ModelConfig("wrn16_4", width=0.1, dropout=0.3))) == {0.3}
    with pytest.raises(ValueError, match="resnet18 has no dropout"):
        build_model(small(dropout=0.1), 0)


def test_open_settings_follow_the_data() -> None:
    assert ModelConfig("resnet18").for_images(100, 3, (64, 64)).classes == 100
    assert ModelConfig("resnet18", classes=5).for_images(5, 1, (8, 8)).channels == 1
    with pytest.raises(ValueError, match=r"classes = 10\b.*\b100\b"):
        ModelConfig("resnet18", classes=10).for_images(100, 3, (32, 32))
    with pytest.raises(ValueError, match="image_size"):
        ModelConfig("small_cnn", image_size=(28, 28)).for_images(10, 1, (32, 32))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "resnet_18"}, "did you mean 'resnet18'.*wrn34_10"),
        ({"classes": 1}, "at least 2"),
        ({"channels": 0}, "at least 1"),
        ({"image_size": (28, 0)}, "height and width"),
        ({"width": 0.0}, "positive"),
        ({"width": float("inf")}, "positive"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"activation": "swish"}, "silu"),
    ],
)
def test_wrong_settings_are_refused_when_written(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig(**settings)  # type: ignore[arg-type]


def test_normalisation_must_fit_the_channels() -> None:
    with pytest.raises(ValueError, match=r"mean .*\b1\b.*\b3 channels"):
        build_model(small(mean=(0.5,), std=(0.5,)), 0)
    with pytest.raises(ValueError, match="together"):
        build_model(small(mean=(0.5, 0.5, 0.5)), 0)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "their_models.py").write_text(
        "import torch\n"
        "def plain():\n    return torch.nn.Linear(3, 4)\n"
        "def sized(classes=2):\n    return torch.nn.Linear(3, classes)\n"
        "def broken():\n    raise KeyError('oops')\n"
        "def wrong():\n    return 3\n"
        "constant = 1\n"
    )
    (tmp_path / "their_broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "their_models"


def test_a_user_model_is_built_only_where_code_is_allowed(user_module: str) -> None:
    config = ModelConfig(f"{user_module}:plain")
    with pytest.raises(ValueError, match="not allowed here"):
        build_model(config, 0)
    model = build_model(config, 0, allow_code=True)
    assert isinstance(model, nn.Linear)
    assert weights_hash(model) == weights_hash(build_model(config, 0, allow_code=True))
    assert weights_hash(model) != weights_hash(build_model(config, 1, allow_code=True))


def test_a_user_factory_gets_the_number_of_classes_if_it_takes_it(user_module: str) -> None:
    for factory, outputs in (("sized", 7), ("plain", 4)):
        model = build_model(ModelConfig(f"{user_module}:{factory}", classes=7), 0, allow_code=True)
        assert isinstance(model, nn.Linear)
        assert model.out_features == outputs


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("their_models:none", "has no function 'none'"),
        ("their_models:constant", "has no function 'constant'"),
        ("their_models:broken", "the factory failed with KeyError"),
        ("their_models:wrong", "returned int"),
        ("their_broken_module:f", "ZeroDivisionError"),
        ("no_such_module_here:f", "importing 'no_such_module_here' failed"),
        ("their_models:", "package.module:factory"),
        ("../x:f", "package.module:factory"),
    ],
)
@pytest.mark.usefixtures("user_module")
def test_a_wrong_user_model_is_one_sentence(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_model(ModelConfig(name), 0, allow_code=True)


def test_an_archive_that_fails_without_a_message_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, map_location: str) -> nn.Module:
        raise RuntimeError

    file = tmp_path / "m.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(file))
    monkeypatch.setattr(torch.jit, "load", load)
    with pytest.raises(ValueError, match=r"m\.pt cannot be loaded as TorchScript: RuntimeError$"):
        build_model(ModelConfig(f"torchscript:{file}"), 0, allow_code=True)
