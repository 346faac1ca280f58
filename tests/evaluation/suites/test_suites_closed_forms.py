"""Suites: published budgets to the pass, and verdicts on models with known radii."""

import pytest
import torch
from torch import Tensor, nn

from robustly.evaluation import Suite, suite_named
from robustly.evaluation.suites.autoattack import autoattack
from robustly.evaluation.suites.passes import autoattack_passes, passes_of
from robustly.evaluation.suites.suite import in_full_precision
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

WEIGHT = torch.tensor([[0.0, 0, 0, 0], [2, 2, 2, 2], [6, 0, 0, 0], [3, 3, 0, 0]], dtype=torch.float64)
BIAS = torch.tensor([0, -4.8, -3.9, -3.606], dtype=torch.float64)


def linear(scale: float = 1.0) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4).double())
    net[1].weight.data, net[1].bias.data = scale * WEIGHT, scale * BIAS
    return net.requires_grad_(False)


class Dead(nn.Module):
    """R6: no slope at the centre; broken from 0.1 on in one corner."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.flatten(1).unbind(1)
        up, left = (first + second - 1.1).relu(), (0.4 - first).relu()
        zero = torch.zeros_like(first)
        return torch.stack([0.2 - 2 * up - left, zero, zero - 10, zero - 20], dim=1)


def unbroken(suite: Suite, net: nn.Module, x: Tensor, threat: ThreatModel) -> int:
    """Number of images unbroken by all attacks of a suite, in order."""
    alive = torch.ones(len(x), dtype=torch.bool)
    for name, attack in in_full_precision(suite).attacks.items():
        rows = alive.nonzero()[:, 0]
        if len(rows) == 0:
            break
        y = torch.zeros(len(rows), dtype=torch.int64)
        draws = KeyedGenerator(0, rows).fold(name)
        alive[rows] = ~attack(net, x[rows], y, threat=threat, generator=draws).broken
    return int(alive.sum())


def suite_passes(suite: Suite, threat: ThreatModel) -> dict[str, tuple[int, int]]:
    return {name: passes_of(attack, threat) for name, attack in in_full_precision(suite).attacks.items()}


@pytest.mark.slow
def test_autoattack_costs_what_the_published_protocol_does() -> None:
    passes = suite_passes(autoattack("standard", "linf"), ThreatModel("linf", 0.03))
    assert list(passes) == ["apgd_ce", "apgd_t", "fab_t", "square"]
    assert passes["apgd_ce"] == (102, 101)
    assert passes["apgd_t"] == (1 + 909, 909)
    assert passes["fab_t"][1] == 900
    assert passes["square"] == (5002, 0)
    assert sum(map(sum, passes.values())) == autoattack_passes(10)


def test_the_versions_have_the_published_order() -> None:
    assert list(autoattack("plus", "l2").attacks) == ["apgd_ce", "apgd_dlr", "fab", "square", "apgd_t", "fab_t"]
    assert list(autoattack("rand", "l1").attacks) == ["apgd_ce", "apgd_dlr"]
    sparse = autoattack("standard", "l1").attacks
    assert (sparse["apgd_ce"].restarts, sparse["apgd_ce"].large_epsilon) == (5, True)
    assert (sparse["apgd_t"].targets, sparse["apgd_t"].large_epsilon) == (5, True)
    with pytest.raises(ValueError, match=r"plus .*linf, l2\b.*'l1'"):
        autoattack("plus", "l1")


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_our_suites_spend_what_their_page_says(norm: str) -> None:
    units = {}
    for name in ("quick", "strong"):
        suite, passes = suite_named(name, norm), suite_passes(suite_named(name, norm), ThreatModel(norm, 0.03))
        plans = {stage: suite.plan(stage) for stage in suite.attacks}
        units[name] = sum(
            sum(passes[stage]) * min(plan.closest or 1, plan.sample_share or 1)
            for stage, plan in plans.items()
            if not plan.on_suspicion
        )
    assert units["quick"] < 1000
    assert units["strong"] < 9762 / 2
    # those of the suite standard, whose stages are the first of strong's (see below)
    assert sum(sum(passes[name]) for name in ("screen", "near_targets")) < 350


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_strong_begins_with_all_of_standard(norm: str) -> None:
    """Its verdict can only be lower: stages are seeded by name, and see the same survivors."""
    base, strong = suite_named("standard", norm), suite_named("strong", norm)
    first = [name for name in base.attacks if not base.plan(name).on_suspicion]
    assert list(strong.attacks)[: len(first)] == first
    for name in base.attacks:
        assert strong.attacks[name] == base.attacks[name]
        assert strong.plan(name) == base.plan(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quick", "standard", "strong", "aa_standard"])
def test_the_linear_model_falls_just_beyond_its_radius_and_stands_within(name: str) -> None:
    x = torch.full((5, 1, 2, 2), 0.5, dtype=torch.float64)
    suite = suite_named(name, "linf")
    assert unbroken(suite, linear(), x, ThreatModel("linf", 0.1005)) == 0
    assert unbroken(suite, linear(), x[:2], ThreatModel("linf", 0.0995)) == 2
    suite = suite_named(name, "l2")
    assert unbroken(suite, linear(), x, ThreatModel("l2", 0.145)) == 0
    assert unbroken(suite, linear(), x[:2], ThreatModel("l2", 0.1425)) == 2


def test_saturated_logits_do_not_save_a_model() -> None:
    x = torch.full((5, 1, 2, 2), 0.5, dtype=torch.float64)
    for name in ("quick", "standard"):
        assert unbroken(suite_named(name, "linf"), linear(1e4), x, ThreatModel("linf", 0.11)) == 0


@pytest.mark.slow
def test_a_dead_gradient_does_not_save_a_model() -> None:
    x = torch.full((4, 1, 1, 2), 0.5, dtype=torch.float64)
    assert unbroken(suite_named("standard", "linf"), Dead(), x, ThreatModel("linf", 0.12)) == 0
    assert unbroken(suite_named("standard", "linf"), Dead(), x[:2], ThreatModel("linf", 0.099)) == 2


@pytest.mark.parametrize("name", ["standard", "strong"])
def test_flows_and_patches_have_a_search_of_their_own(name: str) -> None:
    general = set(suite_named(name, "rotation").attacks)
    assert set(suite_named(name, "flow").attacks) - general == {"stadv"}
    assert set(suite_named(name, "patch").attacks) - general == {"patch"}
    assert set(suite_named(name, "physical_patch").attacks) - general == {"expected_patch"}
    assert "expected_patch" in suite_named("semantic", "physical_patch").attacks
