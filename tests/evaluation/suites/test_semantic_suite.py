"""The suite for threats that are not Lp balls: its stages, its passes, and the columns of its evidence."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from robustly.attacks import PGD, GridSearch, ParameterSearch, RandomDraws
from robustly.data import ImageData
from robustly.evaluation import EvaluationError, Suite, evaluate, suite_named
from robustly.evaluation.recording import threat_or_kind, threat_record
from robustly.evaluation.suites.composed import suite_from
from robustly.evaluation.suites.cost import announced_cost
from robustly.evaluation.suites.passes import passes_of
from robustly.evaluation.suites.suite import in_full_precision, without_draws
from robustly.testing import small_network
from robustly.threats import TRANSFORMATIONS, parse_threat

WITHOUT_GRID = ["random_draws", "pgd", "parameter_search"]


@pytest.mark.parametrize("kind", [*(kind for kind in TRANSFORMATIONS), "affine"])
def test_transformations_of_few_parameters_have_a_grid(kind: str) -> None:
    few = kind == "affine" or len(TRANSFORMATIONS[kind].neutral) <= 4
    assert list(suite_named("semantic", kind).attacks) == [*WITHOUT_GRID, *(["grid"] if few else [])]


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("rotation:5+shift:1", True),
        ("hue:1+saturation:0.3+brightness:0.2+contrast:0.1", True),
        ("affine:rotation=5,shift=1,scale=0.1+shear:3", False),  # five parameters
        ("rotation:5+linf:0.1", False),
    ],
)
def test_chains_of_few_parameters_have_a_grid(text: str, grid: bool) -> None:
    threat = parse_threat(text)
    suite = suite_named("semantic", threat)
    assert list(suite.attacks) == [*WITHOUT_GRID, *(["grid"] if grid else [])]
    assert all(attack.needs.accept(threat) for attack in suite.attacks.values())
    assert suite_from("semantic", None, threat_or_kind(threat_record(threat))) == suite, "an audit rebuilds it"
    assert not grid or announced_cost(suite, threat, 1, 10).stages["grid"][0] > 600


@pytest.mark.parametrize("name", ["dynat", "dynat_100", "single_step"])
@pytest.mark.parametrize("text", ["rotation:30", "hue:1+linf:0.1", "flow:1&shift:2", "patch:3", "affine:scale=0.1"])
def test_suites_of_presets_have_random_draws_beside_the_gradients(name: str, text: str) -> None:
    threat = parse_threat(text)
    suite = suite_named(name, threat)
    assert suite.attacks["random_draws"] == RandomDraws(50)
    assert suite_from(name, None, threat_or_kind(threat_record(threat))) == suite, "an audit rebuilds it"
    earlier = [one for one in suite.attacks if one != "random_draws"]
    assert list(without_draws(suite, earlier).attacks) == earlier
    assert without_draws(suite, list(suite.attacks)) == suite
    assert "random_draws" not in suite_named(name, "linf").attacks
    assert "random_draws" not in suite_named(name, "corruption").attacks


@pytest.mark.parametrize("name", ["semantic", "quick", "standard", "strong"])
def test_draws_of_other_suites_cannot_be_left_out(name: str) -> None:
    suite = suite_named(name, "rotation")
    assert without_draws(suite, ["pgd"]) == suite


def test_the_kind_of_a_chain_has_no_grid_and_balls_have_another_suite() -> None:
    assert list(suite_named("semantic", "chain").attacks) == WITHOUT_GRID
    with pytest.raises(ValueError, match="not Lp balls, got 'linf': use the suite standard"):
        suite_named("semantic", "linf")


def test_the_announced_passes_are_those_that_are_counted() -> None:
    threat, suite = parse_threat("shift:2"), suite_named("semantic", "shift")
    cost = announced_cost(suite, threat, 10, 10)
    assert cost.stages == {
        "random_draws": (101, 0),
        "pgd": (1 + 5 * 51, 250),
        "parameter_search": (1 + 2 * 251, 0),
        "grid": (1 + 27 * 27, 0),
    }
    assert set(cost.images.values()) == {10}
    short = Suite("short", {"draws": RandomDraws(3), "search": ParameterSearch(3), "grid": GridSearch(queries=9)})
    for name, attack in in_full_precision(short).attacks.items():
        assert announced_cost(short, threat, 10, 10).stages[name] == passes_of(attack, threat)


def images(count: int = 12) -> tuple[nn.Module, ImageData]:
    x = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    net = small_network((1, 6, 6)).eval()
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)  # type: ignore[index]
        labels = net(x).argmax(1)
    pixels = (255 * x).round().to(torch.uint8)
    return net, ImageData(pixels, labels, ids=torch.arange(count), classes=("a", "b", "c", "d"), source="random")


def test_every_attack_has_its_own_column_and_the_grid_breaks_most() -> None:
    net, data = images()
    less = {"random_draws": RandomDraws(3), "pgd": PGD(2), "parameter_search": ParameterSearch(5)}
    small = replace(suite_named("semantic", "affine"), attacks={**less, "grid": GridSearch((7, 3, 3))})
    found = evaluate(net, data, parse_threat("affine:rotation=5,shift=0.1"), small, batch_size=12, curve="off")
    broken = {name: columns.broken for name, columns in found.table.attacks.items()}
    tried = {name: int(columns.tried.sum()) for name, columns in found.table.attacks.items()}
    assert set(tried.values()) == {int(found.table.correct.sum())}, "every attack runs on every correct example"
    assert 0 < broken["random_draws"].sum() <= broken["grid"].sum() < len(data)
    assert np.array_equal(found.table.worst_case.broken, np.logical_or.reduce(list(broken.values())))
    assert found.summary.suite.attacks[0].title == "Random draws"


def test_an_attack_that_cannot_search_a_threat_is_refused_with_those_that_can() -> None:
    net, data = images(4)
    with pytest.raises(EvaluationError) as refused:
        evaluate(net, data, parse_threat("shift:1"), "square", batch_size=4)
    assert "'square'" in str(refused.value)
    assert "is defined for linf, l2, l1, the threat is shift:1" in str(refused.value)
    assert "defined for it: pgd, mim, apgd, apgd_t, pma, route_pgd, random_draws, parameter_search, grid" in str(
        refused.value
    )
    with pytest.raises(EvaluationError, match=r"'grid' .* chains of them, the threat is shift:1\+linf:0\.1;"):
        evaluate(net, data, parse_threat("shift:1+linf:0.1"), "grid", batch_size=4)
