"""The code on the page for people who come from other libraries runs as it stands there."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustly.models import ResNet
from robustly.randomness import KeyedGenerator

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
BLOCKS = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def put_files_of_robustbench(folder: Path) -> None:
    """A model of its zoo with new weights, and a batch of CIFAR-10 with random pixels."""
    for name in ("models/cifar10/L2", "data/cifar-10-batches-py"):
        (folder / name).mkdir(parents=True)
    torch.save(ResNet().state_dict(), folder / "models" / "cifar10" / "L2" / "Sehwag2021Proxy_R18.pt")
    batch = {"data": np.random.default_rng(0).integers(0, 256, (50, 3072), np.uint8), "labels": [0] * 50}
    (folder / "data" / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(batch))


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_files_of_robustbench(tmp_path)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 10))  # falls at 8/255 at once: the suites end early
    weight = torch.randn(10, 3 * 256, generator=torch.Generator().manual_seed(0))
    model.load_state_dict({"1.weight": weight, "1.bias": torch.zeros(10)})
    x = KeyedGenerator(0, torch.arange(4)).uniform(3, 16, 16)
    y = model(x).argmax(1)
    names: dict[str, object] = {"model": model, "x": x, "y": y}
    code = BLOCKS.findall(PAGE.read_text(encoding="utf-8"))
    assert len(code) >= 8
    for block in code:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102
    assert (tmp_path / "state.json").is_file()
    assert (tmp_path / "entry.json").is_file()
    adv = names["x_adv"]
    assert isinstance(adv, Tensor)
    assert bool(((adv - x).abs() <= 8 / 255 + 1e-6).all())
    robust = names["robust_acc"]
    assert isinstance(robust, float)
    assert names["state"].robust_accuracy == robust  # type: ignore[attr-defined]
    assert (model(adv).argmax(1) == y).double().mean() == pytest.approx(robust)


def test_modules_named_in_its_tables_exist() -> None:
    rows = re.findall(r"\| `[^`]*` \| `(?:from (\S+) )?import (\w+)", PAGE.read_text(encoding="utf-8"))
    rows = [(module, name) for module, name in rows if module]
    assert len(rows) == 7
    for module, name in rows:
        assert hasattr(__import__(module, fromlist=[name]), name)
