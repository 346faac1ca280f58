"""Memory that glibc keeps between the passes of an attack, and compiled code that oneDNN keeps."""

import os
import platform
import subprocess
import sys

import pytest

from robustly.cli.allocator import keep_compiled_code

FAULTS = """
import resource, sys, torch
from robustly.cli.allocator import keep_freed_memory, return_freed_weights
kept = sys.argv[1] != "plain" and keep_freed_memory()
kept = return_freed_weights() if sys.argv[1] == "shards" else kept
def step():
    parts = [torch.zeros(1_000_000) for _ in range(24)]  # 96 MB in blocks of 4 MB
def count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
counts = []
for _ in range(6):
    before = count()
    step()
    counts.append(count() - before)
print(kept, *counts)
"""
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def faults(kind: str) -> tuple[str, list[int]]:
    """Whether the memory is kept, and the page faults of six steps, in a process of its own."""
    line = [sys.executable, "-c", FAULTS, kind]
    kept, *counts = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()
    return kept, [int(count) for count in counts]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other rules")
def test_freed_memory_is_used_again_unless_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    kept, few = faults("kept")
    assert kept == "True"
    assert few[-1] < 333, "of the 24,000 pages of 4 KiB in a step"
    plain = faults("plain")[1]
    assert plain[0] > 10_000, "the second step maps the 96 MB anew; later ones may find a block above it in use"
    assert sum(few) < sum(plain) / 2
    kept, many = faults("shards")
    assert kept == "True"
    assert min(many) > 10_000, "weights in shards return to the system once they are freed"
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert faults("kept")[0] == "False"


def test_compiled_code_is_kept_unless_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")  # so that it is as before after the test
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    keep_compiled_code()
    assert int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) > 50 * 256, "all sizes up to the largest batch"
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    keep_compiled_code()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
