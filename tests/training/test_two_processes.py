"""Two processes on one machine train what one process trains."""

import json
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
from robustly.cli import main
from robustly.data import load_splits
from robustly.experiments.run_folder import build_network, open_run
from robustly.models import load_weights
from robustly.randomness import derive_seed
from robustly.training.engine.validation import validate

SMALL = {
    "--threat": "linf:0.1",
    "--data.train_limit": "109",  # in batches of 32: 3 full ones and one of 13, of which the processes get 7 and 6
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
pytestmark = pytest.mark.slow
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "robustly", "train", *arguments],
        env=ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal gives: Ctrl-C reaches all of it
    )


def words_of(folder: Path, recipe: str, *settings: dict[str, str]) -> list[str]:
    changed = {key: value for group in (SMALL, *settings) for key, value in group.items()}
    return [recipe, "--out", str(folder), *(word for pair in changed.items() for word in pair)]


def state(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    return content


def largest_difference(one: Path, other: Path) -> float:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


FAST = {"--optimizer.name": "sgd", "--optimizer.learning_rate": "0.1"}
GUIDED = {"--guide.width": "0.25", "--method.parameters.ema.decay": "0.9", "--method.labels.warm_up": "0"}
OWN = {
    "--data.train_limit": "301",  # fewer teach the guide too little
    "--guide": "null",
    "--networks.guide": "{width: 0.25, dropout: 0, pretrain: 1, optimizer: {learning_rate: 0.02}}",
}
MAIL = {
    "--method.weights": "{name: mail, scale: mean_one, burn_in: 0}",
    "--method.parameters": "{awp: {gamma: 0.01}, grad_align: {weight: 0.1}}",
}
GAIRAT = {"--method.weights": "{name: gairat, burn_in: 0, shift: 0}", "--method.parameters": "{swa: {start: 0}}"}
ONE_EPOCH = {"--training.epochs": "1"}
CLEAN = {"--model.pretrain": "2", "--method.parameters.ema.decay": "0.9"}
RUNS: dict[str, tuple[str, tuple[dict[str, str], ...]]] = {
    "trades": ("trades", (SGD,)),
    "guide": ("dynat", (GUIDED, ONE_EPOCH)),
    "own": ("lbgat0", (SGD, OWN, ONE_EPOCH)),
    "from_clean": ("pgd_at", (SGD, CLEAN, ONE_EPOCH)),
    "mail-awp-gradalign": ("pgd_at", (SGD, MAIL, ONE_EPOCH)),
    "gairat-swa": ("pgd_at", (SGD, GAIRAT, ONE_EPOCH)),
    # a random start is far from where the gradient of the attack is nearly zero
    "gkl": ("gkl", (FAST, {"--method.inner.start": "random"})),
}
NORM_NET = """
from torch import nn


def make(classes):
    norm = nn.BatchNorm1d(32, momentum=1.0)  # statistics of the last batch: 6 or 7 images
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 32), norm, nn.ReLU(), nn.Linear(32, classes))
"""
LONGER = {"--training.epochs": "3", "--data.train_limit": "601", "--model.dropout": "0.3"}
RUNS_OF_TWO = RUNS | {
    "norm": ("pgd_at", ({"--model.name": "norm_net:make", "--model.width": "1", "--data.train_limit": "301"},)),
    "longer": ("pgd_at", (LONGER,)),
    "shards": ("trades", (SGD, {"--runtime.strategy": "fsdp"})),
    "parts": ("trades", (SGD, {"--training.accumulate": "3"})),  # the last batch: 7 and 6 images, in 3 parts each
}
SEVERAL = """
import gc
import json
import sys
from pathlib import Path
import torch.distributed
from robustly.cli import main

leave = torch.distributed.destroy_process_group
torch.distributed.destroy_process_group = lambda: None  # one group for all runs
for words in json.loads(sys.argv[1]):
    assert main(words) == 0, words
leave()
gc.collect()
left = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in left), left  # one that runs while Python exits can abort the process
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process, in a folder each."""
    folder = tmp_path_factory.mktemp("one")
    for name, (recipe, settings) in RUNS.items():
        assert main(["train", *words_of(folder / name, f"mnist5k/{recipe}", *settings)]) == 0
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs of two processes, and two more. `torchrun` starts the processes once for all of them."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "norm_net.py").write_text(NORM_NET)
    (folder / "several.py").write_text(SEVERAL)
    words = [
        ["train", *words_of(folder / name, f"mnist5k/{recipe}", *settings, TWO)]
        for name, (recipe, settings) in RUNS_OF_TWO.items()
    ]
    command = [sys.executable, *TORCHRUN, str(folder / "several.py"), json.dumps(words)]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "output.log").write_text(done.stdout)
    return folder


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


FILES = [
    ".lock",
    "checkpoints/best.safetensors",
    "checkpoints/last.pt",
    "config.yaml",
    "data.safetensors",
    "metrics.csv",
    "model.safetensors",
    "status.json",
]


def test_two_processes_train_the_network_of_one(one: Path, two: Path) -> None:
    single, folder = one / "trades", two / "trades"
    assert largest_difference(single, folder) < 1e-5
    for mine, theirs in zip(state(single)["rows"], state(folder)["rows"], strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert mine["loss_consistency"] == pytest.approx(theirs["loss_consistency"], abs=1e-5)
        for name in ("train_clean_accuracy", "train_robust_accuracy", "validation_robust_accuracy"):
            assert mine[name] == pytest.approx(theirs[name], abs=0.02), name  # a few images are nearly tied
    assert (two / "output.log").read_text().count("finished 2 epochs") == 5, "of TRADES thrice, GKL and `norm`"
    assert files_of(folder) == FILES
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3


def test_two_processes_train_a_batch_in_parts_as_one_trains_the_whole(one: Path, two: Path) -> None:
    assert largest_difference(one / "trades", two / "parts") < 2e-5
    for mine, theirs in zip(state(one / "trades")["rows"], state(two / "parts")["rows"], strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)


def test_shards_of_two_processes_train_what_one_trains_and_are_evaluated_as_any_run(one: Path, two: Path) -> None:
    assert largest_difference(one / "trades", two / "shards") < 1e-5
    assert files_of(two / "shards") == FILES
    words = ["--evaluation.suite", "pgd_20", "--evaluation.count", "8", "--evaluation.curve", "off"]
    assert main(["evaluate", str(two / "shards"), *words, "--runtime.processes", "1"]) == 0


def test_a_guide_is_trained_by_two_processes_as_by_one(one: Path, two: Path) -> None:
    assert largest_difference(one / "guide", two / "guide") < 2e-5
    first, second = (state(folder / "guide")["networks"]["guide"] for folder in (one, two))
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 2e-5


def test_a_network_with_its_own_optimiser_is_trained_by_two_processes_as_by_one(one: Path, two: Path) -> None:
    first, second = (state(folder / "own") for folder in (one, two))
    assert list(second["optimizers"]) == ["model", "guide"]
    for network, weights in first["networks"].items():
        others = second["networks"][network]
        assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 2e-5
    alone, shared = first["pretraining"]["guide"][0], second["pretraining"]["guide"][0]
    assert alone["train_loss"] == pytest.approx(shared["train_loss"], rel=1e-5)
    assert alone["validation_clean_accuracy"] == pytest.approx(shared["validation_clean_accuracy"], abs=0.02)


def test_clean_epochs_of_the_model_are_those_of_one_process(one: Path, two: Path) -> None:
    assert largest_difference(one / "from_clean", two / "from_clean") < 2e-5
    first, second = (state(folder / "from_clean")["pretraining"]["model"] for folder in (one, two))
    for alone, shared in zip(first, second, strict=True):
        assert alone["train_loss"] == pytest.approx(shared["train_loss"], rel=1e-5)
        assert alone["validation_clean_accuracy"] == pytest.approx(shared["validation_clean_accuracy"], abs=0.02)


@pytest.mark.parametrize("parts", ["mail-awp-gradalign", "gairat-swa"])
def test_parts_that_look_at_the_batch_see_that_of_all_processes(parts: str, one: Path, two: Path) -> None:
    """Weights of mean one, the perturbation of the weights, the alignment of gradients."""
    assert largest_difference(one / parts, two / parts) < 1e-4


def test_the_class_prior_and_the_batch_denominator_are_those_of_all_processes(one: Path, two: Path) -> None:
    first, second = (state(folder / "gkl") for folder in (one, two))
    priors = [content["memory"]["ClassPrior"]["prior"] for content in (first, second)]
    assert torch.allclose(*priors, atol=1e-5)
    assert float((priors[0] - 0.1).abs().max()) > 0.001  # it says something
    assert largest_difference(one / "gkl", two / "gkl") < 1e-4
    for mine, theirs in zip(first["rows"], second["rows"], strict=True):
        assert mine["loss_squares"] == pytest.approx(theirs["loss_squares"], abs=1e-5)


def test_with_batch_normalisation_what_is_saved_is_what_was_validated(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(two))
    config = open_run(two / "norm")
    splits = load_splits(config.data)
    model = build_network(config.model, splits.train, 0, trusts=lambda name: True)
    load_weights(model, two / "norm/model.safetensors")
    seed = derive_seed(config.seed, "validation")
    found = validate(model, splits.validation, dynat_pgd(2), config.threat, seed=seed, batch_size=61)
    content = state(two / "norm")
    row = content["rows"][content["best_epoch"]]
    assert found.clean == row["validation_clean_accuracy"] > 0.3
    assert found.robust == row["validation_robust_accuracy"]


def test_ctrl_c_leaves_a_run_that_two_processes_resume(two: Path, tmp_path: Path) -> None:
    """The command starts its processes itself, and ends with the bits of those that `torchrun` starts."""
    whole, cut = two / "longer", tmp_path / "cut"
    process = start(*words_of(cut, "mnist5k/pgd_at", LONGER, TWO))
    while process.poll() is None and not (cut / "checkpoints/last.pt").exists():
        time.sleep(0.01)
    time.sleep(random.Random(1).uniform(0.1, 0.3))
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"--resume {cut}" in out
    assert not (cut / "model.safetensors").exists()
    process = start("--resume", str(cut))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.count("finished 3 epochs") == 1
    assert files_of(cut) == FILES
    assert largest_difference(whole, cut) == 0
    assert state(cut)["epoch"] == 3


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list processes of a process")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_process_ends_the_other_one_in_a_sentence(strategy: str, tmp_path: Path) -> None:
    settings = {"--training.epochs": "500", "--runtime.strategy": strategy}
    process = start(*words_of(tmp_path / "run", "mnist5k/pgd_at", TWO, settings))
    while process.poll() is None and not (tmp_path / "run/checkpoints/last.pt").exists():
        time.sleep(0.05)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "robustly: another process of this run has stopped; the same command continues" in err
    assert "Traceback" not in err
    assert "fault of robustly" not in err


def test_a_divergence_in_one_process_stops_both(tmp_path: Path) -> None:
    wild = {"--optimizer.name": "sgd", "--optimizer.learning_rate": "1e9"}
    process = start(*words_of(tmp_path / "run", "mnist5k/pgd_at", TWO, wild))
    _, err = process.communicate()
    assert process.returncode == 2
    assert "training diverged in epoch 1" in err
    assert "Traceback" not in err
    assert "diverged" in (tmp_path / "run/status.json").read_text()
