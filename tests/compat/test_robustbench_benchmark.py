"""`benchmark` has RobustBench's arguments, and its numbers and files."""

import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import PGD
from robustly.compat.autoattack import AutoAttack
from robustly.compat.robustbench import RobustBenchError, benchmark, benchmarking, clean_accuracy
from robustly.compat.robustbench.model_info import epsilon_text, percent
from robustly.randomness import KeyedGenerator
from robustly.testing import small_network

SHAPE, COUNT = (3, 6, 6), 10


class Answer:
    """An output of another library."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Quick(AutoAttack):
    """AutoAttack with few steps: an image that stands would take seconds."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.attacks = dict.fromkeys(self.attacks, PGD(5))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarking, "AutoAttack", Quick)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small_network(SHAPE, classes=5, seed=1).eval()


@pytest.fixture(scope="module")
def batch(net: nn.Module) -> dict[str, Tensor]:
    x = KeyedGenerator(2, torch.arange(COUNT)).uniform(*SHAPE) * 0.8 + 0.1
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    return {"x": x, "y": y}


def test_arguments_are_those_of_robustbench() -> None:
    parameters = inspect.signature(benchmark).parameters
    defaults = {name: one.default for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD}
    assert list(defaults.items()) == [
        ("model", inspect.Parameter.empty),
        ("n_examples", 10_000),
        ("dataset", "cifar10"),
        ("threat_model", "Linf"),
        ("to_disk", False),
        ("model_name", None),
        ("data_dir", "./data"),
        ("corruptions_data_dir", None),
        ("device", None),
        ("batch_size", 32),
        ("eps", None),
        ("log_path", None),
        ("preprocessing", None),
        ("aa_state_path", None),
    ]


@pytest.mark.usefixtures("quick")
def test_the_numbers_are_those_of_autoattack(net: nn.Module, batch: dict[str, Tensor]) -> None:
    found = benchmark(net, 8, eps="4/255", **batch)
    adversary = Quick(net, "Linf", 4 / 255, verbose=False)
    adv = adversary.run_standard_evaluation(batch["x"][:8], batch["y"][:8])
    assert found == (7 / 8, float((net(adv).argmax(1) == batch["y"][:8]).double().mean()))
    assert 0 < found[1] < found[0]


def test_models_of_any_kind_are_taken(net: nn.Module, batch: dict[str, Tensor]) -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, pixels: Tensor) -> Answer:
            return Answer(self.inner(pixels))

    arrays = {"x": batch["x"].numpy(), "y": batch["y"].numpy().astype(np.int32)}
    assert clean_accuracy(Foreign(), **arrays) == 0.9
    assert benchmark(Foreign(), 2, eps=0.5, threat_model="L2", **arrays)[0] == 0.5
    assert clean_accuracy(net, batch["x"], batch["y"], batch_size=3) == 0.9


@pytest.mark.usefixtures("quick")
def test_data_come_from_the_folder(tmp_path: Path) -> None:
    rows = np.zeros((4, 3072), np.uint8)
    rows[1:, :1024] = 255  # red
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": rows, "labels": [0, 1, 1, 0]}))
    net = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 10))
    weight = torch.zeros(10, 3)
    weight[1, 0], weight[0, 0] = 8.0, -8.0
    net[2].load_state_dict({"weight": weight, "bias": torch.tensor([4.0, -4.0, *[-9.0] * 8])})
    assert benchmark(net, 4, data_dir=tmp_path, eps=0.1) == (0.75, 0.75)
    assert benchmark(net, 2, data_dir=tmp_path, eps=0.6) == (1.0, 0.0)
    with pytest.raises(RobustBenchError, match=r"has 4 images, fewer than n_examples=10000"):
        benchmark(net, data_dir=tmp_path, eps=0.1)


def test_results_go_to_disk(
    net: nn.Module, batch: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model_info" / "cifar10" / "Linf" / "Ours2026.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"name": "A paper", "venue": "", "clean_acc": "1.0", "own": 3}))
    benchmark(net, 3, to_disk=True, model_name="Ours2026", eps=0.5, log_path="log.txt", **batch)
    content = json.loads(file.read_text())
    assert content["name"] == "A paper"
    assert content["own"] == 3
    assert content["eps"] == "0.5"
    assert content["clean_acc"] == "66.67"
    assert content["autoattack_acc"] == "0.0"
    assert content["link"] is None
    assert "initial accuracy: 66.67%" in (tmp_path / "log.txt").read_text()


def test_a_stopped_run_is_resumed(net: nn.Module, batch: dict[str, Tensor], tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    first = benchmark(net, 3, eps=0.5, aa_state_path=state, **batch)
    assert json.loads(state.read_text())["_clean_accuracy"] == first[0]
    broken = {"x": torch.full_like(batch["x"], 0.5), "y": batch["y"]}
    assert benchmark(net, 3, eps=0.5, aa_state_path=state, **broken) == first


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "eps must be given"),
        ({"eps": 0.1, "threat_model": "corruptions"}, "common corruptions are not evaluated yet"),
        ({"eps": 0.1, "corruptions_data_dir": "data"}, "common corruptions are not evaluated yet"),
        ({"eps": 0.1, "threat_model": "linf"}, "Linf, L2"),
        ({"eps": 8}, "8/255"),
        ({"eps": 0.1, "to_disk": True}, "give model_name"),
        ({"eps": 0.1, "to_disk": True, "model_name": "../x"}, "use letters, digits"),
        ({"eps": 0.1, "y": None}, "give both x and y"),
        ({"eps": 0.1, "y": torch.zeros(3)}, "one label for each image, got 10 and 3"),
        ({"eps": 0.1, "y": torch.zeros(10)}, "labels are class numbers"),
        ({"eps": 0.1, "x": torch.full((10, 3, 6, 6), 200.0)}, r"pixels lie in \[200, 200\], not in \[0, 1\]"),
        ({"eps": 0.1, "x": torch.full((10, 3, 6, 6), torch.nan)}, "pixels lie in"),
        ({"eps": 0.1, "y": torch.full((10,), 7)}, "a label 7, but the model has 5 outputs"),
        ({"eps": 0.1, "n_examples": 0}, "n_examples must be a positive"),
        ({"eps": 0.1, "batch_size": 0}, "batch_size must be at least 1"),
        ({"eps": "a lot"}, "epsilon must be a finite number"),
        ({"eps": 0.1, "x": None, "y": None, "dataset": "imagenet"}, "give them as x and y"),
        ({"eps": 0.1, "dataset": "mnist"}, "dataset must be one of cifar10, cifar100, imagenet"),
        ({"eps": 0.1, "device": ["cuda:0", "cuda:1"]}, "one model and one device"),
    ],
)
def test_arguments_that_make_no_sense_get_a_sentence(
    given: dict[str, Any], sentence: str, net: nn.Module, batch: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        benchmark(net, **{**batch, **given})
    assert "\n" not in str(error.value)


def test_images_by_place_get_a_sentence(net: nn.Module, batch: dict[str, Tensor]) -> None:
    with pytest.raises(RobustBenchError, match="x=images"):
        benchmark(net, batch["x"], batch["y"], eps=0.1)  # type: ignore[arg-type]


def test_numbers_are_written_as_on_the_leaderboard() -> None:
    assert [percent(share) for share in (0.5953, 0.625, 1.0, 2 / 3)] == ["59.53", "62.5", "100.0", "66.67"]
    assert [epsilon_text(one) for one in (8 / 255, 4 / 255, 0.5, 0.031, 128 / 255)] == [
        "8/255", "4/255", "0.5", "0.031", "0.501961",
    ]  # fmt: skip
