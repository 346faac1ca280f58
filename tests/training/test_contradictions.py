"""Parts and settings that contradict each other, or that nothing would use, are refused before training."""

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from training_tools import make_job, make_step, mlp, run, same, small_digits

from robustly.attacks import AttackResult
from robustly.training import (
    AdaadInner,
    AdversarialLoss,
    ArdLoss,
    CleanLoss,
    DivergenceError,
    FreeInner,
    GairatWeights,
    GuideLabels,
    Iad2Loss,
    IadLoss,
    InstanceWeights,
    KdLoss,
    MailWeights,
    Method,
    MethodError,
    MixtureLoss,
    OptimizerConfig,
    OuterLoss,
    PGDInner,
    Step,
    TradesLoss,
    TrainingConfig,
    WeightPerturbation,
)
from robustly.training.cost import step_cost
from robustly.training.labels.data import SmoothedLabels
from robustly.training.method import outer_loss
from robustly.training.parts import InstanceWeightsError
from robustly.training.step import Moment

INNER = PGDInner(steps=2, start="gaussian")


@pytest.mark.parametrize("loss", [ArdLoss(), IadLoss(), KdLoss(labels=0.0), Iad2Loss(robust=0.75, clean=0.25)])
def test_smoothed_labels_where_labels_have_no_weight(loss: OuterLoss) -> None:
    with pytest.raises(MethodError, match="smoothed labels have no effect: set "):
        Method(labels=SmoothedLabels(), inner=INNER, loss=loss)
    with pytest.raises(MethodError, match="smoothed labels have no effect: set "):
        Method(labels=GuideLabels(smoothing=0.1), inner=INNER, loss=loss)
    Method(labels=SmoothedLabels(), inner=INNER, loss=ArdLoss(alpha=0.5))


def test_kappa_of_adaads_attack_is_by_the_labels_of_the_data() -> None:
    inner, loss = AdaadInner(), IadLoss()
    with pytest.raises(MethodError, match=r"against 'labels'.* 'data'"):
        Method(labels=GuideLabels(), inner=inner, loss=loss, weights=GairatWeights(label="dynamic"))
    Method(labels=GuideLabels(), inner=inner, loss=loss, weights=GairatWeights(label="static"))


def test_a_reference_that_no_objective_reads() -> None:
    with pytest.raises(ValueError, match=r"reference 'teacher' .*objective 'kl'"):
        PGDInner(objective="cross_entropy", reference="teacher")


def test_clean_selection_would_release_the_fall() -> None:
    with pytest.raises(ValueError, match="stop_after_drop needs select_by 'robust'"):
        TrainingConfig(stop_after_drop=0.2, select_by="clean")


@pytest.mark.parametrize("replays", [1, 4])
def test_free_at_has_one_process_and_no_perturbed_weights(replays: int) -> None:
    inner = FreeInner(replays=replays)
    with pytest.raises(MethodError, match="no part may perturb the weights"):
        Method(inner=inner, loss=AdversarialLoss(), parameters=(WeightPerturbation(),))
    job = make_job(small_digits(40), Method(inner=inner, loss=AdversarialLoss()))
    job.check_processes(1)
    with pytest.raises(MethodError, match="use one process"):
        job.check_processes(2)


def test_an_epsilon_that_grows_beyond_the_run_is_warned_of() -> None:
    method = Method(inner=INNER, loss=AdversarialLoss())
    with pytest.warns(UserWarning, match=r"epsilon .*\b5 epochs.* run has 2\b"):
        make_job(small_digits(40), method, training={"epochs": 2, "epsilon_ramp": 5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_job(small_digits(40), method, training={"epochs": 2, "epsilon_ramp": 2})


def test_weights_for_a_term_that_comes_later_wait_for_it() -> None:
    x, y = torch.rand(6, 6, dtype=torch.float64), torch.arange(6) % 4
    method = Method(
        inner=INNER,
        loss=IadLoss(begin=3),
        weights=MailWeights(term="consistency", burn_in=1, slope=2.0, bias=0.0),
    )
    plain = Method(inner=INNER, loss=IadLoss(begin=3))
    for epoch, named in ((0, False), (1, False), (2, False), (3, True), (6, True)):
        net = mlp(norm=False)
        looked = []
        for composed in (method, plain):
            step = make_step(
                x, y, net, teachers={"teacher": mlp(seed=1)}, inner=INNER, moment=Moment(epoch, 0, 1, 8)
            )
            looked.append(outer_loss(composed, step)[1])
        assert ("consistency" in looked[0]) is named
        assert (looked[0] != looked[1]) is named
    step_cost(method, 8)


@pytest.mark.parametrize(
    ("loss", "weights", "has"),
    [
        (AdversarialLoss(), MailWeights(term="consistency", burn_in=1), "'consistency', the loss has adversarial"),
        (TradesLoss(beta=0.0), MailWeights(term="consistency", burn_in=1), "'consistency', the loss has clean"),
        (MixtureLoss(ratio=0.0), GairatWeights(burn_in=1), "'adversarial', the loss has clean"),
        (TradesLoss(), GairatWeights(burn_in=1), "'adversarial', the loss has clean, consistency"),
    ],
)
def test_weights_for_a_term_that_never_comes_are_refused_before_the_run(
    loss: OuterLoss, weights: InstanceWeights, has: str
) -> None:
    method = Method(inner=INNER, loss=loss, weights=weights)
    with pytest.raises(MethodError, match=f"the weights are for the loss term {has}"):
        make_job(small_digits(90), method)


def test_instance_weights_that_are_all_zero_are_named_in_the_status(tmp_path: Path) -> None:
    method = Method(inner=INNER, loss=AdversarialLoss(), weights=GairatWeights(burn_in=1, shift=-1000.0))
    with pytest.raises(InstanceWeightsError, match=r"gairat weights .*zero"):
        run(make_job(small_digits(90), method), tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["epochs"]) == ("diverged", 1)
    assert "gairat weights" in status["message"]


def test_nan_is_not_reported_as_zero_weights(tmp_path: Path) -> None:
    method = Method(inner=INNER, loss=AdversarialLoss(), weights=MailWeights(burn_in=0, scale="mean_one"))
    job = make_job(small_digits(90), method, optimizer=OptimizerConfig(learning_rate=1e30, momentum=0.0))
    with pytest.raises(DivergenceError, match="is not finite"):
        run(job, tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "diverged"


def test_a_ramp_by_epochs_is_whole_in_its_last_epoch(tmp_path: Path) -> None:
    """As released for DKL and GKL: epsilon times (epoch + 1) / epochs, constant within an epoch."""
    seen: list[tuple[int, float]] = []

    class Noting(PGDInner):
        def __call__(self, step: Step) -> AttackResult:
            seen.append((step.moment.epoch, float(step.threat.epsilon)))
            return super().__call__(step)

    method = Method(inner=Noting(steps=1), loss=AdversarialLoss())
    training = {"epochs": 4, "epsilon_ramp": 3.0, "epsilon_ramp_by": "epoch"}
    run(make_job(small_digits(90), method, training=training), tmp_path)
    assert sorted(set(seen)) == [(epoch, pytest.approx(0.1 * min(1, (epoch + 1) / 3))) for epoch in range(4)]
    with pytest.raises(ValueError, match=r"epsilon_ramp_by .*no effect"):
        TrainingConfig(epsilon_ramp_by="epoch")


@pytest.mark.parametrize("loss", [TradesLoss(beta=0.0), MixtureLoss(ratio=0.0)])
def test_without_their_adversarial_term_methods_train_as_standard(loss: OuterLoss, tmp_path: Path) -> None:
    """Step for step, running statistics included."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 8), torch.nn.BatchNorm1d(8))
    net = torch.nn.Sequential(net, torch.nn.ReLU(), torch.nn.Linear(8, 10))
    digits, weights = small_digits(90), []
    for method in (Method(loss=CleanLoss()), Method(inner=INNER, loss=loss)):
        model = copy.deepcopy(net)
        run(make_job(digits, method, model), tmp_path / str(len(weights)))
        weights.append(model.state_dict())
    assert same(*weights)
