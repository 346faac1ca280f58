"""A threat that was made from training data is refused for others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_tools import Splits, make_job

from robustly.data import make_planes
from robustly.threats import Chain, Rotation, Subspace, Threat, ThreatError, ThreatModel, parse_threat
from robustly.training import Method


@pytest.mark.parametrize("chained", [False, True])
def test_planes_of_other_data_are_refused(little: Splits, tmp_path: Path, chained: bool) -> None:
    file = make_planes(little.train, tmp_path / "planes.safetensors", directions=2)
    threat: Threat = parse_threat(f"subspace:2@{file}")
    assert isinstance(threat, Subspace)
    if chained:
        threat = Chain([Rotation(5), threat])
    make_job(little, Method(), threat=threat)
    fewer = little.train.select(torch.arange(len(little.train) - 1))
    with pytest.raises(ThreatError, match="were made from other training data"):
        make_job(replace(little, train=fewer), Method(), threat=threat)


def test_a_threat_of_ones_own_may_check_the_data(little: Splits) -> None:
    class Made(ThreatModel):
        def check_data(self, digest: Callable[[], str]) -> None:
            raise ThreatError(f"not made from {digest()[:4]}")

    with pytest.raises(ThreatError, match=f"not made from {little.train.digest()[:4]}"):
        make_job(little, Method(), threat=Made("linf", 0.1))
