"""Commands whose processes hold a share of the weights each: verdicts of one process; nothing is lost by a kill."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from process_tools import children, start, wait_for

from forked import Command, fork, fork_by_torchrun
from robustly.cli import main
from robustly.evidence import read_evidence
from robustly.evidence.schema import column_fields

SMALL = [
    "--data.image_size", "16", "--data.train_limit", "600", "--data.validation", "20", "--data.test", "16",
    "--model.width", "0.25", "--training.epochs", "6", "--training.batch_size", "32",
    "--training.validation_steps", "1", "--threat", "linf:0.05", "--runtime.device", "cpu",
]  # fmt: skip
SHARDS = ["--runtime.strategy", "fsdp", "--runtime.processes"]
OWN = [
    "--evaluation.suite", "own", "--evaluation.stages",
    "{fgsm: {attack: fgsm}, near: {attack: deepfool, steps: 4}, "
    "long: {attack: apgd, restarts: 1, steps: 4, precision: bfloat16}}",
]  # fmt: skip
QUICK = ["--suite", "fgsm,pgd_10", "--evaluation.batch_size", "5", "--evaluation.curve", "off"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "run"
    assert main(["train", "mnist5k/standard", *SMALL, "--out", str(folder)]) == 0
    assert main(["evaluate", str(folder), *QUICK]) == 0
    return folder


def in_shards(*words: str, count: int = 2, command: str = "evaluate", by: Callable[..., Command] = fork) -> str:
    """Output of a command in several processes."""
    process = by(*words, *SHARDS, str(count), command=command)
    shown, errors = process.communicate()
    assert process.returncode == 0, errors
    return shown


def assert_same_verdicts(one: Path, other: Path) -> None:
    """The same verdicts, numbers and 8-bit images; images and margins agree up to rounding."""
    first, second = read_evidence(one), read_evidence(other)
    assert first.summary.metrics == second.summary.metrics
    assert first.summary.model == second.summary.model
    assert first.table.attacks.keys() == second.table.attacks.keys()
    for name, columns in first.table.attacks.items():
        for column in column_fields(type(columns)):
            here, there = getattr(columns, column), getattr(second.table.attacks[name], column)
            if here.dtype.kind == "f":
                assert np.allclose(here, there, rtol=1e-4, atol=1e-5, equal_nan=True), (name, column)
            else:
                assert np.array_equal(here, there), (name, column)
        assert np.array_equal(first.images.attacks[name].ids, second.images.attacks[name].ids)
        assert np.allclose(first.images.attacks[name].images, second.images.attacks[name].images, atol=1e-5)
        for field in fields(first.images.eight_bit[name]):
            here, there = (getattr(found.images.eight_bit[name], field.name) for found in (first, second))
            assert np.array_equal(here, there), (name, field.name)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "batch"), [(2, "5"), (3, "2")])
def test_verdicts_are_those_of_one_process(trained: Path, count: int, batch: str) -> None:
    """Also where processes have uneven rows of a batch, or none, and where searches are in bfloat16."""
    words = [str(trained), *OWN, "--evaluation.batch_size", batch, "--evaluation.curve", "off"]
    assert main(["evaluate", *words, "--as", f"alone_{batch}"]) == 0
    shown = in_shards(*words, "--as", f"shards_{batch}", count=count)
    assert "worst case" in shown
    assert_same_verdicts(trained / f"evaluation_alone_{batch}", trained / f"evaluation_shards_{batch}")
    found = read_evidence(trained / f"evaluation_shards_{batch}")
    assert 0 < found.summary.metrics.worst_case.robust.share < found.summary.metrics.clean.share
    assert found.summary.precision == "as the suite says"
    assert main(["audit", str(trained), "--as", f"shards_{batch}"]) == 0


@pytest.mark.slow
def test_torchrun_starts_the_processes(trained: Path) -> None:
    words = [str(trained), *QUICK, "--as", "cluster", "--keep"]
    assert in_shards(*words, by=fork_by_torchrun).count("next: robustly report") == 1, "one process prints"
    assert in_shards(*words, by=fork_by_torchrun).count("is kept") == 1
    assert_same_verdicts(trained / "evaluation", trained / "evaluation_cluster")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_ends_the_command_and_the_next_one_continues(trained: Path) -> None:
    words = [str(trained), "--suite", "fgsm,pgd_50", *QUICK[2:]]
    assert main(["evaluate", *words, "--as", "whole"]) == 0
    words += ["--as", "killed", *SHARDS, "3"]
    partial = trained / "evaluation_killed.partial"

    process = start(*words)
    wait_for(lambda: len(list(partial.glob("parts/*/0*.safetensors"))) > 0, process)
    os.kill(max(children(process.pid)), signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("robustly: process ")
    assert "of 3 has stopped; the same command continues from the finished parts" in errors
    assert "Traceback" not in errors
    finished = {path: path.stat().st_mtime_ns for path in partial.rglob("*.safetensors")}
    assert finished

    # now process 0: the other ones end by themselves
    process = start(*words)
    wait_for(lambda: len(list(partial.rglob("*.safetensors"))) > len(finished), process)
    kept = {path: path.stat().st_mtime_ns for path in finished if path.is_file()}
    assert kept == {path: finished[path] for path in kept}, "finished parts are not written again"
    others = [Path(f"/proc/{number}/cmdline") for number in children(process.pid)]
    process.kill()
    process.communicate(timeout=100)
    until = time.monotonic() + 60
    while any(place.is_file() and place.read_text() for place in others):
        assert time.monotonic() < until, "another process goes on without process 0"
        time.sleep(0.1)

    process = start(*words)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert not partial.exists()
    assert_same_verdicts(trained / "evaluation_whole", trained / "evaluation_killed")


@pytest.mark.slow
def test_diagnostics_are_those_of_one_process(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    words = [str(run), "--count", "2"]
    assert main(["diagnose", *words]) == 0
    alone = json.loads((run / "diagnostics.json").read_text())
    in_shards(*words, command="diagnose")
    found = json.loads((run / "diagnostics.json").read_text())
    assert found["masking"] == alone["masking"]
    assert found["model"] == alone["model"]
    for one, other in zip(found["findings"], alone["findings"], strict=True):
        assert (one["id"], one["passed"]) == (other["id"], other["passed"])
        if one["value"] is not None:
            assert one["value"] == pytest.approx(other["value"], rel=0.05, abs=1e-3)


@pytest.mark.slow
def test_analyses_are_those_of_one_process(trained: Path, tmp_path: Path) -> None:
    """Where values tie in a pooling, rounding decides the gradient: it differs from batch size to batch size."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    words = [str(run), "--count", "6"]
    assert main(["analyse", *words]) == 0
    alone = json.loads((run / "analysis.json").read_text())
    in_shards(*words, command="analyse")
    found = json.loads((run / "analysis.json").read_text())
    assert found["model"] == alone["model"]
    for measure in ("l1", "l2"):
        one, other = (content["gradients"]["measures"][measure]["median"] for content in (found, alone))
        assert one == pytest.approx(other, rel=0.05)
    one, other = (np.array(content["landscapes"]["weights"]["loss"]) for content in (found, alone))
    assert np.allclose(one, other, rtol=1e-3)
    assert np.ptp(other) > 0.1
    for one, other in zip(found["landscapes"]["inputs"], alone["landscapes"]["inputs"], strict=True):
        assert one["id"] == other["id"]
        assert np.allclose(one["loss"], other["loss"], rtol=0.05, atol=0.01)


@pytest.mark.slow
def test_audits_and_predictions(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "audit passed" in in_shards(str(trained), command="audit")
    draws = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(draws.integers(0, 256, (16, 16), np.uint8)).save(tmp_path / f"{number}.png")
    words = [str(trained), str(tmp_path), "--csv"]
    capsys.readouterr()
    assert main(["predict", *words]) == 0
    alone = capsys.readouterr().out.splitlines()
    found = in_shards(*words, command="predict").splitlines()
    assert len(found) == 4
    assert [line.split(",")[:2] for line in found] == [line.split(",")[:2] for line in alone]


@pytest.mark.slow
def test_wrong_commands_are_refused_in_a_sentence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, two = str(trained), [*SHARDS, "2"]
    bounds = ["--evaluation.suite", "quick+crown"]
    cases = [
        (["evaluate", run, *SHARDS[:2]], "and there is one: set runtime.processes to at least 2"),
        (["diagnose", run, *SHARDS[:2]], "and there is one: set runtime.processes to at least 2"),
        (["audit", run, *SHARDS[:2]], "and there is one: set runtime.processes to at least 2"),
        (["predict", run, "x.png", *SHARDS[:2]], "and there is one: set runtime.processes to at least 2"),
        (["evaluate", run, "--runtime.strategy", "zero"], "strategy should be ddp or fsdp, but is 'zero'"),
        (["predict", run, "x.png", "--runtime.strategy=zero"], "strategy should be ddp or fsdp, but is 'zero'"),
        (["certify", run, *two], "certify computes bounds, which read the weights of all layers at once"),
        (["evaluate", run, "--as", "b", *bounds, *two], "the certificate crown computes bounds, which read the"),
        (["evaluate", run, "--on", "ray", *SHARDS, "1"], "--on ray shares batches, each with the whole weights"),
        (["corruptions", run, *two], "this command uses whole weights"),
        (["bench", run, *two], "this command uses whole weights"),
    ]
    before = sorted(path.name for path in trained.glob("[!.]*"))  # without locks
    for words, sentence in cases:
        assert main(words) == 2, words
        shown = " ".join(capsys.readouterr().err.split())
        assert sentence in shown, words
        assert shown.count("robustly: ") == 1
    assert sorted(path.name for path in trained.glob("[!.]*")) == before


MODELS = """
import torch
from torch import nn


class Scaled(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head, self.scale = nn.Linear(256, classes), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.scale * self.head(x.flatten(1))


def make(classes):
    return Scaled(classes)
"""


@pytest.mark.slow
def test_a_model_of_ones_own_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scaled_net.py").write_text(MODELS)
    words = [
        "--model",
        "scaled_net:make",
        "--data",
        "mnist5k",
        "--data.image_size",
        "16",
        "--evaluation.count",
        "4",
    ]
    process = start(
        *("runs/own", *words, *QUICK, *SHARDS, "2", "--threat", "linf:0.05"),
        variables={"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2, errors
    assert "the parameter scale of the model is a single number without dimensions" in errors
    assert not Path("runs/own").exists()
