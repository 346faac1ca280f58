"""`robustly evaluate` in several processes: the evidence of one, and nothing lost when one is killed."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from process_tools import children, start, wait_for

from forked import fork, fork_by_torchrun
from robustly.cli import main
from robustly.evidence import read_evidence, read_summary

SMALL = [
    "--data.image_size", "16", "--data.train_limit", "600", "--data.validation", "20", "--data.test", "60",
    "--model.width", "0.25", "--training.epochs", "3", "--training.batch_size", "32",
    "--training.validation_steps", "1", "--threat", "linf:0.05", "--runtime.device", "cpu",
]  # fmt: skip
QUICK = ["--suite", "fgsm,pgd_20", "--evaluation.batch_size", "4"]
STORED = ("evidence.parquet", "adversarial.safetensors")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes") / "run"
    assert main(["train", "mnist5k/standard", *SMALL, "--out", str(folder)]) == 0
    assert main(["evaluate", str(folder), *QUICK, "--as", "one"]) == 0
    metrics = read_summary(folder / "evaluation_one").metrics
    assert metrics.clean.share > metrics.worst_case.robust.share > 0.1, "both kinds of images are there"
    return folder


def assert_same_evidence(one: Path, other: Path) -> None:
    for name in STORED:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert read_summary(one).metrics == read_summary(other).metrics


@pytest.mark.parametrize(("count", "batch"), [(3, "4"), (3, "30")])
def test_evidence_is_that_of_one_process_to_the_last_bit(run: Path, count: int, batch: str) -> None:
    """Also with uneven batches, of which there are fewer than processes."""
    words = [*QUICK[:3], batch]
    name = f"of_{count}_{batch}"
    assert main(["evaluate", str(run), *words, "--as", f"{name}_alone"]) == 0
    process = fork(str(run), *words, "--as", name, "--runtime.processes", str(count))
    shown, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "worst case" in shown
    assert_same_evidence(run / f"evaluation_{name}_alone", run / f"evaluation_{name}")
    assert main(["audit", str(run), "--as", name]) == 0


def test_torchrun_starts_the_processes(run: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    words = (str(run), *QUICK, "--as", "cluster", "--keep")
    process = start(*words, launcher=launcher)
    shown, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert shown.count("next: robustly report") == 1, "one process prints"
    again = fork_by_torchrun(*words)
    shown, errors = again.communicate()
    assert again.returncode == 0, errors
    assert shown.count("is kept") == 1
    assert_same_evidence(run / "evaluation_one", run / "evaluation_cluster")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_ends_the_command_and_the_next_one_continues(run: Path) -> None:
    words = [str(run), "--suite", "fgsm,pgd_100", "--evaluation.batch_size", "4"]
    assert main(["evaluate", *words, "--as", "whole"]) == 0
    words += ["--as", "killed", "--runtime.processes", "2"]
    partial = run / "evaluation_killed.partial"

    process = start(*words)
    wait_for(lambda: len(list(partial.glob("parts/*/0*.safetensors"))) > 2, process)
    (other,) = children(process.pid)
    os.kill(other, signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2
    assert errors.startswith("robustly: process 1 of 2 has stopped; the same command continues")
    assert errors.count("\n") == 1
    finished = {path: path.stat().st_mtime_ns for path in partial.rglob("*.safetensors")}
    assert finished

    # now process 0: the other one ends by itself
    process = start(*words)
    wait_for(lambda: len(list(partial.rglob("*.safetensors"))) > len(finished), process)
    kept = {path: path.stat().st_mtime_ns for path in finished if path.is_file()}
    assert kept == {path: finished[path] for path in kept}, "finished parts are not written again"
    others = children(process.pid)
    process.kill()
    process.communicate(timeout=100)
    until = time.monotonic() + 60
    while any(
        Path(f"/proc/{number}/cmdline").is_file() and Path(f"/proc/{number}/cmdline").read_text()
        for number in others
    ):
        assert time.monotonic() < until, "the other process goes on without process 0"
        time.sleep(0.1)

    process = start(*words)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert not partial.exists()
    assert_same_evidence(run / "evaluation_whole", run / "evaluation_killed")


def test_ctrl_c_stops_all_processes(run: Path) -> None:
    words = [str(run), "--suite", "pgd_100", "--evaluation.batch_size", "4", "--as", "stopped"]
    process = start(*words, "--runtime.processes", "2")
    wait_for(lambda: any((run / "evaluation_stopped.partial").glob("parts/*/0*.safetensors")), process)
    os.killpg(process.pid, signal.SIGINT)
    shown, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "the same command continues" in shown
    assert "Traceback" not in errors


def test_more_processes_than_images_are_not_started(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--suite", "fgsm", "--evaluation.count", "1", "--evaluation.curve", "off", "--as", "few"]
    assert main(["evaluate", str(run), *words, "--runtime.processes", "64"]) == 0
    assert len(read_evidence(run / "evaluation_few").table.examples.id) == 1
    assert "share" not in capsys.readouterr().out


def test_several_threats_have_the_evidence_of_one_process(run: Path) -> None:
    words = [str(run), "--suite", "pgd_20", "--evaluation.batch_size", "4", "--threats", "l2:1", "linf:0.05"]
    assert main(["evaluate", *words, "--as", "each"]) == 0
    process = fork(*words, "--as", "both", "--runtime.processes", "2")
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    for ending in ("_l2", ""):
        assert_same_evidence(run / f"evaluation_each{ending}", run / f"evaluation_both{ending}")
