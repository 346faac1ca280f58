"""Tests on a CUDA device; skipped without one."""

from pathlib import Path

import pytest
import torch
from torch import nn

from robustly.attacks import ATTACKS
from robustly.cli import main
from robustly.data import Splits
from robustly.evaluation import EvaluationTarget, Suite, audit, evaluate
from robustly.evidence import write_evidence
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
THREAT = ThreatModel("linf", 0.1)


def test_random_numbers_are_those_of_the_cpu() -> None:
    here = KeyedGenerator(3, torch.arange(20))
    there = KeyedGenerator(3, torch.arange(20, device="cuda"))
    assert torch.equal(here.bits(50), there.bits(50).cpu())
    assert torch.equal(here.uniform(50), there.uniform(50).cpu())


def test_verdicts_agree_with_the_cpu_and_the_cpu_can_audit_them(
    digit_net: nn.Module, digits: Splits, tmp_path: Path
) -> None:
    suite = Suite("gpu", {"pgd_20": ATTACKS["pgd_20"], "cw_20": ATTACKS["cw_20"]}, curve="pgd_20")
    net = digit_net.to("cuda", memory_format=torch.channels_last)
    there = evaluate(net, digits.test.to("cuda"), THREAT, suite)
    write_evidence(there, tmp_path)
    net = digit_net.to("cpu", memory_format=torch.contiguous_format)
    here = evaluate(net, digits.test, THREAT, suite)
    differing = (here.table.worst_case.broken != there.table.worst_case.broken).sum()
    assert differing <= 2
    result = audit(tmp_path, EvaluationTarget(net, digits.test, THREAT), suite)
    assert result.passed, [check for check in result.checks if not check.passed]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_robust_network_is_trained(tmp_path: Path, precision: str) -> None:
    words = ["train", "mnist5k/dynat", "--out", str(tmp_path / "run"), "--runtime.device", "cuda"]
    assert main([*words, "--runtime.precision", precision]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--evaluation.count", "300"]) == 0
    assert main(["audit", str(tmp_path / "run")]) == 0
