"""Catastrophic overfitting on real digits: FGSM undoes in an epoch what Free-AT learned; N-FGSM, GradAlign do not.

From scratch FGSM is hardly ever robust on so few digits, so that there is little to lose; hence the robust start.
GradAlign holds at a weight of 20 and loses some robustness all the same, N-FGSM with the paper's noise none.
"""

import copy
from pathlib import Path

import pytest
from torch import nn
from training_tools import make_job, run

from robustly.data import DataConfig, Splits, load_splits
from robustly.models import ModelConfig, build_model
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    FreeInner,
    GradAlign,
    InnerMaximiser,
    Method,
    NoisyFGSMInner,
    OptimizerConfig,
    Outcome,
    Part,
    PGDInner,
    ScheduleConfig,
)

pytestmark = pytest.mark.slow
FGSM = PGDInner(steps=1, start="none", relative_step_size=1.0)


def go(
    digits: Splits,
    model: nn.Module,
    inner: InnerMaximiser,
    folder: Path,
    *,
    schedule: ScheduleConfig,
    rate: float,
    parts: tuple[Part, ...] = (),
    **training: object,
) -> Outcome:
    job = make_job(
        digits,
        Method(inner=inner, loss=AdversarialLoss(), parameters=parts),
        model,
        threat=ThreatModel("linf", 0.2),
        optimizer=OptimizerConfig(name="adamw", learning_rate=rate),
        schedule=schedule,
        training={"batch_size": 64, "validation_steps": 10, "channels_last": False, **training},
    )
    return run(job, folder)


def robust(outcome: Outcome) -> list[float]:
    return [float(row["validation_robust_accuracy"] or 0) for row in outcome.rows]


@pytest.fixture
def start(tmp_path: Path) -> tuple[Splits, nn.Module]:
    """A network that six epochs of Free-AT made robust."""
    digits = load_splits(DataConfig(train_limit=1200, validation=200, test=40))
    model = build_model(ModelConfig(width=0.5, dropout=0.0), seed=0)
    free = go(
        digits,
        model,
        FreeInner(replays=4),
        tmp_path / "free",
        schedule=ScheduleConfig(name="one_cycle", peak=0.4),
        rate=0.004,
        epochs=6,
        epsilon_ramp=2.0,
        validation_steps=2,  # the runs that continue validate it in full
    )
    assert robust(free)[-1] > 0.65
    return digits, model


def continued(
    start: tuple[Splits, nn.Module],
    inner: InnerMaximiser,
    folder: Path,
    parts: tuple[Part, ...] = (),
    epochs: int = 3,
) -> Outcome:
    """More epochs, the first of them hardly moving; stopped after a fall by more than 0.2."""
    digits, model = start
    slow_first = ScheduleConfig(name="piecewise", boundaries=(1.0,), factors=(0.001, 1.0))
    training = {"epochs": epochs, "stop_after_drop": 0.2}
    return go(digits, copy.deepcopy(model), inner, folder, schedule=slow_first, rate=0.002, parts=parts, **training)


def test_fgsm_collapses_and_what_helps(start: tuple[Splits, nn.Module], tmp_path: Path) -> None:
    fgsm = continued(start, FGSM, tmp_path / "fgsm", epochs=4)
    assert fgsm.epochs < 4, "stopped after the collapse, which comes in the first or second fast epoch"
    assert "as in catastrophic overfitting" in fgsm.reason
    before, after = robust(fgsm)[0], robust(fgsm)[-1]
    assert before > 0.65
    assert after < before - 0.2
    assert fgsm.best_epoch == 1, "and the weights from before it are released"
    blind = fgsm.rows[-1]
    assert float(blind["train_robust_accuracy"] or 0) > 0.8, "its own attack does not see it"
    assert float(blind["validation_clean_accuracy"] or 0) > 0.85

    noisy = continued(start, NoisyFGSMInner(noise=2.0, mode="eval"), tmp_path / "n_fgsm")
    aligned = continued(start, FGSM, tmp_path / "gradalign", (GradAlign(20.0),))
    assert noisy.epochs == aligned.epochs == 3, "nothing fell so far that the run stopped"
    assert min(robust(noisy)) > 0.65
    assert min(robust(aligned)) > max(0.5, after + 0.05)
