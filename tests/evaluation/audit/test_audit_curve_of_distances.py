"""The curve of a minimum-norm attack: its distances are found again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from forging import Tensors, edit_images, edit_table, problems, reseal
from torch import nn

from robustly.attacks.sigma_zero import SigmaZero
from robustly.data import Splits
from robustly.evaluation import EvaluationTarget, Suite, audit, evaluate
from robustly.evidence import EvidenceTable, write_evidence
from robustly.threats.lp import ThreatModel

SUITE = Suite("sparse", {"sigma_zero": SigmaZero(steps=25)}, curve="sigma_zero")


@pytest.mark.slow
def test_examples_that_are_stated_to_stand_beyond_the_threat_fail(
    digit_net: nn.Module, digits: Splits, tmp_path: Path
) -> None:
    target = EvaluationTarget(digit_net, digits.test.select(torch.arange(20)), ThreatModel("l0", 6))
    write_evidence(evaluate(digit_net, target.data, target.threat, SUITE, batch_size=20), tmp_path)
    assert not problems(audit(tmp_path, target, SUITE))
    beyond: list[int] = []

    def forget(table: EvidenceTable) -> None:
        own = table.attacks["sigma_zero"]
        rows = own.tried & ~own.broken & np.isfinite(own.distance) & (own.distance <= 12)
        own.distance[rows], own.prediction[rows] = np.nan, -1
        assert table.curve is not None
        table.curve.distance[rows] = np.inf
        beyond.extend(table.examples.id[rows].tolist())

    def drop(images: Tensors) -> None:
        for name in ("sigma_zero", "curve"):
            kept = ~np.isin(images[f"{name}.ids"], beyond)
            for part in ("ids", "images"):
                images[f"{name}.{part}"] = images[f"{name}.{part}"][kept]

    edit_table(tmp_path, forget)
    edit_images(tmp_path, drop)
    reseal(tmp_path)
    assert len(beyond) > 1
    assert "security curve: " in (found := problems(audit(tmp_path, target, SUITE)))
    assert "broke" in found
