"""Scripts of the verification competition, around a stand-in for the command."""

import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "competition/vnncomp"


def script(folder: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPTS / name), *words],
        cwd=folder, env={"PATH": "/usr/bin:/bin", "ROBUSTLY": str(folder / "robustly")},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("net.onnx.gz", "p.vnnlib"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ('echo "$@" > "$7"', "verify net.onnx.gz p.vnnlib --timeout 2 --result out.txt\n"),
        ("sleep 60", "timeout\n"),
        ("kill -9 $$", "unknown\n"),
        ('echo error > "$7"; exit 2', "error\n"),
    ],
)
def test_every_run_has_a_result(folder: Path, command: str, result: str) -> None:
    (folder / "robustly").write_text(f"#!/bin/bash\n{command}\n")
    (folder / "robustly").chmod(0o755)
    (folder / "out.txt").write_text("an older result")
    seconds = "2" if "echo" in command or "kill" in command else "0.3"
    ran = script(folder, "run_instance.sh", "v1", "acasxu", "f:net.onnx", "p.vnnlib", "out.txt", seconds)
    assert ran.returncode == 0
    assert (folder / "out.txt").read_text() == result


def test_missing_files_and_other_versions(folder: Path) -> None:
    assert script(folder, "prepare_instance.sh", "v1", "acasxu", "net.onnx", "p.vnnlib").returncode == 0
    assert script(folder, "prepare_instance.sh", "v1", "acasxu", "no.onnx", "p.vnnlib").returncode == 1
    (folder / "a:b.onnx").touch()
    assert script(folder, "prepare_instance.sh", "v1", "acasxu", "a:b.onnx", "p.vnnlib").returncode == 0
    assert script(folder, "prepare_instance.sh", "v1", "acasxu", "f:net.onnx", "p.vnnlib").returncode == 0
    for name in ("install_tool.sh", "prepare_instance.sh", "run_instance.sh"):
        assert "expected the version v1, got 'v2'" in script(folder, name, "v2").stderr
