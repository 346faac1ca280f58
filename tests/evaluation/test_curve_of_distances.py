"""One run of a minimum-norm attack gives the whole security curve."""

import math
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from robustly.attacks import DDN, dynat_pgd
from robustly.data import ImageData
from robustly.evaluation import EvaluationTarget, Suite, audit, evaluate
from robustly.evidence import read_evidence, write_evidence
from robustly.models import ModelConfig, build_model
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    Method,
)
from trial_runs import INNER, digits, run, small_job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ImageData]:
    splits = digits()
    job = small_job(Method(inner=INNER, loss=AdversarialLoss()), splits=splits)
    weights = run(job, tmp_path_factory.mktemp("trained"))
    model = build_model(ModelConfig(width=0.25, dropout=0.2, image_size=(16, 16)), seed=1)
    model.load_state_dict(weights)
    return model.eval(), splits.test


@pytest.mark.slow
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
