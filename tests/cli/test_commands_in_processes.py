"""`diagnose`, `analyse`, `audit` and `predict` in several processes: what one process finds; and bad input."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from process_tools import children, start, wait_for

from forked import fork, fork_by_torchrun
from robustly.cli import main

SMALL = [
    "--data.image_size", "16", "--data.train_limit", "300", "--data.validation", "20", "--data.test", "30",
    "--model.width", "0.25", "--training.epochs", "2", "--training.batch_size", "32",
    "--training.validation_steps", "1", "--threat", "linf:0.05", "--runtime.device", "cpu",
]  # fmt: skip
TWO = ["--runtime.processes", "2"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "run"
    assert main(["train", "mnist5k/standard", *SMALL, "--out", str(folder)]) == 0
    words = ["--suite", "fgsm,pgd_10", "--evaluation.batch_size", "4", "--evaluation.curve", "off"]
    assert main(["evaluate", str(folder), *words]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(260):  # two batches
        Image.fromarray(draws.integers(0, 256, (16, 16), np.uint8)).save(folder / f"{number:03d}.png")
    return folder


def slurm(rank: int, size: int) -> dict[str, str]:
    """Variables that srun sets for one process of a step."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": str(os.getpid() % 200),
        "SLURM_JOB_NAME": "robustly",
        "SLURM_NTASKS": str(size),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODELIST": "127.0.0.1",
    }


def of_file(path: Path) -> dict[str, object]:
    content = json.loads(path.read_text())
    content.pop("created", None)
    return content


def test_diagnostics_are_those_of_one_process_also_with_more_processes_than_images(run: Path) -> None:
    words = [str(run), "--count", "2"]
    code = main(["diagnose", *words])
    alone = of_file(run / "diagnostics.json")
    for size in ("2", "3"):
        (run / "diagnostics.json").unlink()
        process = fork(*words, "--runtime.processes", size, command="diagnose")
        shown, errors = process.communicate(timeout=400)
        assert process.returncode == code, errors
        assert shown.count("diagnostics:") == 1
        assert of_file(run / "diagnostics.json") == alone


def test_slurm_starts_the_processes_and_one_of_them_prints(run: Path) -> None:
    words = [str(run), "--count", "20"]
    assert main(["analyse", *words]) == 0
    alone = of_file(run / "analysis.json")
    (run / "analysis.json").unlink()
    processes = [fork(*words, command="analyse", variables=slurm(rank, 2)) for rank in range(2)]
    outputs = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "analysis:" in outputs[0][0]
    assert outputs[1] == ("", "")
    assert of_file(run / "analysis.json") == alone


def test_an_evaluation_under_slurm_has_the_evidence_of_one_process(run: Path) -> None:
    words = [str(run), "--suite", "fgsm,pgd_10", "--evaluation.batch_size", "4", "--evaluation.curve", "off"]
    words += ["--as", "slurm", "--keep"]
    for count in range(2):  # the second time there is nothing to do
        processes = [fork(*words, variables=slurm(rank, 2)) for rank in range(2)]
        outputs = [process.communicate(timeout=400) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        assert outputs[1] == ("", ""), count
    for name in ("evidence.parquet", "adversarial.safetensors"):
        one, other = run / "evaluation" / name, run / "evaluation_slurm" / name
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--suite", "fgsm", "--as", "not-a-name"], "--as takes letters, digits and _"),
        (["--suite", "tafd_v10"], "tafd_v10 cannot be evaluated on these images"),
    ],
)
def test_a_refusal_of_process_0_under_slurm_ends_the_others_at_once(
    run: Path, words: list[str], sentence: str
) -> None:
    began = time.monotonic()
    processes = [fork(str(run), *words, variables=slurm(rank, 3)) for rank in range(3)]
    outputs = [process.communicate(timeout=200) for process in processes]
    assert processes[0].returncode == 2
    assert sentence in outputs[0][1]
    assert outputs[1:] == [("", "")] * 2
    assert time.monotonic() - began < 60, "they do not wait for a store that never opens"


def test_an_audit_passes_or_fails_in_several_processes_as_in_one(run: Path) -> None:
    for code in (0, 1):
        assert main(["audit", str(run), "--rerun", "all"]) == code
        alone = of_file(run / "evaluation" / "audit.json")
        process = fork(str(run), "--rerun", "all", *TWO, command="audit")
        shown, errors = process.communicate(timeout=400)
        assert process.returncode == code, errors
        assert of_file(run / "evaluation" / "audit.json") == alone
        process = fork_by_torchrun(str(run), command="audit")
        shown, _ = process.communicate(timeout=400)
        assert (process.returncode == 0) == (code == 0)
        assert shown.count("stated, not checked") == 1
        summary = run / "evaluation" / "summary.json"
        content = json.loads(summary.read_text())
        content["findings"][0]["words"] = "All is well."
        summary.write_text(json.dumps(content))


@pytest.mark.parametrize("size", ["2", "3"])
def test_predictions_are_those_of_one_process(
    run: Path, pictures: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run), str(pictures), "--csv"]
    capsys.readouterr()
    assert main(["predict", *words]) == 0
    alone = capsys.readouterr().out
    process = fork(*words, "--runtime.processes", size, command="predict")
    shown, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert shown == alone
    assert ("processes share" in errors) == (int(size) > len(os.sched_getaffinity(0)))
    (pictures / "255.png").write_bytes(b"no image")
    assert main(["predict", *words]) == 2
    alone = capsys.readouterr().err
    process = fork(*words, "--runtime.processes", size, command="predict")
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 2
    assert errors.splitlines()[-1] == alone.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_and_ctrl_c_end_the_command_with_one_sentence(run: Path) -> None:
    words = [str(run), "--count", "30", *TWO]
    for number, code in ((signal.SIGKILL, 2), (signal.SIGINT, 130)):
        process = start(*words, command="diagnose")
        wait_for(lambda: len(children(process.pid)) == 1, process)  # noqa: B023
        (other,) = children(process.pid)
        time.sleep(1)
        if number == signal.SIGKILL:
            os.kill(other, number)
        else:
            os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == code, errors
        if code == 2:
            sentence = "robustly: process 1 of 2 has stopped; start the command again"
            assert [line for line in errors.splitlines() if not line.startswith("!")] == [sentence]
        assert "Traceback" not in errors
        assert not (run / "diagnostics.json").exists()
        assert not Path(f"/proc/{other}").exists()


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [
        ("predict", ["--runtime.processes", "0"], "runtime.processes should be a whole number of at least 1"),
        ("predict", ["--runtime.processes", "-2"], "runtime.processes should be a whole number of at least 1"),
        ("audit", ["--runtime.processes=two"], "runtime.processes should be a whole number of at least 1"),
        (
            "audit",
            ["--seed", "2"],
            "audit takes no settings but --runtime.processes and --runtime.strategy, got --seed",
        ),
        ("diagnose", ["--runtime.processes", "0"], "processes and nodes must be at least 1"),
        ("analyse", ["--runtime.processes", "-1"], "processes and nodes must be at least 1"),
        ("certify", ["--runtime.processes", "0"], "processes and nodes must be at least 1"),
        ("evaluate", ["--as", "other", "--runtime.processes", "0"], "processes and nodes must be at least 1"),
    ],
)
def test_numbers_of_processes_that_are_none_are_refused(
    run: Path, pictures: Path, command: str, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(pictures)] if command == "predict" else []
    assert main([command, str(run), *images, *words]) == 2
    assert sentence in capsys.readouterr().err
