"""`training.checkpoint_every`: a run stopped in the middle of an epoch goes on from there, with the same result."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_tools import NormNet, Splits, Stop, final, last, make_job, run, same, small_digits, small_net

from forked import fork, fork_by_torchrun
from robustly.data import Augmentation, Extra
from robustly.experiments.configuration import build_config
from robustly.training import (
    AdversarialLoss,
    DynatLoss,
    ExponentialAverage,
    GuideLabels,
    Job,
    Method,
    OptimizerConfig,
    PGDInner,
    TrainingConfig,
)
from robustly.training.engine.checkpoint import CheckpointError, content_sha256
from robustly.training.inner.single_step import FreeInner

pytestmark = pytest.mark.slow

TIMES = {"seconds", "images_per_second"}
GUIDED = Method(
    labels=GuideLabels(), inner=PGDInner(steps=1), loss=DynatLoss(), parameters=(ExponentialAverage(0.9, 0.0),)
)
FREE = Method(inner=FreeInner(replays=2), loss=AdversarialLoss())
PLAIN = Method(inner=PGDInner(steps=1), loss=AdversarialLoss())


@pytest.fixture(scope="module")
def little() -> Splits:
    return small_digits(75)  # batches of 32, 32 and 11


def job_of(name: str, data: Splits, every: int | None) -> Job:
    training = {"checkpoint_every": every}
    if name == "guided":
        optimizer = OptimizerConfig(name="adamw", learning_rate=0.01)
        return make_job(data, GUIDED, small_net(0.3), guide=NormNet(1), optimizer=optimizer, training=training)
    if name == "free":
        return make_job(data, FREE, training=training)
    extra = Extra(replace(data.train, ids=data.train.ids + 10**6), 0.5)
    return make_job(data, PLAIN, extra=extra, augmentation=Augmentation(2, True), training=training)


@pytest.mark.parametrize(("name", "steps"), [("guided", 2), ("guided", 5), ("free", 10), ("extra", 5)])
def test_it_ends_as_an_unbroken_run(name: str, steps: int, little: Splits, tmp_path: Path) -> None:
    whole = run(job_of(name, little, None), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(job_of(name, little, 1), tmp_path / "cut", Stop(steps))
    left = Stop(10**6)
    resumed = run(job_of(name, little, 1), tmp_path / "cut", left)
    replays = 2 if name == "free" else 1
    saved = (steps - 1) // replays  # the last step is not saved, as the stop came before
    assert 10**6 - left.left == (2 * 3 - saved) * replays
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))
    one, other = last(tmp_path / "whole"), last(tmp_path / "cut")
    assert all(same(one["networks"][role], other["networks"][role]) for role in one["networks"])
    assert all(same(one["memory"][part], other["memory"][part]) for part in one["memory"])
    assert "within" not in other
    for mine, theirs in zip(whole.rows, resumed.rows, strict=True):
        assert {k: v for k, v in mine.items() if k not in TIMES} == {
            k: v for k, v in theirs.items() if k not in TIMES
        }
    assert all(float(row["seconds"] or 0) > 0 for row in resumed.rows)


def test_positions_are_saved_every_so_many_steps_and_not_at_the_end(little: Splits, tmp_path: Path) -> None:
    found = []

    class Watch(Stop):
        def stepped(self, moment: object, loss: float, images: int) -> None:
            file = tmp_path / "run" / "checkpoints/last.pt"
            within = last(tmp_path / "run").get("within") if file.exists() else None
            found.append(None if within is None else within["step"])

    run(replace(job_of("extra", little, 2)), tmp_path / "run", Watch(0))
    assert found == [None, None, 2, None, None, 2]  # as the next step sees it


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": 99},
        {"step": 0},
        {"step": 1.5},
        {"rate": float("nan")},
        {"totals": {"train_loss": (1.0,)}},
        {"x": 1},
    ],
)
def test_positions_of_a_damaged_or_other_checkpoint_are_refused(
    wrong: dict[str, object], little: Splits, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(job_of("extra", little, 1), tmp_path / "run", Stop(2))
    file = tmp_path / "run/checkpoints/last.pt"
    content = torch.load(file, weights_only=True)
    content["within"] |= wrong
    plain = {name: value for name, value in content.items() if name not in ("format", "sha256")}
    torch.save(content | {"sha256": content_sha256(plain)}, file)
    with pytest.raises(CheckpointError):
        run(job_of("extra", little, 1), tmp_path / "run")


def test_the_setting_is_at_least_one_step_and_changes_no_digest(little: Splits) -> None:
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1 step, got 0"):
        TrainingConfig(checkpoint_every=0)
    settings = {"threat": "linf:0.1", "method": {"loss": "clean"}, "data": {}, "model": {}, "training": {}}
    usual = build_config(settings).digest()
    changed = settings | {"training": {"checkpoint_every": 5}, "data": {"in_memory": False}}
    assert build_config(changed).digest() == usual
    assert build_config(settings | {"training": {"epochs": 5}}).digest() != usual


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_in_its_first_epoch_goes_on_from_there(processes: int, tmp_path: Path) -> None:
    words = [
        "mnist5k/pgd_at", "--threat", "linf:0.1", "--data.train_limit", "600", "--data.validation", "40",
        "--data.test", "40", "--data.image_size", "16", "--model.width", "0.25", "--model.dropout", "0.3",
        "--training.epochs", "1", "--training.batch_size", "16", "--training.validation_steps", "1",
        "--runtime.device", "cpu", "--training.epsilon_ramp", "0",
        "--runtime.processes", str(processes),
    ]  # fmt: skip
    killed, file = tmp_path / "killed", tmp_path / "killed/checkpoints/last.pt"
    command = [sys.executable, "-m", "robustly", "train", *words, "--training.checkpoint_every", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["--out", str(killed)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not file.exists():
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    state = last(killed)
    assert (state["epoch"], state["within"]["step"] % 3) == (0, 0)
    for more in (["--resume", str(killed)], [*words, "--out", str(tmp_path / "whole")]):
        done = (fork if processes == 1 else fork_by_torchrun)(*more, command="train").wait()
        assert done.returncode == 0, done.stderr
    assert same(final(tmp_path / "whole"), final(killed))
