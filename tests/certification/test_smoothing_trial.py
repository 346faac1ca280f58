"""Trial of a certificate that is not shipped: randomised smoothing, in evidence and audit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from smoothing import Smoothing, lower_confidence_bound
from torch import nn

from robustly.attacks import DDN, dynat_pgd
from robustly.certification import CertificateResult
from robustly.data import ImageData
from robustly.evaluation import EvaluationTarget, Suite, audit, evaluate
from robustly.evidence import Evidence, Verdict, read_evidence, write_evidence
from robustly.models import ModelConfig, build_model
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    Method,
)
from trial_runs import INNER, digits, run, small_job


class Affine(nn.Module):
    """Logits `W x + b` of flat images."""

    def __init__(self, weight: list[list[float]], bias: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).to(self.weight) @ self.weight.T + self.bias


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ImageData]:
    splits = digits()
    job = small_job(Method(inner=INNER, loss=AdversarialLoss()), splits=splits)
    weights = run(job, tmp_path_factory.mktemp("trained"))
    model = build_model(ModelConfig(width=0.25, dropout=0.2, image_size=(16, 16)), seed=1)
    model.load_state_dict(weights)
    return model.eval(), splits.test


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


@pytest.mark.slow
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


@pytest.mark.slow
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

    with pytest.raises(ValueError, match="the certificate is wrong"):
        evaluate(model, data, threat, replace(suite, certificates={"liar": Liar()}))


@pytest.mark.slow
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
