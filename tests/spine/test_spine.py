"""The proof that the spine bears: four parts that came later, on the public contracts, trained and evaluated."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from awp import WeightPerturbation
from controller import AlternatingThreats, BalancedLoss
from ddn import DDN
from gairat import Gairat, Mail
from safetensors.torch import load_file
from smoothing import Smoothing, lower_confidence_bound
from torch import nn

from robustly.attacks import AttackError, AttackResult, dynat_pgd
from robustly.certification import CertificateResult
from robustly.data import Augmentation, Batch, DataConfig, ImageData, Splits, load_splits
from robustly.evaluation import EvaluationTarget, Suite, audit, evaluate
from robustly.evidence import Evidence, Verdict, read_evidence, write_evidence
from robustly.experiments import configuration
from robustly.models import ModelConfig, build_model
from robustly.objectives import margin
from robustly.randomness import KeyedGenerator
from robustly.runtime import Runtime, RuntimeConfig
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    DataLabels,
    Job,
    Method,
    Moment,
    Observer,
    OptimizerConfig,
    PGDInner,
    ScheduleConfig,
    Step,
    TradesLoss,
    TrainingConfig,
    train,
)
from robustly.training.method import MethodError, outer_loss

LINF = ThreatModel("linf", 0.1)
INNER = PGDInner(steps=4, relative_step_size=0.35)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks as small as these only lose by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits() -> Splits:
    return load_splits(DataConfig(train_limit=1000, validation=100, test=100, image_size=16))


def small_job(method: Method, epochs: int = 6, splits: Splits | None = None) -> Job:
    splits = splits or digits()
    return Job(
        method=method,
        model=build_model(ModelConfig(width=0.25, dropout=0.2, image_size=(16, 16)), seed=1),
        guide=None,
        train=splits.train,
        validation=splits.validation,
        threat=LINF,
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.005),
        schedule=ScheduleConfig(),
        training=TrainingConfig(epochs=epochs, batch_size=32, validation_steps=3, epsilon_ramp=2.0),
        augmentation=Augmentation(),
    )


def run(job: Job, folder: Path, observer: Observer | None = None) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    train(job, Runtime(RuntimeConfig(device="cpu")), folder, config_digest="spine", observer=observer)
    return load_file(folder / "model.safetensors")


def step_of(x: torch.Tensor, y: torch.Tensor, model: nn.Module, inner: object, memory: dict | None = None) -> Step:
    ids = torch.arange(len(y))
    return Step(
        Batch(x, y, ids, KeyedGenerator(7, ids)),
        model,
        None,
        threat=ThreatModel("linf", 0.1),
        moment=Moment(0, 0, 10, 1),
        label_source=DataLabels(),
        inner=inner,
        memory={} if memory is None else memory,
    )


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# 1. instance weights


def test_weights_have_the_published_values() -> None:
    kappa, steps = torch.tensor([0, 5, 10]), torch.tensor([10, 10, 10])
    raw = Gairat().raw(kappa, steps).double()
    assert torch.allclose(raw, torch.tensor([0.99966465, 0.11920292, 6.1442e-06]).double(), atol=1e-6)
    assert torch.allclose(raw / raw.mean(), torch.tensor([2.68036858, 0.31961495, 1.6474e-05]).double(), atol=1e-5)
    unshifted = Gairat(shift=0.0).raw(kappa, steps)
    assert torch.allclose(unshifted, torch.tensor([0.99995460, 0.5, 4.5398e-05]), atol=1e-6)
    logits, y = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    assert float(Mail(10, -0.5).raw(logits, y)) == pytest.approx(0.20452540, abs=1e-6)
    assert float(Mail(2, 0.0).raw(logits, y)) == pytest.approx(0.67444323, abs=1e-6)


def test_the_attack_counts_the_iterates_that_gairat_weighs() -> None:
    x, y = torch.tensor([[0.55, 0.50], [0.9, 0.1]], dtype=torch.float64), torch.tensor([0, 0])
    step = step_of(x, y, nn.Identity(), PGDInner(steps=3, step_size=0.04, start="none"))
    assert step.adversarial.correct_iterates.tolist() == [1, 3]
    assert torch.allclose(step.adversarial.x_adv[0], torch.tensor([0.45, 0.60], dtype=torch.float64))
    weight = Gairat()(step)
    assert weight is not None
    assert float(weight.mean()) == pytest.approx(1.0)
    assert weight[0] > 10 * weight[1]
    assert Gairat(burn_in=1)(step) is None
    with pytest.raises(MethodError, match="loss term 'adversarial', the loss has clean, consistency"):
        small_job(Method(inner=INNER, loss=TradesLoss(), weights=Gairat()), 1, digits())


def test_gairat_trains_and_before_its_burn_in_is_pgd_at(tmp_path: Path) -> None:
    splits = digits()
    plain = run(small_job(Method(inner=INNER, loss=AdversarialLoss()), 2, splits), tmp_path / "plain")
    for weights in (Gairat(burn_in=2), Mail(gradient=0.0)):
        method = Method(inner=INNER, loss=AdversarialLoss(), weights=weights)
        assert same(plain, run(small_job(method, 2, splits), tmp_path / repr(weights))), weights
    weighted = Method(inner=INNER, loss=AdversarialLoss(), weights=Gairat(burn_in=1))
    assert not same(plain, run(small_job(weighted, 2, splits), tmp_path / "weighted"))
    weighted_weights = run(small_job(weighted, splits=splits), tmp_path / "gairat")
    model = build_model(ModelConfig(width=0.25, dropout=0.2, image_size=(16, 16)), seed=1)
    model.load_state_dict(weighted_weights)
    threat = ThreatModel("linf", 0.1)
    found = evaluate(model, splits.test, threat, Suite("s", {"pgd": dynat_pgd(10)}))
    assert found.summary.metrics.clean.share > 0.55
    assert found.summary.metrics.worst_case.robust.share > 0.3


# 2. controllers


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
    monkeypatch.setitem(configuration.WEIGHTS, "gairat", Gairat)
    settings = {
        "method": {
            "inner": {"name": "e_at", "threats": ["linf:0.2", "l1:8"], "steps": 2},
            "loss": "adversarial",
            "weights": {"name": "gairat", "burn_in": 1},
        }
    }
    config = configuration.build_config(settings)
    assert config.method.inner == AlternatingThreats(steps=2)
    assert config.method.weights == Gairat(burn_in=1)
    assert configuration.build_config(config.as_plain()).method == config.method


def controlled() -> Job:
    return small_job(Method(inner=AlternatingThreats(steps=3), loss=BalancedLoss()), epochs=4)


class Slow(Observer):
    """Lets the test see where the run is, and leaves it time to kill."""

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        print(moment.count, flush=True)  # noqa: T201
        time.sleep(0.002)


def test_controllers_survive_kills_bit_by_bit(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path / "killed")]
    (tmp_path / "killed").mkdir()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 70:  # of 128 steps, in the third of four epochs
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/model.safetensors").exists()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    (tmp_path / "whole").mkdir()
    subprocess.run([*command[:2], str(tmp_path / "whole")], check=True, env=environment, stdout=subprocess.DEVNULL)
    one, other = (torch.load(tmp_path / name / "checkpoints/last.pt") for name in ("killed", "whole"))
    assert same(one["networks"]["model"], other["networks"]["model"])
    assert set(one["memory"]) == {"inner", "loss"}
    for part, memory in one["memory"].items():
        assert same(memory, other["memory"][part]), part
    state = one["memory"]["inner"]
    assert state["batches"].sum() == 128
    assert (state["batches"] > 0).all()
    assert not torch.allclose(one["memory"]["loss"]["weight"], torch.tensor([0.5, 0.5]).double())


# (and a perturbation of the weights)


def test_awp_trains_at_the_perturbed_weights() -> None:
    """Relative size gamma per tensor, weights back after the step, batch-norm statistics as without it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    draws = KeyedGenerator(0, torch.arange(12))
    x, y = draws.uniform(1, 4, 4), draws.integers(10, 1)[:, 0]
    part = WeightPerturbation(gamma=0.05)
    method = Method(inner=INNER, loss=TradesLoss(), parameters=(part,))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    step = step_of(x, y, net, INNER)
    loss, _ = outer_loss(method, step)
    moved = {name: p.detach() - before[name] for name, p in net.named_parameters()}
    for name, shift in moved.items():
        expected = 0.05 * before[name].norm() if shift.ndim > 1 else torch.tensor(0.0)
        assert torch.allclose(shift.norm(), expected, rtol=1e-4), name
    loss.backward()
    plain, _ = outer_loss(Method(inner=INNER, loss=TradesLoss()), step_of(x, y, net, FixedPoint(step.adversarial)))
    assert torch.allclose(loss, plain)  # at the perturbed weights
    assert int(net[2].num_batches_tracked) == 2 + 2
    method.tell("after_step", step)
    for name, p in net.named_parameters():
        assert torch.allclose(p, before[name], atol=1e-6), name


class FixedPoint:
    """An inner maximisation whose answer is known."""

    def __init__(self, logits_of: AttackResult) -> None:
        self.logits_of = logits_of

    def __call__(self, step: Step) -> AttackResult:
        return self.logits_of


# 3. a minimum-norm attack


class Affine(nn.Module):
    """Logits `W x + b` of flat images."""

    def __init__(self, weight: list[list[float]], bias: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).to(self.weight) @ self.weight.T + self.bias


R1 = Affine([[0, 0, 0, 0], [2, 2, 2, 2], [6, 0, 0, 0], [3, 3, 0, 0]], [0, -4.8, -3.9, -3.606]), [0.5] * 4
R2 = Affine([[4, 2, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], [-1.1, 0, -10, -20]), [0.05, 0.5, 0.5]
R3 = Affine([[2, 1.5, 1, 0.5], [-2, -1.5, -1, -0.5], [0] * 4, [0] * 4], [-0.4, 0.4, -50, -60]), [0.5] * 4


@pytest.mark.parametrize(
    ("case", "attack", "expected", "optimum"),
    [
        (R1, DDN(1000), 0.15578, 0.142836),
        (R2, DDN(1000), 0.18574, 0.185742),
        (R3, DDN(1000), 0.77187, 0.771825),
        (R1, DDN(1000, objective=margin), 0.142836, 0.142836),
    ],
)
def test_ddn_reaches_the_closed_forms(
    case: tuple[nn.Module, list[float]], attack: DDN, expected: float, optimum: float
) -> None:
    model, point = case
    x, y = torch.tensor([point], dtype=torch.float64), torch.tensor([0])
    for epsilon in (2.0, 0.01):  # beyond epsilon the distance is given all the same
        threat = ThreatModel("l2", epsilon)
        found = attack(model, x, y, threat=threat, generator=KeyedGenerator(0, torch.tensor([3])))
        assert float(found.distance) == pytest.approx(expected, rel=5e-4)
        assert float(found.distance) >= optimum - 1e-6
        assert bool(found.broken) == (epsilon == 2.0)
        assert bool(threat.contains(found.x_adv, x).all())
    assert int(found.forwards) == int(found.backwards) == 1000
    with pytest.raises(AttackError, match="l2"):
        attack(model, x, y, threat=ThreatModel("linf", 0.1), generator=KeyedGenerator(0, torch.tensor([3])))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ImageData]:
    splits = digits()
    job = small_job(Method(inner=INNER, loss=AdversarialLoss()), splits=splits)
    weights = run(job, tmp_path_factory.mktemp("trained"))
    model = build_model(ModelConfig(width=0.25, dropout=0.2, image_size=(16, 16)), seed=1)
    model.load_state_dict(weights)
    return model.eval(), splits.test


def test_one_run_of_ddn_gives_the_security_curve(trained: tuple[nn.Module, ImageData], tmp_path: Path) -> None:
    model, data = trained
    threat = ThreatModel("l2", 0.5)
    suite = Suite("minimum", {"pgd": dynat_pgd(10), "ddn": DDN(40)}, titles={"ddn": "DDN"}, curve="ddn")
    evidence = evaluate(model, data, threat, suite, curve_count=None)
    write_evidence(evidence, tmp_path)
    checks = audit(tmp_path, EvaluationTarget(model, data, threat), suite).checks
    assert all(check.passed for check in checks), checks
    table, curve = read_evidence(tmp_path).table, evidence.summary.metrics.security_curve
    assert curve is not None
    assert 0.2 < evidence.summary.metrics.attacks["ddn"].robust.share < 0.95
    assert int(table.correct.sum()) > 60
    found = table.attacks["ddn"].distance
    distance = np.where(table.correct, np.nan_to_num(found, nan=math.inf, posinf=math.inf), 0.0)
    assert bool((distance > 0.5).any()), "distances beyond epsilon are in the table"
    # the distances of the one run are the curve, and each of them has its image
    once = [float((distance > radius + 1e-6).mean()) for radius in curve.epsilon[1:]]
    assert once == pytest.approx(curve.accuracy[1:])
    assert curve.accuracy[1] > curve.accuracy[-1]
    assert len(evidence.images.attacks["ddn"]) > int(table.broken_by("ddn").sum())
    forged = read_evidence(tmp_path)
    forged.table.attacks["ddn"].distance[distance > 0.5] *= 3
    write_evidence(forged, tmp_path)
    wrong = [
        check.name
        for check in audit(tmp_path, EvaluationTarget(model, data, threat), suite).checks
        if not check.passed
    ]
    assert "ddn: distances" in wrong


# 4. a certificate


def test_clopper_pearson_has_the_measured_values() -> None:
    hits = torch.tensor([100, 99, 66, 65, 0])
    bound = lower_confidence_bound(hits, 100, 0.001)
    assert bound[:2].tolist() == pytest.approx([0.933254, 0.911373], abs=1e-6)
    assert bound[2] > 0.5 > bound[3]
    assert bound[4] == 0
    assert float(lower_confidence_bound(torch.tensor([10_000]), 10_000, 0.001)) == pytest.approx(0.999309, abs=1e-6)


def half_space(count: int) -> tuple[nn.Module, ImageData, torch.Tensor]:
    """A half-space in the space of 4x4 images, points on both sides of it, and their distances from its edge."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(16, generator=generator, dtype=torch.float64)
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    bias = -float(normal.sum()) / 2
    model = Affine([normal.tolist(), (-normal).tolist()], [bias, -bias])
    value = (images.flatten(1).double() / 255) @ normal + bias
    data = ImageData(images, (value < 0).long(), torch.arange(count), ("in", "out"), "half-space")
    return model, data, value.abs() / normal.norm()


def test_on_a_half_space_the_certified_radius_is_nearly_the_distance() -> None:
    model, data, distance = half_space(200)
    certify = Smoothing(sigma=0.25, selection=10, samples=400)
    found = certify(
        model, data.floats(), data.labels, threat=ThreatModel("l2", 1), generator=KeyedGenerator(0, data.ids)
    )
    proved = found.radius > 0
    assert bool((found.radius <= distance + 1e-6).float().mean() > 0.99)  # 0.999 of them in the mean
    near = proved & (distance < 0.4)
    assert int(near.sum()) > 20
    assert float((distance[near] - found.radius[near]).mean()) < 0.1
    assert bool((found.prediction[proved] == data.labels[proved]).all())
    half = torch.arange(200) % 2 == 0
    again = certify(
        model,
        data.floats(half),
        data.labels[half],
        threat=ThreatModel("linf", 0.1),
        generator=KeyedGenerator(0, data.ids[half]),
    )
    assert torch.allclose(again.radius * 4, found.radius[half])  # linf radius = l2 radius / sqrt(16)


def test_certified_and_attacked_accuracy_stand_side_by_side(tmp_path: Path) -> None:
    model, data, distance = half_space(120)
    threat = ThreatModel("l2", 0.2)
    suite = Suite(
        "both",
        {"ddn": DDN(100)},
        certificates={"smoothing": Smoothing(sigma=0.25, samples=200, certifies="model")},
        curve="ddn",
    )
    evidence = evaluate(model, data, threat, suite)
    write_evidence(evidence, tmp_path)
    metrics = read_evidence(tmp_path).summary.metrics
    assert metrics.certified is not None
    assert metrics.security_curve is not None
    certified, attacked = metrics.certified.robust.share, metrics.worst_case.robust.share
    assert 0 < certified <= attacked < 1
    inner = float((distance > 0.2).double().mean())
    assert certified <= inner <= attacked + 1e-9
    assert attacked - inner < 0.03
    assert metrics.certified.radius == pytest.approx(0.2)
    assert metrics.security_curve.certified is not None
    assert metrics.certificates[0].terms.failure_probability == 0.001
    target = EvaluationTarget(model, data, threat)
    checks = audit(tmp_path, target, suite).checks
    assert all(check.passed for check in checks), checks
    assert any("certificate smoothing" in check.name for check in checks)
    forged = read_evidence(tmp_path)
    forged.table.certificates["smoothing"].radius[:] *= 1.01
    write_evidence(forged, tmp_path)
    wrong = [check for check in audit(tmp_path, target, suite).checks if not check.passed]
    assert any("certificate smoothing" in check.name for check in wrong)


def test_a_forged_certificate_has_no_way_through(tmp_path: Path) -> None:
    """Neither with no suite, nor with one that lacks the certificate, nor with a certificate that lies."""
    model, data, _ = half_space(60)
    threat = ThreatModel("l2", 0.2)
    honest = Smoothing(sigma=0.25, samples=200, certifies="model")
    suite = Suite("both", {"ddn": DDN(60)}, certificates={"smoothing": honest})
    evidence = evaluate(model, data, threat, suite)
    target = EvaluationTarget(model, data, threat)
    write_evidence(evidence, tmp_path)
    assert audit(tmp_path, target, suite).passed
    for other in (None, Suite("both", {"ddn": DDN(60)}), replace(suite, attacks={"ddn": DDN(5)})):
        assert not audit(tmp_path, target, other).passed
    forged: Evidence = read_evidence(tmp_path)
    forged.table.certificates["smoothing"].radius[:] = 5.0
    write_evidence(forged, tmp_path)
    wrong = [check.name for check in audit(tmp_path, target, suite).checks if not check.passed]
    assert "no example both certified and broken" in wrong

    class Liar:
        certifies = "model"

        def __call__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, **rest: object) -> CertificateResult:
            verdict = torch.full((len(y),), int(Verdict.VERIFIED), dtype=torch.int8)
            return CertificateResult(verdict, torch.full((len(y),), 9.0), y, "model")

    with pytest.raises(ValueError, match="a certificate is wrong"):
        evaluate(model, data, threat, replace(suite, certificates={"liar": Liar()}))


def test_smoothing_of_a_trained_network_is_in_the_evidence(
    trained: tuple[nn.Module, ImageData], tmp_path: Path
) -> None:
    model, data = trained
    few = data.select(torch.arange(40))
    threat = ThreatModel("l2", 0.1)
    suite = Suite("both", {"pgd": dynat_pgd(5)}, certificates={"smoothing": Smoothing(sigma=0.1, samples=100)})
    evidence = evaluate(model, few, threat, suite)
    write_evidence(evidence, tmp_path)
    result = audit(tmp_path, EvaluationTarget(model, few, threat, batch_size=7), suite)
    assert result.passed, result.checks
    metrics = evidence.summary.metrics
    assert metrics.certified is None, "the smoothed model is another classifier than the one attacked"
    assert metrics.certificates[0].terms.certifies == "the model smoothed with Gaussian noise"
    assert metrics.certificates[0].robust.share > 0.3


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(controlled(), Path(sys.argv[1]), Slow())
