"""Measurements on a CUDA device; skipped without one."""

from pathlib import Path

import pytest
import torch
from torch import nn

from robustly.cli import main
from robustly.performance import Meter, measure_passes, peak_bytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def test_passes_have_the_precisions_of_the_device() -> None:
    device = torch.device("cuda", 0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(device)
    found = measure_passes(
        model,
        lambda count: torch.rand(count, 3, 16, 16, device=device),
        Meter(device=device),
        sizes=(2, 64),
        seconds=2,
    )
    assert found.precisions == ("float32", "tf32", "bfloat16", "float16")
    assert all(one.seconds is not None and one.seconds.low > 0 for one in found.times)


def test_peak_memory_is_that_of_the_allocator() -> None:
    device = torch.device("cuda", 0)
    found = peak_bytes(lambda: torch.zeros(2**20, dtype=torch.uint8, device=device), device)
    assert 2**20 <= found < 2**22


def test_the_command_measures_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTLY_CACHE", str(tmp_path))
    words = ["--recipe", "mnist5k/pgd_at", "--runtime.device", "cuda", "--seconds", "5", "--suites", "quick"]
    assert main(["bench", *words, "--batch-sizes", "16", "64", "--json", str(tmp_path / "bench.json")]) == 0
