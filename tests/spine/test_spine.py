"""Trials of parts that are not shipped, on the public contracts alone: controllers, an attack, a certificate."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from controller import AlternatingThreats, BalancedLoss
from ddn import DDN
from safetensors.torch import load_file
from smoothing import Smoothing, lower_confidence_bound
from torch import nn

from robustly.attacks import AttackError, dynat_pgd
from robustly.certification import CertificateResult
from robustly.data import Augmentation, DataConfig, ImageData, Splits, load_splits
from robustly.evaluation import EvaluationTarget, Suite, audit, evaluate, read_evidence, write_evidence
from robustly.experiments import configuration
from robustly.models import ModelConfig, build_model
from robustly.objectives import margin
from robustly.randomness import KeyedGenerator
from robustly.runtime import Runtime, RuntimeConfig
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    GairatWeights,
    Job,
    Method,
    Moment,
    Observer,
    OptimizerConfig,
    PGDInner,
    ScheduleConfig,
    TrainingConfig,
    train,
)

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
        train=splits.train,
        validation=splits.validation,
        threats=(LINF,),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.005),
        schedule=ScheduleConfig(),
        training=TrainingConfig(epochs=epochs, batch_size=32, validation_steps=3, epsilon_ramp=2.0),
        augmentation=Augmentation(),
    )


def run(job: Job, folder: Path, observer: Observer | None = None) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    train(job, Runtime(RuntimeConfig(device="cpu")), folder, config_digest="spine", observer=observer)
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# 1. controllers


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


# 2. a minimum-norm attack


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
    table, curve = read_evidence(tmp_path).table, evidence.summary["security_curve"]
    assert 0.2 < evidence.summary["attacks"]["ddn"]["accuracy"] < 0.95
    correct = table["clean_prediction"] == table["label"]
    assert int(correct.sum()) > 60
    distance = torch.where(correct, table["ddn.distance"].nan_to_num(math.inf), 0.0)
    assert bool((distance > 0.5).any()), "distances beyond epsilon are in the table"
    # the distances of the one run are the curve, and each of them has its image
    once = [float((distance > radius + 1e-6).double().mean()) for radius in curve["epsilon"][1:]]
    assert once == pytest.approx(curve["accuracy"][1:])
    assert curve["accuracy"][1] > curve["accuracy"][-1]
    assert len(evidence.images["ddn.ids"]) > int((evidence.table["ddn.broken"] & correct).sum())
    forged = dict(evidence.table)
    forged["ddn.distance"] = torch.where(distance > 0.5, 3 * forged["ddn.distance"], forged["ddn.distance"])
    write_evidence(replace(evidence, table=forged), tmp_path)
    wrong = [
        check.name
        for check in audit(tmp_path, EvaluationTarget(model, data, threat), suite).checks
        if not check.passed
    ]
    assert "ddn: distances" in wrong


# 3. a certificate


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
    summary = read_evidence(tmp_path).summary
    certified, attacked = summary["certified"]["accuracy"], summary["worst_case"]["accuracy"]
    assert 0 < certified <= attacked < 1
    inner = float((distance > 0.2).double().mean())
    assert certified <= inner <= attacked + 1e-9
    assert attacked - inner < 0.03
    assert summary["certified"]["radius"] == pytest.approx(0.2)
    assert summary["security_curve"]["certified"] is not None
    target = EvaluationTarget(model, data, threat)
    checks = audit(tmp_path, target, suite).checks
    assert all(check.passed for check in checks), checks
    assert any("certificate smoothing" in check.name for check in checks)
    forged = dict(evidence.table)
    forged["certificate.smoothing.radius"] = forged["certificate.smoothing.radius"] * 1.01
    write_evidence(replace(evidence, table=forged), tmp_path)
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
    forged = dict(evidence.table)
    forged["certificate.smoothing.radius"] = torch.full_like(forged["certificate.smoothing.radius"], 5.0)
    write_evidence(replace(evidence, table=forged), tmp_path)
    wrong = [check.name for check in audit(tmp_path, target, suite).checks if not check.passed]
    assert "no example both certified and broken" in wrong

    class Liar:
        certifies = "model"

        def __call__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, **rest: object) -> CertificateResult:
            return CertificateResult(y, torch.full((len(y),), 9.0))

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
    assert evidence.summary["certified"] is None, "the smoothed model is another classifier than the one attacked"
    other = evidence.summary["certificates"][0]
    assert other["of"] == "the model smoothed with Gaussian noise"
    assert other["accuracy"] > 0.3


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(controlled(), Path(sys.argv[1]), Slow())
