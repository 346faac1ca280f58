"""`robustly bench`."""

import json
from pathlib import Path

import pytest
import torch
from cli_tools import refusal
from torch import Tensor, nn

from robustly.cli import main
from robustly.evidence import read_summary

TINY = ("--model.width", "0.25", "--data.image_size", "16", "--data.test", "20", "--data.train_limit", "40")
QUICK = ("--seconds", "2", "--batch-sizes", "1", "4")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTLY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow
def test_a_recipe_is_measured_and_whole_runs_are_predicted(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bench.json"
    words = ("--recipe", "mnist5k/pgd_at", *TINY, *QUICK, "--suites", "pgd_20", "quick", "--json", str(file))
    assert main(["bench", *words, "--images", "1000", "--devices", "4"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "training step of mnist5k/pgd_at",
        "counted passes made by hand",
        "quick on 1,000 images: at most about",
        "on 4 such devices, if no attack breaks any image",
        "no evaluation of this run under this threat was found",
        "memory of a batch of 4",
    ):
        assert words in shown, words
    found = json.loads(file.read_text())
    assert (found["schema"], found["kind"]) == (1, "robustly bench")
    assert [one["suite"] for one in found["suites"]] == ["pgd_20", "quick"]
    assert all(one["expected"] is None for one in found["suites"])
    assert found["step"]["forwards"] == {"model": 8}
    assert found["model"]["image"] == [1, 16, 16]
    assert {one["batch_size"] for one in found["passes"]["times"]} == {1, 4}
    assert len(list(cache.rglob("*.json"))) == 1
    assert [one.name for one in tmp_path.iterdir() if one.name not in ("cache", "bench.json")] == []  # no run


@pytest.mark.slow
def test_a_run_gives_expected_times_and_an_evaluation_takes_the_chosen_batch(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = tmp_path / "run", tmp_path / "bench.json"
    settings = ("--training.epochs", "1", "--training.epsilon_ramp", "0", "--threat", "linf:0.02")
    assert main(["train", "mnist5k/pgd_at", *TINY, *settings, "--out", str(run)]) == 0
    assert main(["evaluate", str(run), "--suite", "pgd_20", "--curve", "off"]) == 0
    before = sorted(run.rglob("*"))
    only = ("--parts", "attacks", "--suites", "pgd_20")
    assert main(["bench", str(run), *QUICK, *only, "--json", str(file), "--clock", "cpu"]) == 0
    assert sorted(run.rglob("*")) == before
    found = json.loads(file.read_text())
    summary = read_summary(run / "evaluation")
    assert found["survival"]["robust"] == summary.metrics.worst_case.robust.share
    assert found["suites"][0]["expected"] is not None
    assert found["step"] is None
    assert found["clock"] == "cpu"
    size = found["choices"]["batch_size"]
    torch_threads = torch.get_num_threads()
    assert torch_threads == 1 or cache.exists()
    capsys.readouterr()
    if torch_threads == 1:  # the threads of the measurement
        assert main(["evaluate", str(run), "--suite", "pgd_20", "--curve", "off", "--overwrite"]) == 0
        assert "as measured by robustly bench" in " ".join(capsys.readouterr().out.split())
        assert read_summary(run / "evaluation").suite.batch_size == size


class OneByOne(nn.Module):
    """A network of the user's that takes several images only, or none at all."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.layer, self.least = nn.Linear(144, 10), least

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < self.least:
            raise RuntimeError("the batch is too small")
        return self.layer(x.flatten(1))


def pairs() -> nn.Module:
    torch.manual_seed(0)
    return OneByOne(2)


def test_a_model_that_fails_at_batch_size_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("--data", "mnist5k", "--data.image_size", "12", "--data.test", "20")
    words = ("--model", f"{__name__}:pairs", *data, "--threat", "linf:0.1", *QUICK)
    assert main(["bench", *words, "--parts", "passes", "--no-cache", "--json", "bench.json"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    failed = {one["failure"] for one in json.loads(Path("bench.json").read_text())["passes"]["times"]}
    assert failed == {"", "RuntimeError: the batch is too small"}
    assert "memory of a batch of 4" in shown
    assert "memory of a batch of 1:" not in shown
    assert not (tmp_path / "cache").exists()
    only_one = ("bench", *words, "--parts", "passes", "--batch-sizes", "1")
    assert "the model fails in every pass: RuntimeError: the batch is too small" in refusal(capsys, *only_one)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "name a run folder"),
        (["nowhere"], "is not a run folder"),
        (["--recipe", "mnist5k/pgd"], "pgd_at"),
        (["run", "--recipe", "mnist5k/pgd_at"], "name a run or --recipe, not both"),
        (["--recipe", "mnist5k/pgd_at", "--seconds", "0"], "--seconds must be a positive number, got 0"),
        (["--recipe", "mnist5k/pgd_at", "--seconds", "-3"], "--seconds must be a positive number, got -3"),
        (["--recipe", "mnist5k/pgd_at", "--seconds", "nan"], "--seconds must be a positive number, got nan"),
        (["--recipe", "mnist5k/pgd_at", "--seconds", "soon"], "invalid float value"),
        (["--recipe", "mnist5k/pgd_at", "--images", "0"], "--images must be at least 1, got 0"),
        (["--recipe", "mnist5k/pgd_at", "--devices", "0"], "--devices must be at least 1, got 0"),
        (["--recipe", "mnist5k/pgd_at", "--batch-sizes", "4", "0"], "--batch-sizes must be at least 1, got 0"),
        (["--recipe", "mnist5k/pgd_at", "--suites", "slow"], "slow"),
        (["--recipe", "mnist5k/pgd_at", "--suites", "unforeseen"], "unforeseen has several"),
        (["--recipe", "mnist5k/pgd_at", "--threat", "l0:5", "--suites", "aa_standard"], "l0"),
        (["--recipe", "mnist5k/pgd_at", "--json", "no/such/file.json"], "name a file in a folder that exists"),
        (["--recipe", "mnist5k/pgd_at", "--model.wdith", "1"], "wdith"),
    ],
)
def test_bad_input(
    words: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reason in refusal(capsys, "bench", *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "bench", "--recipe", "mnist5k/pgd_at", "--runtime.device", "cuda")
    assert "device 'cuda' is not available on this machine" in said
