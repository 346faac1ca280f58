"""Three masked defences: the naive attack is fooled, the diagnostics say so, the adaptive attack breaks them.

The page `docs/adaptive.md` has the same three examples.
"""

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import BPDA, PGD, Attack, ExpectationOverTransformation
from robustly.attacks.adaptive import accuracy_over_draws
from robustly.data import Splits
from robustly.evaluation import EvaluationTarget
from robustly.evaluation.diagnostics import Budget, diagnose, masking_suspected
from robustly.objectives import margin, scaled_cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

THREAT = ThreatModel("linf", 0.15)
COUNT = 60
BUDGET = Budget(steps=10, unbounded_steps=20, restarts=2, queries=300, few=5, points=300, directions=64)


def quantise(x: Tensor) -> Tensor:
    """Five grey levels."""
    return (x * 4).round() / 4


class Quantised(nn.Module):
    """Round the input, so that its gradient is zero."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(quantise(x))
        return logits


class Resized(nn.Module):
    """Shrink the input by a random factor and put it at a random place."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        scale, place = 1.0 + 0.25 * torch.rand(1), 0.3 * (torch.rand(2) - 0.5)
        zero = torch.zeros(1)
        turn = torch.stack([torch.cat([scale, zero, place[:1]]), torch.cat([zero, scale, place[1:]])])
        grid = nn.functional.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        logits: Tensor = self.net(nn.functional.grid_sample(x, grid, align_corners=False))
        return logits


class Cold(nn.Module):
    """A vanishing softmax temperature: probabilities of exactly 0 and 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 1e4 * self.net(x)
        return logits


def unbroken(attack: Attack, net: nn.Module, digits: Splits) -> float:
    x, y = digits.test.floats()[:COUNT], digits.test.labels[:COUNT]
    found = attack(net, x, y, threat=THREAT, generator=KeyedGenerator(0, torch.arange(COUNT)))
    return float((~found.broken).double().mean())


def failed(net: nn.Module, digits: Splits) -> set[str]:
    """Diagnostics that fail; "headline" is among them if they change it."""
    findings = diagnose(EvaluationTarget(net, digits.test, THREAT), count=COUNT, budget=BUDGET)
    names = {finding.id for finding in findings if finding.passed is False}
    return names | ({"headline"} if masking_suspected(findings) else set())


@pytest.mark.slow
def test_the_undefended_network_falls_and_passes_the_diagnostics(digit_net: nn.Module, digits: Splits) -> None:
    assert unbroken(PGD(20), digit_net, digits) < 0.3
    assert failed(digit_net, digits) <= {"D8", "D9"}, "hints to spend more, which ten steps deserve"


@pytest.mark.slow
def test_quantised_input_hides_from_gradients_and_not_from_bpda(digit_net: nn.Module, digits: Splits) -> None:
    defended = Quantised(digit_net)
    assert unbroken(PGD(20), defended, digits) > 0.6
    assert {"quantised_input", "zero_gradient", "D6", "headline"} <= failed(defended, digits)
    adapted = nn.Sequential(BPDA(quantise), digit_net)
    assert unbroken(PGD(20, margin), adapted, digits) < 0.25


@pytest.mark.slow
def test_a_vanishing_temperature_hides_from_cross_entropy_alone(digit_net: nn.Module, digits: Splits) -> None:
    defended = Cold(digit_net)
    assert unbroken(PGD(20), defended, digits) > 0.6
    assert {"D6", "D10", "headline"} <= failed(defended, digits)
    assert unbroken(PGD(20, margin), defended, digits) < 0.3
    assert unbroken(PGD(20, scaled_cross_entropy), defended, digits) < 0.3


@pytest.mark.slow
def test_random_resizing_hides_from_one_draw_and_not_from_the_mean(digit_net: nn.Module, digits: Splits) -> None:
    defended = Resized(digit_net)
    x, y = digits.test.floats()[:COUNT], digits.test.labels[:COUNT]
    draws = KeyedGenerator(0, torch.arange(COUNT))

    def accuracy(seen: nn.Module) -> float:
        """Accuracy of the defended model over draws that the attack did not use."""
        attack = PGD(20, margin, early_stop=False, keep="last")
        found = attack(seen, x, y, threat=THREAT, generator=draws)
        return float(accuracy_over_draws(defended, found.x_adv, y, draws=10, seed=9).mean())

    clean = float(accuracy_over_draws(defended, x, y, draws=10, seed=9).mean())
    naive = accuracy(digit_net)  # crafted as if the stage were not there
    one_draw = accuracy(ExpectationOverTransformation(defended, draws=1))
    adapted = accuracy(ExpectationOverTransformation(defended, draws=10))
    assert clean > 0.7
    assert naive > adapted + 0.08
    assert one_draw > adapted + 0.05, (naive, one_draw, adapted)
    assert adapted < 0.35
    assert {"randomized", "D11", "headline"} <= failed(defended, digits)


@pytest.mark.parametrize("kind", [Quantised, Cold])
def test_a_wrapped_pipeline_answers_as_the_defended_model(kind: type, digit_net: nn.Module, digits: Splits) -> None:
    x = digits.test.floats()[:COUNT]
    adapted = nn.Sequential(BPDA(quantise), digit_net) if kind is Quantised else kind(digit_net)
    with torch.no_grad():
        assert torch.equal(adapted(x), kind(digit_net)(x))
