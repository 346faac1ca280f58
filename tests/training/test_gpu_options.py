"""Options of the benchmarks on one GPU."""

import sys
from pathlib import Path

import pytest
import torch

from loading import load_module


@pytest.mark.parametrize("script", ["benchmarks/gpu/dynat.py", "benchmarks/gpu/speedrun.py"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "nowhere"], "nowhere has no train.parquet: give --data FOLDER"),
        (["--device", "cpu", "--limit", "5"], "--limit must be at least"),
        (["--device", "cpu", "--seconds", "0"], "and --seconds above 0"),
        (["--device", "cpu", "--out", "."], "is not empty"),
        ([], "no CUDA device here: add --device cpu"),
    ],
)
def test_wrong_options_end_in_one_sentence(
    script: str, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gpu_options", "dynat"):  # which the scripts take parts from
        load_module(f"benchmarks/gpu/{name}.py")
    benchmark = load_module(script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "train.parquet").touch()
    monkeypatch.setattr(sys, "argv", [script, *(words if "--data" in words else [*words, "--data", "."])])
    with pytest.raises(SystemExit, match=said):
        benchmark.main()
