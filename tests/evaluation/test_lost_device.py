"""A device that disappears in the middle of work: one sentence, finished parts kept, and the next start continues.

Networks on the CPU that raise the errors of CUDA stand for it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustly import cli, runtime
from robustly.attacks import PGD
from robustly.data import Augmentation, ImageData
from robustly.evaluation import EvaluationCheckpoint, Suite, evaluate
from robustly.evidence import Evidence
from robustly.runtime import DeviceError, Runtime, RuntimeConfig, raise_if_lost
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    Job,
    Method,
    OptimizerConfig,
    PGDInner,
    ScheduleConfig,
    TrainingConfig,
    train,
)
from robustly.training.engine.loop import FINAL, LAST
from trial_runs import digits as small_digits

LOST = [
    torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA error: the launch timed out and was terminated"),  # before PyTorch 2.8
]
SUITE = Suite("two", {"one": PGD(2), "other": PGD(3)})
THREAT = ThreatModel("linf", 0.1)


class Network(nn.Module):
    """A network whose device is lost in one of its passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
        self.left, self.error = -1, LOST[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.left == 0:
            raise self.error
        self.left -= 1
        return self.net(x)  # type: ignore[no-any-return]


def data() -> ImageData:
    return small_digits(72).validation.select(torch.arange(10))


def evaluated(model: nn.Module, folder: Path | None) -> Evidence:
    checkpoint = None if folder is None else EvaluationCheckpoint(folder, "identity")
    return evaluate(model, data(), THREAT, SUITE, batch_size=4, curve="off", checkpoint=checkpoint)


@pytest.mark.parametrize("error", LOST)
def test_an_evaluation_ends_and_continues(error: Exception, tmp_path: Path) -> None:
    whole, counter = evaluated(Network(), None), Network()
    counter.left = 10**6
    evaluated(counter, None)
    passes = 10**6 - counter.left
    model = Network()
    model.left, model.error = passes - 3, error  # in the second attack
    with pytest.raises(DeviceError, match=r"the GPU does not answer any more \(CUDA error: "):
        evaluated(model, tmp_path)
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {"one"}
    model.left = -1
    found = evaluated(model, tmp_path)
    assert found.summary.failures == {}
    for name in SUITE.attacks:
        one, other = (evidence.table.attacks[name] for evidence in (whole, found))
        assert one.broken.tolist() == other.broken.tolist()
        assert one.forwards.tolist() == other.forwards.tolist()


def test_an_attack_that_fails_otherwise_is_a_failed_attack() -> None:
    model = Network()
    suite = Suite("two", {"one": PGD(2), "bad": Failing()})
    with pytest.warns(UserWarning, match="The attack 'bad' failed"):
        found = evaluate(model, data(), THREAT, suite, batch_size=4, curve="off")
    assert found.summary.failures == {"bad": "RuntimeError: no luck"}


class Failing(PGD):
    def __call__(self, *given: Any, **named: Any) -> Any:
        raise RuntimeError("no luck")


@pytest.mark.slow
@pytest.mark.parametrize("error", LOST)
def test_training_ends_and_continues(error: Exception, tmp_path: Path) -> None:
    splits = small_digits(72)

    def trained(folder: Path, left: int) -> Network:
        folder.mkdir(exist_ok=True)
        model = Network()
        model.left, model.error = left, error
        job = Job(
            method=Method(inner=PGDInner(steps=2), loss=AdversarialLoss()),
            model=model,
            train=splits.train,
            validation=splits.validation,
            threats=(THREAT,),
            optimizer=OptimizerConfig(name="sgd", learning_rate=0.05),
            schedule=ScheduleConfig(),
            training=TrainingConfig(epochs=3, batch_size=32, validation_steps=1),
            augmentation=Augmentation(),
        )
        train(job, Runtime(RuntimeConfig(device="cpu")), folder, config_digest="")
        return model

    used = 10**6 - trained(tmp_path / "whole", 10**6).left
    with pytest.raises(DeviceError, match="the GPU does not answer any more"):
        trained(tmp_path / "lost", used - 8)
    status = json.loads((tmp_path / "lost" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "the GPU does not answer any more (CUDA error" in json.dumps(status)
    assert (tmp_path / "lost" / LAST).is_file()
    assert not (tmp_path / "lost" / FINAL).exists()
    trained(tmp_path / "lost", -1)
    assert (tmp_path / "lost" / FINAL).read_bytes() == (tmp_path / "whole" / FINAL).read_bytes()


def test_only_errors_of_the_device_are_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("CUDA error: in words"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    ):
        raise_if_lost(other)
        raise_if_lost(other, torch.device("cpu"))
    answers: list[torch.device] = []
    monkeypatch.setattr(runtime, "check_device", answers.append)
    monkeypatch.setattr(runtime.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runtime.torch.cuda, "current_device", lambda: 1)
    raise_if_lost(LOST[0])  # such as a wrong call: the GPU computes still
    assert answers == [torch.device("cuda", 1)]


@pytest.mark.parametrize("error", LOST)
def test_every_command_says_it_in_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["evaluate", "somewhere"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("robustly: the GPU does not answer any more (CUDA error: ")
    assert said.endswith("; files written before are kept, and the same command continues after them\n")
    assert said.count("\n") == 1
