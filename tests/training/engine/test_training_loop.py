"""The loop: selection, files, divergence, patience, resuming within a process."""

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_tools import THREAT, NormNet, Splits, Stop, final, last, make_job, run, same, small_digits, small_net

from robustly.attacks import dynat_pgd
from robustly.models import load_weights
from robustly.randomness import derive_seed
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    CleanLoss,
    DivergenceError,
    DynatLoss,
    ExponentialAverage,
    GuideLabels,
    Method,
    MethodError,
    OptimizerConfig,
    Part,
    PGDInner,
    Step,
    TrainingConfig,
)
from robustly.training.engine.checkpoint import CheckpointError, load_state
from robustly.training.engine.validation import validate

ROBUST = Method(inner=PGDInner(steps=3), loss=AdversarialLoss())


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def status(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "status.json").read_text())
    return content


# what is learnt, selected and written


@pytest.mark.slow
def test_adversarial_training_makes_real_digits_robust_and_standard_training_does_not(tmp_path: Path) -> None:
    splits = small_digits(1000)
    optimizer = OptimizerConfig(name="adamw", learning_rate=0.004)
    found = {}
    for name, method in (("standard", Method()), ("robust", ROBUST)):
        training = {"epochs": 8, "epsilon_ramp": 2.0, "validation_steps": 10}
        job = make_job(splits, method, small_net(), optimizer=optimizer, training=training)
        outcome = run(job, tmp_path / name)
        found[name] = outcome.rows[outcome.best_epoch - 1]
    assert found["standard"]["validation_clean_accuracy"] > 0.65
    assert found["robust"]["validation_clean_accuracy"] > 0.55
    assert found["robust"]["validation_robust_accuracy"] > 0.35
    assert found["robust"]["validation_robust_accuracy"] > found["standard"]["validation_robust_accuracy"] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("select_by", ["robust", "clean"])
@pytest.mark.parametrize("parameters", [(), (ExponentialAverage(0.5, 0.0),)])
def test_the_released_weights_have_the_accuracies_of_the_best_row(
    select_by: str, parameters: tuple[object, ...], little: Splits, tmp_path: Path
) -> None:
    method = Method(inner=PGDInner(steps=2), loss=AdversarialLoss(), parameters=parameters)  # type: ignore[arg-type]
    optimizer = OptimizerConfig(name="adamw", learning_rate=0.02)  # restless: the last epoch is not always the best
    training = {"epochs": 6, "select_by": select_by, "batch_size": 16}
    outcome = run(make_job(little, method, NormNet(), optimizer=optimizer, training=training), tmp_path)
    model = NormNet()
    load_weights(model, tmp_path / "model.safetensors")
    seed = derive_seed(0, "validation")
    found = validate(model, little.validation, dynat_pgd(2), THREAT, seed=seed, batch_size=7)
    best = outcome.rows[outcome.best_epoch - 1]
    assert (found.clean, found.robust) == (best["validation_clean_accuracy"], best["validation_robust_accuracy"])
    order = ("robust", "clean") if select_by == "robust" else ("clean", "robust")
    scores = [
        (row["validation_collapsed_class"] is None, *(row[f"validation_{name}_accuracy"] for name in order))
        for row in outcome.rows
    ]
    assert outcome.best_epoch == 1 + scores.index(max(scores))
    assert len(set(scores)) > 1


def test_metrics_and_status_of_a_run(little: Splits, tmp_path: Path) -> None:
    method = Method(labels=GuideLabels(), inner=PGDInner(steps=1), loss=DynatLoss(consistency=1.0))
    outcome = run(make_job(little, method, guide=small_net(seed=1)), tmp_path)
    rows = rows_of(tmp_path)
    assert list(rows[0]) == [
        "epoch",
        "step",
        "learning_rate",
        "train_clean_accuracy",
        "train_robust_accuracy",
        "train_loss",
        "loss_guide",
        "loss_consistency",
        "loss_adversarial",
        "guide_accuracy",
        "validation_clean_accuracy",
        "validation_robust_accuracy",
        "validation_collapsed_class",
        "images_per_second",
        "seconds",
    ]
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "5"), ("2", "10")]
    for row in rows:
        total = sum(float(row[f"loss_{name}"]) for name in ("guide", "consistency", "adversarial"))
        assert float(row["train_loss"]) == pytest.approx(total, rel=1e-5)
        assert 0 <= float(row["train_robust_accuracy"]) <= float(row["train_clean_accuracy"]) + 0.2 <= 1.2
    assert [float(row["validation_clean_accuracy"]) for row in rows] == [
        row["validation_clean_accuracy"] for row in outcome.rows
    ]
    said = status(tmp_path)
    assert said["state"] == "finished"
    assert (said["best_epoch"], said["epochs"], said["threads"]) == (outcome.best_epoch, 2, 1)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "best.safetensors",
        "last.pt",
        "metrics.csv",
        "model.safetensors",
        "status.json",
    ]


def test_training_accuracies_are_those_of_the_pass_itself(little: Splits, tmp_path: Path) -> None:
    plain = run(make_job(little, Method(), training={"epochs": 1}), tmp_path / "plain").rows[0]
    assert plain["train_robust_accuracy"] is None
    assert plain["train_clean_accuracy"] is not None
    robust = run(make_job(little, ROBUST, training={"epochs": 1}), tmp_path / "robust").rows[0]
    assert robust["train_clean_accuracy"] is None
    seen = Accuracies()
    still = OptimizerConfig(learning_rate=1e-12)
    row = run(make_job(little, seen.method(), optimizer=still, training={"epochs": 1}), tmp_path / "seen").rows[0]
    assert row["train_clean_accuracy"] == pytest.approx(sum(seen.right) / 150)
    assert row["train_loss"] == pytest.approx(sum(seen.losses) / 150, rel=1e-5)


class Accuracies(CleanLoss):
    """Counts for itself what the statistics should say; the last batch is smaller than the others."""

    def __init__(self) -> None:
        object.__setattr__(self, "right", [])
        object.__setattr__(self, "losses", [])

    def method(self) -> Method:
        return Method(loss=self)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        terms = super().__call__(step)
        self.right.append(int((step.clean_logits.argmax(1) == step.y).sum()))
        self.losses.append(float(terms["clean"].detach().sum()))
        return terms


def test_epsilon_grows_over_the_ramp(little: Splits, tmp_path: Path) -> None:
    seen: list[float] = []

    @dataclass(frozen=True)
    class Watch(PGDInner):
        def __call__(self, step: Step) -> object:
            found = super().__call__(step)
            assert bool(step.threat.contains(found.x_adv, step.x).all())
            seen.append(float(step.threat.epsilon))
            return found

    method = Method(inner=Watch(steps=1), loss=AdversarialLoss())
    run(make_job(little, method, training={"epsilon_ramp": 1.5, "epochs": 2}), tmp_path)
    expected = [min(1.0, (step + 0.5) / 5 / 1.5) * 0.1 for step in range(10)]
    assert seen == pytest.approx(expected, rel=1e-4)


def test_an_epsilon_of_whole_pixels_grows_by_whole_pixels(little: Splits, tmp_path: Path) -> None:
    seen: list[float] = []

    class Watch(AdversarialLoss):
        def __call__(self, step: Step) -> dict[str, Tensor]:
            seen.append(float(step.threat.epsilon))
            assert float(step.threat.distance(step.adversarial.x_adv, step.x).max()) <= seen[-1]
            return super().__call__(step)

    job = make_job(little, Method(inner=PGDInner(steps=1), loss=Watch()), threat=ThreatModel("l0", 8))
    run(replace(job, training=replace(job.training, epochs=1, epsilon_ramp=1.0)), tmp_path)
    assert seen == [1, 3, 4, 6, 8]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 5, 7, 13])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(steps: int, little: Splits, tmp_path: Path) -> None:
    method = Method(
        labels=GuideLabels(),
        inner=PGDInner(steps=2),
        loss=DynatLoss(),
        parameters=(ExponentialAverage(0.9, 0.0),),
    )

    def job() -> object:
        optimizer = OptimizerConfig(name="adamw", learning_rate=0.01)
        model = small_net(dropout=0.3)
        return make_job(little, method, model, guide=NormNet(1), optimizer=optimizer, training={"epochs": 3})

    whole = run(job(), tmp_path / "whole")  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        run(job(), tmp_path / "cut", Stop(steps))  # type: ignore[arg-type]
    assert status(tmp_path / "cut")["state"] == "stopped"
    assert not (tmp_path / "cut/model.safetensors").exists()
    resumed = run(job(), tmp_path / "cut")  # type: ignore[arg-type]
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))
    one, other = last(tmp_path / "whole"), last(tmp_path / "cut")
    for role in ("model", "guide"):
        assert same(one["networks"][role], other["networks"][role])
    assert same(one["memory"]["parameters.ExponentialAverage"], other["memory"]["parameters.ExponentialAverage"])
    timed = ("seconds", "images_per_second")
    for mine, theirs in zip(whole.rows, resumed.rows, strict=True):
        assert {k: v for k, v in mine.items() if k not in timed} == {
            k: v for k, v in theirs.items() if k not in timed
        }
    again = run(job(), tmp_path / "cut")  # type: ignore[arg-type]
    assert again.epochs == 3
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))


def linear() -> nn.Module:
    """Without statistics that move by themselves, and with a last layer that does not start at zero."""
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))


def test_patience_stops_and_does_not_wait_again_after_resuming(little: Splits, tmp_path: Path) -> None:
    still = OptimizerConfig(learning_rate=1e-30)  # nothing gets better than in epoch 1
    training = {"epochs": 9, "patience": 2}
    outcome = run(make_job(little, Method(), linear(), optimizer=still, training=training), tmp_path)
    assert (outcome.best_epoch, outcome.epochs) == (1, 3)
    again = run(make_job(little, Method(), linear(), optimizer=still, training=training), tmp_path)
    assert (again.best_epoch, again.epochs) == (1, 3)
    assert len(rows_of(tmp_path)) == 3


# divergence


@dataclass(frozen=True)
class Poisoned(Part):
    """A loss that goes wrong at one step: in its value, or only in its gradient."""

    reads = ("clean",)

    at: int = 7
    in_gradient: bool = False

    def __call__(self, step: Step) -> dict[str, Tensor]:
        terms = CleanLoss()(step)
        poison = torch.zeros(len(step.y))
        if step.moment.count == self.at:
            zero = 0 * step.clean_logits.sum(1)
            poison = zero.sqrt() if self.in_gradient else zero + torch.nan
        return {**terms, "poison": poison}


def test_divergence_names_the_term_and_keeps_the_last_good_state(little: Splits, tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"epoch 2, step 3: .*poison.* epoch 1"):
        run(make_job(little, Method(loss=Poisoned())), tmp_path)
    said = status(tmp_path)
    assert said["state"] == "diverged"
    assert "poison" in str(said["message"])
    state = last(tmp_path)
    assert state["epoch"] == len(rows_of(tmp_path)) == 1
    assert all(bool(value.isfinite().all()) for value in state["networks"]["model"].values())
    run(make_job(little, Method()), tmp_path)  # healed, it goes on
    run(make_job(little, Method(loss=Poisoned(at=-1))), tmp_path / "whole")
    assert same(final(tmp_path), final(tmp_path / "whole"))


def test_a_gradient_that_is_no_number_never_gets_into_a_checkpoint(little: Splits, tmp_path: Path) -> None:
    for at, clip in ((7, None), (9, None), (7, 1.0), (9, 1.0)):  # within an epoch, and in its last step
        folder = tmp_path / f"{at}-{clip}"
        optimizer = OptimizerConfig(learning_rate=0.05, clip_norm=clip)
        with pytest.raises(DivergenceError, match=r"epoch 2.* not finite.* epoch 1"):
            run(make_job(little, Method(loss=Poisoned(at, in_gradient=True)), optimizer=optimizer), folder)
        state = last(folder)
        assert state["epoch"] == 1
        assert all(bool(value.isfinite().all()) for value in state["networks"]["model"].values())
        assert status(folder)["state"] == "diverged"


def test_a_rate_that_is_much_too_high_ends_in_one_sentence(little: Splits, tmp_path: Path) -> None:
    wild = OptimizerConfig(learning_rate=1e8)
    with pytest.raises(DivergenceError, match=r"nothing .*saved.* optimizer\.learning_rate"):
        run(make_job(little, Method(), optimizer=wild, training={"epochs": 4}), tmp_path)


# checkpoints


@pytest.fixture
def checkpoint(little: Splits, tmp_path: Path) -> Path:
    run(make_job(little, Method(), training={"epochs": 1}), tmp_path / "run")
    return tmp_path / "run/checkpoints/last.pt"


def test_a_truncated_checkpoint_is_named(checkpoint: Path, little: Splits) -> None:
    content = checkpoint.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 5):
        checkpoint.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"last\.pt .*truncated") as error:
            run(make_job(little, Method()), checkpoint.parent.parent)
        assert "\n" not in str(error.value)


def test_a_foreign_checkpoint_is_named(checkpoint: Path) -> None:
    for content in ({"state_dict": {}}, [1, 2], torch.zeros(2), {"format": "robustly-training-state-1"}):
        torch.save(content, checkpoint)
        with pytest.raises(CheckpointError, match=r"last\.pt .*(not a training checkpoint|lacks)"):
            load_state(checkpoint, "test")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_a_checkpoint_runs_no_code(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"format": "robustly-training-state-1", "epoch": Evil()}, checkpoint)
    with pytest.raises(CheckpointError):
        load_state(checkpoint, "test")
    assert "executed" not in capsys.readouterr().out


def test_a_checkpoint_of_another_configuration_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="another configuration"):
        load_state(checkpoint, "other")
    assert load_state(checkpoint, "test").epoch == 1


def test_leftovers_of_a_killed_write_do_no_harm(checkpoint: Path, little: Splits) -> None:
    (checkpoint.parent / ".last.pt.1.part").write_bytes(b"half")
    outcome = run(make_job(little, Method()), checkpoint.parent.parent)
    assert outcome.epochs == 2


# settings


def test_a_job_without_its_guide_is_refused(little: Splits) -> None:
    method = Method(labels=GuideLabels(), inner=PGDInner(), loss=DynatLoss())
    with pytest.raises(MethodError, match="guide"):
        make_job(little, method)
    with pytest.raises(MethodError, match="does not use"):
        make_job(little, Method(), guide=small_net())


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"batch_size": 0}, {"patience": 0}, {"epsilon_ramp": -1.0}])
def test_training_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        TrainingConfig(**settings)  # type: ignore[arg-type]
