"""Two processes on one machine train what one process trains."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from robustly.attacks import dynat_pgd
from robustly.data import load_splits
from robustly.experiments.run_folder import build_network, open_run
from robustly.models import load_weights
from robustly.randomness import derive_seed
from robustly.training.engine.validation import accuracies

SMALL = {
    "--threat": "linf:0.1",
    "--data.train_limit": "301",  # in batches of 32: 9 full ones and one of 13, of which the processes get 7 and 6
    "--data.image_size": "16",
    "--data.validation": "61",
    "--data.test": "60",
    "--model.width": "0.25",
    "--training.epochs": "2",
    "--training.batch_size": "32",
    "--training.validation_steps": "2",
    "--training.epsilon_ramp": "0",
    "--runtime.device": "cpu",
}
TWO = {"--runtime.processes": "2"}
# AdamW would blow the rounding of the first KL gradients, which are nearly zero, up to steps of full length
SGD = {"--optimizer.name": "sgd", "--optimizer.learning_rate": "0.05"}
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2")


def start(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", "robustly", "train", *arguments]
    return subprocess.Popen(
        command,
        env=ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal gives: Ctrl-C reaches all of it
    )


def train(folder: Path, recipe: str, *settings: dict[str, str], launcher: tuple[str, ...] = ()) -> str:
    words = [word for group in (SMALL, *settings) for pair in group.items() for word in pair]
    process = start(recipe, "--out", str(folder), *words, launcher=launcher)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out


def state(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    return content


def largest_difference(one: Path, other: Path) -> float:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "run"
    train(folder, "mnist5k/trades", SGD)
    return folder


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["own", "torchrun"])
def test_two_processes_train_the_network_of_one(launcher: tuple[str, ...], single: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    out = train(folder, "mnist5k/trades", SGD, TWO, launcher=launcher)
    assert largest_difference(single, folder) < 1e-5
    one, other = state(single)["rows"], state(folder)["rows"]
    for mine, theirs in zip(one, other, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert mine["loss_consistency"] == pytest.approx(theirs["loss_consistency"], abs=1e-5)
        for name in ("train_clean_accuracy", "train_robust_accuracy", "validation_robust_accuracy"):
            assert mine[name] == pytest.approx(theirs[name], abs=0.02), name  # a few images are nearly tied
    assert out.count("finished 2 epochs") == 1
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        ".lock",
        "checkpoints/best.safetensors",
        "checkpoints/last.pt",
        "config.yaml",
        "metrics.csv",
        "model.safetensors",
        "status.json",
    ]
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3


def test_a_guide_is_trained_by_two_processes_as_by_one(tmp_path: Path) -> None:
    guided = {"--guide.width": "0.25", "--method.parameters.ema.decay": "0.9", "--training.epochs": "1"}
    guided["--method.labels.warm_up"] = "0"
    train(tmp_path / "one", "mnist5k/dynat", guided)
    train(tmp_path / "two", "mnist5k/dynat", guided, TWO)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 2e-5
    one, two = (state(tmp_path / name)["networks"]["guide"] for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 2e-5


def test_a_network_with_its_own_optimiser_is_trained_by_two_processes_as_by_one(tmp_path: Path) -> None:
    own = {"--guide": "null", "--networks.guide": "{width: 0.25, dropout: 0, optimizer: {learning_rate: 0.02}}"}
    own["--training.epochs"] = "1"
    train(tmp_path / "one", "mnist5k/lbgat0", SGD, own)
    train(tmp_path / "two", "mnist5k/lbgat0", SGD, own, TWO)
    one, two = (state(tmp_path / name) for name in ("one", "two"))
    assert list(two["optimizers"]) == ["model", "guide"]
    for network, weights in one["networks"].items():
        assert max(float((weights[name] - two["networks"][network][name]).abs().max()) for name in weights) < 2e-5


@pytest.mark.parametrize(
    "parts",
    [
        {
            "--method.weights": "{name: mail, scale: mean_one, burn_in: 0}",
            "--method.parameters": "{awp: {gamma: 0.01}, grad_align: {weight: 0.1}}",
        },
        {"--method.weights": "{name: gairat, burn_in: 0, shift: 0}", "--method.parameters": "{swa: {start: 0}}"},
    ],
    ids=["mail-awp-gradalign", "gairat-swa"],
)
def test_parts_that_look_at_the_batch_see_that_of_all_processes(parts: dict[str, str], tmp_path: Path) -> None:
    """Weights of mean one, the perturbation of the weights, the alignment of gradients."""
    one_epoch = parts | {"--training.epochs": "1"}
    train(tmp_path / "one", "mnist5k/pgd_at", SGD, one_epoch)
    train(tmp_path / "two", "mnist5k/pgd_at", SGD, one_epoch, TWO)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-4


def test_the_class_prior_and_the_batch_denominator_are_those_of_all_processes(tmp_path: Path) -> None:
    # a random start is far from where the gradient of the attack is nearly zero
    fast = {"--optimizer.name": "sgd", "--optimizer.learning_rate": "0.1", "--method.inner.start": "random"}
    train(tmp_path / "one", "mnist5k/gkl", fast)
    train(tmp_path / "two", "mnist5k/gkl", fast, TWO)
    one, two = (state(tmp_path / name) for name in ("one", "two"))
    priors = [content["memory"]["ClassPrior"]["prior"] for content in (one, two)]
    assert torch.allclose(*priors, atol=1e-5)
    assert float((priors[0] - 0.1).abs().max()) > 0.001  # it says something
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-4
    for mine, theirs in zip(one["rows"], two["rows"], strict=True):
        assert mine["loss_squares"] == pytest.approx(theirs["loss_squares"], abs=1e-5)


NORM_NET = """
from torch import nn


def make(classes):
    norm = nn.BatchNorm1d(32, momentum=1.0)  # statistics of the last batch: 6 or 7 images
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 32), norm, nn.ReLU(), nn.Linear(32, classes))
"""


def test_with_batch_normalisation_what_is_saved_is_what_was_validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "norm_net.py").write_text(NORM_NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    train(Path("run"), "mnist5k/pgd_at", {"--model.name": "norm_net:make", "--model.width": "1"}, TWO)
    config = open_run(Path("run"))
    splits = load_splits(config.data)
    model = build_network(config.model, splits.train, 0, trusts=lambda name: True)
    load_weights(model, "run/model.safetensors")
    seed = derive_seed(config.seed, "validation")
    clean, robust = accuracies(model, splits.validation, dynat_pgd(2), config.threat, seed=seed, batch_size=61)
    content = state(Path("run"))
    row = content["rows"][content["best_epoch"]]
    assert clean == row["validation_clean_accuracy"] > 0.3
    assert robust == row["validation_robust_accuracy"]


def test_ctrl_c_leaves_a_run_that_two_processes_resume(tmp_path: Path) -> None:
    longer = {"--training.epochs": "3", "--data.train_limit": "601", "--model.dropout": "0.3"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, "mnist5k/pgd_at", longer, TWO)
    words = [word for pair in (SMALL | longer | TWO).items() for word in pair]
    process = start("mnist5k/pgd_at", "--out", str(cut), *words)
    while process.poll() is None and not (cut / "checkpoints/last.pt").exists():
        time.sleep(0.01)
    time.sleep(random.Random(1).uniform(0.1, 0.3))
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"--resume {cut}" in out
    assert not (cut / "model.safetensors").exists()
    process = start("--resume", str(cut))
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert largest_difference(whole, cut) == 0
    assert state(cut)["epoch"] == 3


def test_a_divergence_in_one_process_stops_both(tmp_path: Path) -> None:
    wild = {"--optimizer.name": "sgd", "--optimizer.learning_rate": "1e9"}
    words = [word for pair in (SMALL | TWO | wild).items() for word in pair]
    process = start("mnist5k/pgd_at", "--out", str(tmp_path / "run"), *words)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "training diverged in epoch 1" in err
    assert "Traceback" not in err
    assert "diverged" in (tmp_path / "run/status.json").read_text()
