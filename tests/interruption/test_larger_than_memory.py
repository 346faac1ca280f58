"""A data set ten times as large as the memory cap is trained on and evaluated through the command line.

The cap is `RLIMIT_DATA` (`ulimit -d`), above what a run on few images of the same size needed in the same process.
It counts memory that belongs to the process alone. `RLIMIT_AS` would count gigabytes of libraries, and resident
memory would count pages of mapped files, which the system takes back when others need them.
"""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")]

SIDE, COUNT = 256, 2100
SET = SIDE * SIDE * 3 * COUNT
NET = """
from torch import nn

def make():
    return nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(192, 3))
"""
CHILD = """
import gc, resource, sys
from pathlib import Path
from robustly.cli import main

small, large, kept, cap, out = *sys.argv[1:4], int(sys.argv[4]), sys.argv[5]

def both(source, name):
    words = ["mnist5k/pgd_at", "--model", "net:make", "--threat", "linf:0.01", "--data.source", source,
             "--data.expected_classes", "3", "--data.validation", "16", "--data.test", "16",
             "--training.epochs", "1", "--training.batch_size", "4", "--training.validation_batch_size", "4",
             "--training.validation_steps", "1",
             "--training.epsilon_ramp", "0", "--method.inner.steps", "1", "--runtime.device", "cpu",
             "--data.in_memory", kept, "--evaluation.batch_size", "4", "--evaluation.suite", "pgd_20"]
    code = main(["train", *words, "--out", f"{out}/{name}"])
    return code or main(["evaluate", f"{out}/{name}", "--trust-code", "--evaluation.curve", "off"])

assert both(small, "small") == 0
gc.collect()
lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
now = int(lines["VmData"].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (now + cap, now + cap))
try:
    code = both(large, "large")
except (MemoryError, RuntimeError) as error:
    print("out of memory", error)
    code = 9
sys.exit(code)
"""


def shards(folder: Path, count: int) -> Path:
    """Shards of smooth pictures, all different."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(3):
        rows = []
        for _ in range(count // 3):
            stream = io.BytesIO()
            tiny = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            tiny.resize((SIDE, SIDE)).save(stream, "JPEG")
            rows.append(stream.getvalue())
        labels = pa.array([row % 3 for row in range(len(rows))], pa.int64())
        pq.write_table(
            pa.table({"image": rows, "label": labels}), folder / f"shard-{number}.parquet", row_group_size=50
        )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("shards")
    return shards(place / "small", 60), shards(place / "large", COUNT)


@pytest.mark.parametrize("kept", ["false", "true"])
def test_a_set_of_ten_times_the_cap(kept: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "net.py").write_text(NET)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ROBUSTLY_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "child.py", *map(str, folders), kept, str(SET // 10), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    if kept == "true":  # so the cap is one that matters
        assert done.returncode != 0, done.stdout
        assert (tmp_path / "small" / "model.safetensors").exists()
        assert not (tmp_path / "large" / "model.safetensors").exists()
        assert "memory" in done.stdout + done.stderr  # which library fails first is by chance
    else:
        assert done.returncode == 0, done.stderr[-2000:]
        assert (tmp_path / "large" / "evaluation").exists()
