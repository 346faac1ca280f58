"""The recipes for other libraries run; timm and Lightning are stand-ins: they need packages that tests lack."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loading import load_module
from robustly import read_evidence
from robustly.cli import main

ROOT = Path(__file__).parents[2]
STAND_INS = ROOT / "tests" / "stand_ins"
PIXELS = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
page_code = load_module("docs_build/page_code.py")


def code_of(library: str) -> str:
    """The Python of a library's section, in one piece."""
    found = [block for block in BLOCKS if block.title == library and block.language == "python"]
    return "\n".join(block.code for block in found)


def run_commands(library: str) -> None:
    """Run its commands on few images."""
    (block,) = (block for block in BLOCKS if block.title == library and block.language == "bash")
    for words in page_code.commands(block):
        few = ["--evaluation.batch_size", "8"] if words[1] == "evaluate" else []
        assert main([*words[1:], *few]) == 0, words


BLOCKS = list(page_code.blocks((ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `photos`, which has two class folders of few images."""
    monkeypatch.chdir(tmp_path)
    for name in ("0", "1"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for place in range(4):
            Image.fromarray(PIXELS[place].permute(1, 2, 0).numpy()).save(folder / f"{place}.png")
    return tmp_path


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(STAND_INS))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    yield
    sys.modules.pop("timm", None)


@pytest.mark.slow
@pytest.mark.usefixtures("timm")
def test_timm(here: Path) -> None:
    names: dict[str, Any] = {"images": PIXELS / 255, "labels": torch.arange(20) % 10}
    exec(code_of("timm"), names)  # noqa: S102
    assert names["result"].summary.data.count == 20
    mean = names["model"].normalize.mean.flatten().tolist()
    assert mean == pytest.approx([0.5, 0.4, 0.3])
    run_commands("timm")
    assert (here / "runs/timm/report.html").is_file()
    summary = read_evidence(here / "runs/timm/evaluation").summary
    assert (summary.threat.text, summary.data.count) == ("linf:8/255", 8)


@pytest.mark.slow
def test_hugging_face(here: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=2
    )
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(here / "model_folder")
    processor = {
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "size": {"height": 32, "width": 32},
        "image_processor_type": "ViTImageProcessor",
    }
    (here / "model_folder" / "preprocessor_config.json").write_text(json.dumps(processor))
    names: dict[str, Any] = {"images": PIXELS, "labels": torch.arange(20) % 2}
    exec(code_of("hf"), names)  # noqa: S102
    assert names["result"].summary.data.count == 20
    run_commands("hf")
    assert "linf:4/255" in (here / "exported" / "README.md").read_text()


class Module(nn.Module):
    """As a LightningModule: a network as a member, and its hyperparameters."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(x)
        return logits


def make_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


@pytest.mark.slow
def test_lightning(here: Path) -> None:
    module = Module()
    state = {"state_dict": module.state_dict(), "hyper_parameters": argparse.Namespace(lr=0.1), "epoch": 3}
    torch.save(state | {"pytorch-lightning_version": "2.5.0", "callbacks": {}}, here / "last.ckpt")
    loader = DataLoader(TensorDataset(PIXELS / 255, module(PIXELS / 255).argmax(1)), batch_size=7)
    names: dict[str, Any] = {"module": module, "loader": loader, "make_net": make_net, "Callback": object}
    exec(code_of("lightning"), names)  # noqa: S102
    assert torch.equal(names["net"][1].weight, module.model[1].weight)
    assert names["again"].summary.metrics.clean.share == 1.0
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(test_dataloader=lambda: loader), default_root_dir=str(here / "logs")
    )
    names["Robustness"]().on_fit_end(trainer, module)
    saved = read_evidence(here / "logs" / "evaluation").summary
    assert saved.metrics.worst_case.robust == names["again"].summary.metrics.worst_case.robust
