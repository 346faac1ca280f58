"""Shared fixtures: real digits, a network trained on them, and the folder of optional data."""

import copy
import functools
import gc
import lzma
import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest
import torch
from torch import nn

import forked
import shape_checks

shape_checks.install()
hypothesis.settings.register_profile("no time limits", deadline=None)
hypothesis.settings.load_profile("no time limits")
os.fsync = lambda _: None  # it is for power cuts, and was a twentieth of the time of the fast tests
lzma.decompress = functools.lru_cache(maxsize=1)(lzma.decompress)  # most tests read the digits of the package

from robustly import documents  # noqa: E402

_parsed = functools.lru_cache(maxsize=1000)(documents.parse_yaml)  # most tests read the same few recipes
documents.parse_yaml = functools.wraps(documents.parse_yaml)(lambda *words: copy.deepcopy(_parsed(*words)))

from robustly.data import DataConfig, Splits, load_splits  # noqa: E402
from robustly.models import ModelConfig, build_model  # noqa: E402

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # tests started in the background: their children shall hear it
    signal.signal(signal.SIGINT, signal.default_int_handler)


if not torch.accelerator.is_available():
    # `torch.manual_seed` would keep the call stack for each kind of device that might come, three times in a step
    torch.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))


def pytest_collection_finish() -> None:
    """Keep modules and tests, which stay to the end, out of all later collections of garbage.

    Store no more bytecode: that of a module which a test writes twice within a second is taken for both.
    """
    gc.collect()
    gc.freeze()
    sys.dont_write_bytecode = True


@pytest.fixture(scope="session")
def digits() -> Splits:
    """1,000 training, 200 validation and 200 test digits of MNIST."""
    return load_splits(DataConfig(validation=200, test=200, train_limit=1000))


@pytest.fixture(scope="session")
def digit_net(digits: Splits) -> nn.Module:
    """A small network that classifies most digits, in evaluation mode. Not robust."""
    torch.manual_seed(0)
    net = build_model(ModelConfig(name="small_cnn", width=0.25, dropout=0.0), seed=0)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    x, y = digits.train.floats(), digits.train.labels
    for _ in range(6):
        for rows in torch.randperm(len(y)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the contract of training parts fork its processes, which import nothing then."""
    monkeypatch.setattr("robustly.testing.training_runs.spawn", forked.spawn)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of optional real data; tests that need it skip without."""
    folder = os.environ.get("ROBUSTLY_SHARED_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set ROBUSTLY_SHARED_DATA to the folder of optional data to run this")
    return Path(folder)
