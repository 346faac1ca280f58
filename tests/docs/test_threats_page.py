"""The code on the page about threats runs, and its table names threats that exist."""

import re
from pathlib import Path

import numpy as np
import pytest

from robustly.threats import parse_threat

PAGE = (Path(__file__).parents[2] / "docs" / "threats.md").read_text(encoding="utf-8")


def test_its_code_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "threats.md", "exec"), names)  # noqa: S102
    assert str(names["masked"]).startswith("linf:0.3@")
    assert str(names["per_pixel"]).startswith("linf:0.3@")


def test_its_threats_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("mask.npy", np.ones((4, 4), bool))
    texts = re.findall(r"^\| `(\S+)` \|", PAGE, re.MULTILINE)
    assert len(texts) == 8
    for text in texts:
        parse_threat(text)
