"""The code on the page about threats runs, and its table names threats that exist."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustly.threats import Planes, parse_threat
from robustly.threats.planes import write_planes

PAGE = (Path(__file__).parents[2] / "docs" / "threats.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def run(blocks: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "threats.md", "exec"), names)  # noqa: S102
    return names


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in BLOCKS if "sklearn" not in block]
    assert len(blocks) == 3
    names = run(blocks)
    assert str(names["masked"]).startswith("linf:0.3@")
    assert str(names["per_pixel"]).startswith("linf:0.3@")


def test_its_threats_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("mask.npy", np.ones((4, 4), bool))
    write_planes("planes.safetensors", Planes(torch.eye(3)[None]))
    Path("limits.csv").write_text("feature,decrease,increase\nage,0,1\n")
    texts = re.findall(r"^\| `(\S+)` \|", PAGE, re.MULTILINE)
    assert len(texts) == 28
    for text in texts:
        parse_threat(text)


@pytest.mark.slow
def test_the_numbers_of_the_table_are_those_of_its_code() -> None:
    pytest.importorskip("sklearn")
    names = run([block for block in BLOCKS if "sklearn" in block])
    sentence = re.search(r"right on (\S+) % of the 169 test rows and on (\S+) % .* on (\S+) % of both", PAGE)
    assert sentence is not None
    metrics = names["standard"].summary.metrics, names["adversarial"].summary.metrics
    found = [metrics[0].clean, metrics[0].worst_case.robust, metrics[1].worst_case.robust]
    assert [100 * one.share for one in found] == pytest.approx([float(text) for text in sentence.groups()], abs=1.0)
