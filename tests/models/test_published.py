"""Networks of timm and Hugging Face by name: weights, normalisation, and the images that they expect.

timm is a stand-in of the same functions (`tests/stand_ins/timm.py`), because it needs torchvision.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustly.models import Expected, ModelConfig, PublishedError, build_model, expected_images, save_weights

STAND_INS = Path(__file__).parents[1] / "stand_ins"


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(STAND_INS))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    import timm

    yield timm
    sys.modules.pop("timm", None)


def test_a_network_of_timm_has_its_weights_and_its_normalisation(timm: Any) -> None:
    model = build_model(ModelConfig("timm:tinynet.a1"), seed=0).eval()
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.25, 0.2, 0.1)))
    bare = timm.create_model("tinynet", pretrained=True)
    assert torch.allclose(model(x), bare((x - mean) / std), atol=1e-5)
    assert set(model.state_dict()) == {*bare.state_dict(), "normalize.mean", "normalize.std"}
    assert expected_images("timm:tinynet") == Expected(3, 32, (0.5, 0.4, 0.3), (0.25, 0.2, 0.1))


def test_a_given_normalisation_replaces_that_of_timm(timm: Any) -> None:
    model = build_model(ModelConfig("timm:tinynet", mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0)), seed=0)
    assert model.state_dict()["normalize.mean"].flatten().tolist() == pytest.approx([0.1] * 3)


def test_weights_of_timm_show_the_number_of_outputs(timm: Any, tmp_path: Path) -> None:
    trained = timm.create_model("tinynet", num_classes=4)
    save_weights(nn.DataParallel(trained), tmp_path / "w.safetensors")
    config = ModelConfig("timm:tinynet", classes=3, weights=str(tmp_path / "w.safetensors"))
    model = build_model(config, seed=0)
    assert torch.equal(model.state_dict()["fc.weight"], trained.fc.weight)


def test_networks_that_timm_does_not_have_are_refused(timm: Any) -> None:
    with pytest.raises(PublishedError, match=r"'timm:nonet' cannot be loaded: RuntimeError: Unknown model"):
        expected_images("timm:nonet")


def test_a_missing_library_gives_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("timm", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PublishedError, match=r"timm cannot be imported .*pip install 'robustly\[timm\]'"):
        build_model(ModelConfig("timm:resnet18"), seed=0)
    with pytest.raises(PublishedError, match=r"transformers cannot be imported .*pip install 'robustly\[hf\]'"):
        build_model(ModelConfig("hf:google/vit"), seed=0)


PROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 32, "width": 32}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    place: Path = tmp_path_factory.mktemp("hub") / "net"
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=10
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForImageClassification.from_config(config).save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "side", "mean", "std"),
    [
        ({}, 32, 0.5, 0.25),
        (
            {"size": {"shortest_edge": 40}, "crop_size": {"height": 36, "width": 36}, "do_center_crop": True},
            36,
            0.5,
            0.25,
        ),
        ({"size": 30}, 30, 0.5, 0.25),
        ({"size": {"height": 20, "width": 30}}, None, 0.5, 0.25),
        ({"do_normalize": False}, 32, 0.0, 1.0),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True}, 32, 0.75, 0.125),
        ({"do_rescale": False}, 32, 0.5 / 255, 0.25 / 255),
    ],
)
def test_the_processor_states_size_and_normalisation(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    side: int | None,
    mean: float,
    std: float,
) -> None:
    file = folder / "preprocessor_config.json"
    before = file.read_text()
    file.write_text(json.dumps({**PROCESSOR, **changes}))
    found = expected_images(f"hf:{folder}")
    file.write_text(before)
    assert (found.channels, found.side) == (3, side)
    assert found.mean == pytest.approx((mean,) * 3, rel=1e-6)
    assert found.std == pytest.approx((std,) * 3, rel=1e-6)


@pytest.mark.slow
def test_a_folder_of_hugging_face_is_the_network_on_normalised_images(folder: Path, tmp_path: Path) -> None:
    import transformers

    model = build_model(ModelConfig(f"hf:{folder}"), seed=3).eval()
    bare = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(model(x), bare((x - 0.5) / 0.25).logits, atol=1e-5)
    torch.save({"model": bare.state_dict()}, tmp_path / "tuned.bin")
    tuned = build_model(ModelConfig(f"hf:{folder}", weights=str(tmp_path / "tuned.bin")), seed=4).eval()
    assert torch.allclose(tuned(x), model(x))


@pytest.mark.slow
def test_folders_that_are_not_whole_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    copy = tmp_path / "net"
    shutil.copytree(folder, copy)
    state = load_file(copy / "model.safetensors")
    head = next(name for name in state if name.startswith("classifier"))
    save_file(
        {name: value for name, value in state.items() if name != head}, copy / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(PublishedError, match=rf"has no weights for {head}: it is not trained"):
        build_model(ModelConfig(f"hf:{copy}"), seed=0)
    (copy / "model.safetensors").unlink()
    torch.save(state, copy / "pytorch_model.bin")
    with pytest.raises(PublishedError, match=r"cannot be loaded: .*safetensors"):
        build_model(ModelConfig(f"hf:{copy}"), seed=0)
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"does not state its input normalisation: give --model\.mean"):
        build_model(ModelConfig(f"hf:{copy}"), seed=0)
    config = json.loads((copy / "config.json").read_text())
    ran = tmp_path / "ran"
    (copy / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M"}
    config["model_type"] = "evil"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(PublishedError, match="cannot be loaded"):
        expected_images(f"hf:{copy}")
    assert not ran.exists()


@pytest.mark.parametrize("name", ["hf:/no/such/folder", "hf:../up", "hf:", "hf:a/b/c"])
def test_places_that_are_neither_folder_nor_name_are_refused(name: str) -> None:
    with pytest.raises(PublishedError, match="neither a folder nor the name of a model"):
        expected_images(name)


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PublishedError, match=r"it has no config\.json"):
        expected_images(f"hf:{tmp_path}")
