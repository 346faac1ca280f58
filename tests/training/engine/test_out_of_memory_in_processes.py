"""Two processes, one of which runs out of memory: both take the same number of parts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forked import Ended, fork_by_torchrun

pytestmark = pytest.mark.slow
NET = """
import os

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(16, classes)
        self.passes = 0

    def forward(self, x):
        hidden = self.net(x)  # with batch statistics, which an undone pass must not leave
        if self.training and torch.is_grad_enabled() and len(x) > 4:
            self.passes += 1
            rank, most, begin = os.environ.get("RANK"), int(os.environ["MOST"]), int(os.environ["BEGIN"])
            if rank == os.environ["SHORT"] and self.passes > begin and len(x) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return self.head(hidden)


def make(classes):
    return Net(classes)
"""
SETTINGS = {
    "--threat": "linf:0.1",
    "--data.train_limit": "141",  # in batches of 32: the last one has 13 images, of which the processes get 7 and 6
    "--data.image_size": "16",
    "--data.validation": "20",
    "--data.test": "20",
    "--model.name": "short_net:make",
    "--model.width": "1",
    "--training.epochs": "2",
    "--training.batch_size": "32",
    "--training.validation_steps": "1",
    "--training.epsilon_ramp": "0",
    "--method.inner.steps": "1",
    "--method.parameters.ema.decay": "0.9",
    "--optimizer.name": "sgd",
    "--optimizer.learning_rate": "0.05",
    "--runtime.device": "cpu",
    "--runtime.processes": "2",
}


def train(folder: Path, recipe: str = "mnist5k/pgd_at", **changes: str) -> Ended:
    """Train in two processes; arguments in capitals are variables of the network above."""
    (folder.parent / "short_net.py").write_text(NET)
    variables = {"SHORT": "-", "MOST": "99", "BEGIN": "0"} | {k: v for k, v in changes.items() if k.isupper()}
    settings = SETTINGS | {f"--{key}": value for key, value in changes.items() if not key.isupper()}
    words = [recipe, "--out", str(folder), *(word for pair in settings.items() for word in pair)]
    return fork_by_torchrun(*words, command="train", variables=variables, place=folder.parent).wait()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("short", ["0", "1"])
def test_one_process_without_memory_splits_the_batches_of_both(short: str, tmp_path: Path) -> None:
    """The run is that of two parts from the start, to the last bit."""
    done = train(tmp_path / "set", **{"training.accumulate": "2"})
    assert done.returncode == 0, done.stderr
    done = train(tmp_path / "found", SHORT=short, MOST="8")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("out of memory in epoch 1, step 1: from here on each batch of 32 images passes in 2") == 1
    )
    first, second = weights(tmp_path / "set"), weights(tmp_path / "found")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert json.loads((tmp_path / "found/status.json").read_text())["accumulate"] == 2


def test_auto_finds_parts_that_fit_in_both(tmp_path: Path) -> None:
    done = train(tmp_path / "found", SHORT="1", MOST="6", **{"training.accumulate": "auto"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training.accumulate: auto: batches of 32 pass in 3 parts") == 1


def test_a_method_of_the_whole_batch_ends_in_one_sentence(tmp_path: Path) -> None:
    done = train(tmp_path / "run", SHORT="1", MOST="8", **{"method.parameters.awp": "{gamma: 0.01}"})
    assert done.returncode != 0
    said = "cannot pass in parts because parameters.awp perturbs the weights: set training.batch_size to less"
    assert said in done.stderr
