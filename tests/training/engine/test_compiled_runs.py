"""Runs and evaluations with compiled passes: weights and evidence are those of uncompiled ones."""

import importlib
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from robustly.attacks.core.compiled import CompiledNetwork
from robustly.data import Augmentation
from robustly.evaluation import evaluate
from robustly.evaluation.checkpoint import EvaluationCheckpoint, Speed
from robustly.runtime import Runtime, RuntimeConfig
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    Job,
    Method,
    OptimizerConfig,
    PGDInner,
    ScheduleConfig,
    TradesLoss,
    TrainingConfig,
    WeightPerturbation,
    train,
)
from robustly.training.engine import stepping
from robustly.training.engine.loop import FINAL
from trial_runs import digits as small_digits

pytestmark = pytest.mark.slow


def net(channels: int = 3, side: int = 8) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(4 * (side - 2) ** 2, 10))


METHODS = {
    "pgd": Method(inner=PGDInner(steps=3), loss=AdversarialLoss()),
    "trades": Method(inner=PGDInner(objective="kl", steps=2, start="gaussian"), loss=TradesLoss()),
    "statistics of the batch": Method(inner=PGDInner(steps=2, mode="train_nostat"), loss=AdversarialLoss()),
    "train mode": Method(inner=PGDInner(steps=2, mode="train"), loss=AdversarialLoss()),
    "awp": Method(inner=PGDInner(steps=2), loss=AdversarialLoss(), parameters=(WeightPerturbation(gamma=0.05),)),
}


def run(method: Method, folder: Path, compiled: bool, precision: Any = "32-true") -> bytes:
    splits = small_digits(72)  # in batches of 32: the last one has 8 images
    folder.mkdir()
    job = Job(
        method=method,
        model=net(1, 16),
        train=splits.train,
        validation=splits.validation,
        threats=(ThreatModel("linf", 0.1),),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.05),
        schedule=ScheduleConfig(),
        training=TrainingConfig(epochs=2, batch_size=32, validation_steps=1, epsilon_ramp=1.0),
        augmentation=Augmentation(pad_crop=2),
    )
    train(
        job, Runtime(RuntimeConfig(device="cpu", compile=compiled, precision=precision)), folder, config_digest=""
    )
    return (folder / FINAL).read_bytes()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_run_trains_the_same_weights(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[CompiledNetwork] = []

    def make(model: nn.Module) -> CompiledNetwork:
        made.append(CompiledNetwork(model, backend="aot_eager" if precision == "32-true" else "eager"))
        return made[0]

    monkeypatch.setattr(stepping, "CompiledNetwork", make)
    plain = run(METHODS[name], tmp_path / "plain", False, precision)
    assert made == []
    assert run(METHODS[name], tmp_path / "compiled", True, precision) == plain
    assert made[0].compilations == (0 if name == "train mode" else 2)  # one for each size of a batch
    assert made[0].refusal == ""


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"graphs": True}, "runtime.graphs true"), ({"strategy": "fsdp", "processes": 2}, "runtime.strategy fsdp")],
)
def test_other_forms_of_passes_are_refused_beside(settings: dict[str, Any], words: str) -> None:
    config = replace(RuntimeConfig(device="cpu", compile=True), **settings)
    with pytest.raises(ValueError, match=f"runtime.compile does not go with {words}"):
        config.check_training()
    config.check()  # an evaluation uses neither


def test_an_evaluation_has_the_evidence_of_an_uncompiled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, made = net(1, 16), []
    data = small_digits(72).validation.select(torch.arange(12))
    found = {}
    for compiled in (False, True):
        monkeypatch.setattr(
            importlib.import_module("robustly.evaluation.evaluate"),
            "CompiledNetwork",
            lambda *given: made.append(CompiledNetwork(*given, backend="aot_eager")) or made[-1],
        )
        checkpoint = EvaluationCheckpoint(tmp_path / str(compiled), "identity")
        found[compiled] = evaluate(
            model,
            data,
            ThreatModel("linf", 0.1),
            "fgsm,pgd_20",
            batch_size=5,
            checkpoint=checkpoint,
            compiled=compiled,
        )
        kept = checkpoint.begin(lambda: Speed(1, True), found[compiled].table.examples.clean_margin)
        assert kept == Speed(5, True, compiled), "an evaluation that continues keeps the form of its passes"
    assert len(made) == 1
    assert made[0].compilations >= 2
    one, other = found[False].table, found[True].table
    for name in one.attacks:
        for column in ("broken", "broken_8bit", "distance", "prediction", "backwards"):
            pair = (getattr(table.attacks[name], column).tolist() for table in (one, other))
            assert str(next(pair)) == str(next(pair)), (name, column)
    assert other.worst_case.broken.any()


def test_the_speed_of_an_evaluation_that_an_earlier_version_began() -> None:
    assert Speed.of({"batch_size": 4, "half_pays": True, "identity": ""}) == Speed(4, True, compiled=False)


def test_synchronised_normalisation_is_not_compiled_and_that_is_said_once() -> None:
    """Processes wait for each other in its passes, and the first pass of each kind has one more of its own."""
    for rank, said in ((0, 1), (1, 0)):
        runtime = SimpleNamespace(compiles=True, rank=rank)
        stepper: Any = SimpleNamespace(_runtime=runtime, _is_synchronised=True)
        with warnings.catch_warnings(record=True, action="always") as found:
            assert not stepping.Stepper._compiles(stepper)
        assert sum("with training.sync_batch_norm processes wait" in str(one.message) for one in found) == said
        stepper._is_synchronised = False
        assert stepping.Stepper._compiles(stepper)
