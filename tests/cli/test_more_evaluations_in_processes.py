"""Diagnostics, certificates, protocols and domains in several processes: the evidence of one."""

import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from process_tools import children, start, wait_for
from safetensors import safe_open

from forked import fork, fork_by_torchrun
from robustly.cli import main
from robustly.data import DataConfig, load_test
from robustly.evidence import read_evidence, read_summary

SMALL = [
    "--data.image_size", "16", "--data.train_limit", "1500", "--data.validation", "20", "--data.test", "16",
    "--model.width", "0.0625", "--training.epochs", "5", "--training.batch_size", "32",
    "--training.validation_steps", "1", "--runtime.device", "cpu",
]  # fmt: skip
WIDER = ["--model.width", "0.25", "--data.train_limit", "300", "--training.epochs", "2"]
PROVED = ["--suite", "fgsm", "--evaluation.batch_size", "4", "--evaluation.curve", "off", "--halvings", "1"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("more") / "run"
    assert main(["train", "mnist5k/standard", *SMALL, "--threat", "linf:0.04", "--out", str(folder)]) == 0
    return folder


def assert_same(one: Path, other: Path) -> None:
    """Everything is the same but the time that proofs took."""
    first, second = read_evidence(one), read_evidence(other)
    for name, columns in first.table.certificates.items():
        for column in ("verdict", "radius", "prediction", "lower_bound", "stage", "reason", "work"):
            found = getattr(second.table.certificates[name], column)
            assert np.array_equal(getattr(columns, column), found), column
    if not first.table.certificates:
        assert (one / "evidence.parquet").read_bytes() == (other / "evidence.parquet").read_bytes()
    assert (one / "adversarial.safetensors").read_bytes() == (other / "adversarial.safetensors").read_bytes()
    assert first.summary.findings == second.summary.findings
    assert first.summary.metrics.worst_case == second.summary.metrics.worst_case


def proofs(partial: Path) -> dict[Path, int]:
    """Results of parts of a certificate, and when they were written; the command removes them at its end."""
    found = {}
    for path in partial.glob("parts/*/0*.safetensors"):
        with suppress(FileNotFoundError), safe_open(path, framework="np") as stored:
            if "verdict" in stored.keys():  # noqa: SIM118
                found[path] = path.stat().st_mtime_ns
    return found


def test_certificates_and_diagnostics_are_those_of_one_process(run: Path) -> None:
    words = [str(run), *PROVED]
    process = fork(*words, "--as", "alone", command="certify")  # there nothing checks shapes, which differ a lot
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    (columns,) = read_evidence(run / "evaluation_alone").table.certificates.values()
    assert len(set(columns.verdict)) > 1
    assert list(columns.stage).count("branch") > 1, "processes share the branch and bound of open images"
    process = fork(*words, "--as", "three", "--runtime.processes", "3", command="certify")
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert_same(run / "evaluation_alone", run / "evaluation_three")
    assert main(["audit", str(run), "--as", "three"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_costs_no_finished_proof(tmp_path: Path) -> None:
    run = tmp_path / "run"  # of a network whose proofs take long enough to be killed
    assert main(["train", "mnist5k/standard", *SMALL, *WIDER, "--threat", "linf:0.02", "--out", str(run)]) == 0
    words = [str(run), *PROVED, "--method", "alpha_crown", "--evaluation.batch_size", "1"]
    assert main(["certify", *words, "--as", "whole"]) == 0
    words += ["--as", "killed", "--runtime.processes", "2"]
    partial = run / "evaluation_killed.partial"
    process = start(*words, command="certify")
    wait_for(lambda: len(proofs(partial)) > 1, process)
    (other,) = children(process.pid)
    os.kill(other, signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2
    assert errors.startswith("robustly: process 1 of 2 has stopped")
    kept = proofs(partial)
    assert len(kept) > 1

    process = start(*words, command="certify")
    wait_for(lambda: len(proofs(partial)) > len(kept), process)
    assert kept.items() <= proofs(partial).items(), "finished proofs are not made again"
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert_same(run / "evaluation_whole", run / "evaluation_killed")


def test_a_protocol_has_the_evidence_of_one_process_also_under_torchrun(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    words = ["--suite", "unforeseen", "--threats", "brightness:0.2", "shift:1", "--evaluation.batch_size", "2"]
    words += ["--evaluation.count", "8", "--trained-on", "none", "--evaluation.curve", "off"]
    assert main(["evaluate", str(run), *words]) == 0
    process = fork_by_torchrun(str(other), *words)
    shown, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert shown.count("next: robustly audit") == 1
    for name in ("brightness", "shift"):
        assert_same(run / f"evaluation_unforeseen_{name}", other / f"evaluation_unforeseen_{name}")
    found = []
    for by, extra in ((fork, []), (fork, ["--runtime.processes", "2"]), (fork_by_torchrun, [])):
        process = by(str(other), "--as", "unforeseen", *extra, command="audit")
        found.append((process.communicate()[0], process.returncode))
    assert found[0][1] == 0
    assert found[1:] == found[:1] * 2, "an audit of a protocol prints the same"
    shutil.rmtree(other / "evaluation_unforeseen_shift")
    (other / "protocol_unforeseen.json").unlink()
    process = fork(str(other), *words, "--runtime.processes", "2")
    shown, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert_same(run / "evaluation_unforeseen_shift", other / "evaluation_unforeseen_shift")


def test_domains_have_the_evidence_of_one_process(tmp_path: Path) -> None:
    digits = load_test(DataConfig(evaluation_only=True, subset="balanced", test_limit=90, image_size=16))
    images, labels = digits.images[:, 0].numpy(), digits.labels.numpy()
    for number, (name, change) in enumerate({"plain": 0, "inverted": 255, "dark": 60}.items()):
        rows = slice(30 * number, 30 * number + 30)
        np.savez(tmp_path / f"{name}.npz", images=np.abs(images[rows].astype(np.int16) - change).astype(np.uint8),
                 labels=labels[rows])  # fmt: skip
    domains = ",".join(f"{name}={tmp_path / name}.npz" for name in ("plain", "inverted", "dark"))
    settings = ["--data.domains", domains, "--data.leave_out", "dark", "--data.validation", "6", "--data.test", "6",
                "--data.image_size", "16", "--model.width", "0.25", "--training.epochs", "1",
                "--training.batch_size", "16", "--training.validation_steps", "1",
                "--threat", "linf:0.1"]  # fmt: skip
    run = tmp_path / "run"
    assert main(["train", "mnist5k/standard", "--out", str(run), *settings]) == 0
    words = [str(run), "--suite", "pgd_10", "--evaluation.curve", "off", "--evaluation.batch_size", "3"]
    assert main(["evaluate", *words, "--as", "one"]) == 0
    process = fork(*words, "--as", "two", "--runtime.processes", "2")
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    process = fork_by_torchrun(*words, "--as", "cluster")
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    for name in ("two", "cluster"):
        for ending in ("", "_source"):
            assert_same(run / f"evaluation_one{ending}", run / f"evaluation_{name}{ending}")
            assert read_summary(run / f"evaluation_{name}{ending}").data.count > 0
