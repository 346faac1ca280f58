"""Trial of training parts that are not shipped: controllers that keep their own memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from controller import AlternatingThreats, BalancedLoss

from robustly.experiments import configuration
from robustly.training import (
    GairatWeights,
    Job,
    Method,
    Moment,
    Observer,
)
from trial_runs import digits, run, same, small_job


def test_controllers_move_as_published() -> None:
    memory = {"accuracies": torch.tensor([1.8, 0.5]), "batches": torch.tensor([2.0, 1.0])}
    assert torch.allclose(AlternatingThreats.shares(memory), torch.tensor([1 / 6, 5 / 6]))
    memory["batches"] = torch.tensor([2.0, 0.0])
    assert AlternatingThreats.shares(memory).tolist() == [0.5, 0.5]
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    moved = BalancedLoss().moved(half, torch.tensor([0.2, 0.3]).double(), torch.tensor([0.4, 0.3]).double())
    assert torch.allclose(moved, torch.tensor([0.49583333, 0.50416667]).double(), atol=1e-7)


def test_a_controller_fits_into_yaml_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(configuration.INNER_MAXIMISERS, "e_at", AlternatingThreats)
    settings = {
        "method": {
            "inner": {"name": "e_at", "threats": ["linf:0.2", "l1:8"], "steps": 2},
            "loss": "adversarial",
            "weights": {"name": "gairat", "burn_in": 1},
        }
    }
    config = configuration.build_config(settings)
    assert config.method.inner == AlternatingThreats(steps=2)
    assert config.method.weights == GairatWeights(burn_in=1)
    assert configuration.build_config(config.as_plain()).method == config.method


def controlled() -> Job:
    method = Method(inner=AlternatingThreats(steps=3), loss=BalancedLoss())
    return small_job(method, epochs=4, splits=digits(train_limit=500))


class Slow(Observer):
    """Lets the test see where the run is, and leaves it time to kill."""

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        print(moment.count, flush=True)  # noqa: T201
        time.sleep(0.002)


@pytest.mark.slow
def test_controllers_survive_kills_bit_by_bit(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, __file__, str(tmp_path / "killed")]
    (tmp_path / "killed").mkdir()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 36:  # of 64 steps, in the third of four epochs
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/model.safetensors").exists()
    for name in ("killed", "whole"):
        run(controlled(), tmp_path / name)
    one, other = (torch.load(tmp_path / name / "checkpoints/last.pt") for name in ("killed", "whole"))
    assert same(one["networks"]["model"], other["networks"]["model"])
    assert set(one["memory"]) == {"inner", "loss"}
    for part, memory in one["memory"].items():
        assert same(memory, other["memory"][part]), part
    state = one["memory"]["inner"]
    assert state["batches"].sum() == 64
    assert (state["batches"] > 0).all()
    assert not torch.allclose(one["memory"]["loss"]["weight"], torch.tensor([0.5, 0.5]).double())


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(controlled(), Path(sys.argv[1]), Slow())
