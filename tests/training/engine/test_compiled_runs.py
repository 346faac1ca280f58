"""Runs and evaluations with compiled passes: weights and evidence are those of uncompiled ones."""

import importlib
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import nn

from kinds_of_passes import METHODS, net, trained_weights
from robustly.attacks.core.compiled import CompiledNetwork
from robustly.evaluation import evaluate
from robustly.evaluation.checkpoint import EvaluationCheckpoint, Speed
from robustly.runtime import RuntimeConfig
from robustly.threats.lp import ThreatModel
from robustly.training.engine import stepping
from trial_runs import digits as small_digits

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_run_trains_the_same_weights(
    name: str, precision: Literal["32-true", "bf16-mixed"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[CompiledNetwork] = []

    def make(model: nn.Module) -> CompiledNetwork:
        made.append(CompiledNetwork(model, backend="aot_eager" if precision == "32-true" else "eager"))
        return made[0]

    monkeypatch.setattr(stepping, "CompiledNetwork", make)
    runtime = RuntimeConfig(device="cpu", precision=precision)
    plain = trained_weights(METHODS[name], tmp_path / "plain", runtime)
    assert made == []
    assert trained_weights(METHODS[name], tmp_path / "compiled", replace(runtime, compile=True)) == plain
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
