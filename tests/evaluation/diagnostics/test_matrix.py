"""Honest networks raise no alarm, masked ones all do, at 50 and at 200 images.

`benchmarks/diagnostics_matrix.py` has more networks, CIFAR-10 and 1,000 images.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from robustly.attacks import PGD
from robustly.data import DataConfig, Splits, load_splits
from robustly.evaluation import EvaluationTarget
from robustly.evaluation.diagnostics import ALL, CHEAP, Budget, diagnose, masking_suspected
from robustly.evidence import Finding
from robustly.randomness import KeyedGenerator
from robustly.testing.masked import MASKED
from robustly.threats.lp import ThreatModel

THREAT = ThreatModel("linf", 0.1)
BUDGET = Budget(steps=10, unbounded_steps=30, restarts=2, queries=100, few=20, points=100, directions=16)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_digits() -> Splits:
    return load_splits(DataConfig(validation=50, test=200, train_limit=1000, image_size=16))


def trained(digits: Splits, attack: PGD | None, threat: ThreatModel = THREAT, epochs: int = 6) -> nn.Module:
    """A network of two layers, trained on attacked images whose radius grows over three epochs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    x, y = digits.train.floats(), digits.train.labels
    for epoch in range(epochs):
        for rows in torch.randperm(len(y)).split(50):
            seen, draws = x[rows], KeyedGenerator(epoch, rows)
            if attack is not None:
                radius = threat.scaled(min(1.0, (epoch + 1) / 3))
                seen = attack(net, seen, y[rows], threat=radius, generator=draws).x_adv
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(seen), y[rows]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def undefended(small_digits: Splits) -> nn.Module:
    return trained(small_digits, None)


@pytest.fixture(scope="module")
def robust(small_digits: Splits) -> nn.Module:
    return trained(small_digits, PGD(5, early_stop=False, keep="last"))


def findings(net: nn.Module, digits: Splits, count: int, tests: Sequence[str] = ALL) -> list[Finding]:
    return diagnose(EvaluationTarget(net, digits.test, THREAT), count=count, tests=tests, budget=BUDGET)


@pytest.mark.parametrize("count", [50, 200])
@pytest.mark.parametrize("kind", ["undefended", "robust"])
def test_an_honest_network_raises_no_alarm(
    kind: str, count: int, small_digits: Splits, request: pytest.FixtureRequest
) -> None:
    net = request.getfixturevalue(kind)
    assert masking_suspected(findings(net, small_digits, count)) == []


@pytest.mark.parametrize("count", [50, 200])
@pytest.mark.parametrize("name", MASKED)
def test_a_masked_network_is_caught(name: str, count: int, small_digits: Splits, undefended: nn.Module) -> None:
    """By the checks that run in every evaluation and finite differences; D2 where the gradient is right in part."""
    tests = ("D2",) if name == "partly detached input" else (*CHEAP, "D7")
    assert masking_suspected(findings(MASKED[name](undefended), small_digits, count, tests))


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_network_keeps_most_predictions(name: str, small_digits: Splits, undefended: nn.Module) -> None:
    x = small_digits.test.floats()
    torch.manual_seed(0)
    with torch.no_grad():
        same = MASKED[name](undefended)(x).argmax(1) == undefended(x).argmax(1)
    assert float(same.float().mean()) > 0.8
