"""Protocols: the settings of TaFD's columns, the threats of `unforeseen`, and their announced passes."""

import math

import pytest
import torch

from robustly.attacks import APGD, PGD
from robustly.cli.protocol_tables import protocol_costs
from robustly.evaluation import PROTOCOLS, suite_named
from robustly.evaluation.suites.cost import announced_cost, attack_cost
from robustly.evaluation.suites.passes import passes_of
from robustly.evaluation.suites.protocol import PLANES
from robustly.evaluation.suites.unforeseen import earlier_threats, kinds_in, usual_threats
from robustly.objectives import cross_entropy, margin
from robustly.threats import Planes, Subspace, Threat, parse_threat

SHAPE = (3, 8, 8)
SIZE = 3 * 8 * 8
TAFD = ("tafd_v10", "tafd_v20")


def threat_of(text: str, size: int = SIZE) -> Threat:
    if text.endswith(f"@{PLANES}"):
        return Subspace(2, Planes(torch.eye(4, size)[None]))
    return parse_threat(text)


def test_the_columns_are_those_of_the_paper_with_its_budgets() -> None:
    v10, v20 = (PROTOCOLS[name].threats(SHAPE) for name in TAFD)
    curves = ("ace:16", "recolor:0.06+linf:8/255", "hsv_curve:16", "lightness:16", "retouch:1")
    assert v10 == ("linf:8/255", "l2:0.5", *curves)
    assert v20 == ("linf:8/255", "l2:0.5", "ace:16", "subspace:2@planes", "flow:0.6975")
    for name in TAFD:
        for text in PROTOCOLS[name].threats(SHAPE):
            threat = threat_of(text)
            (attack,) = suite_named(name, threat).attacks.values()
            assert attack.needs.accept(threat)
            passes = (102, 101) if threat.kind in ("linf", "l2") else (12, 10)
            assert attack_cost(attack, threat, 10, SIZE) == passes
            # all columns search from one start, those of APGD on cross-entropy
            assert attack.restarts == 1  # type: ignore[attr-defined]
            is_ce = threat.kind in ("linf", "l2", "subspace", "flow")
            assert attack.objective is (cross_entropy if is_ce else margin)  # type: ignore[attr-defined]
            assert isinstance(attack, APGD if threat.kind in ("linf", "l2") else PGD)


@pytest.mark.parametrize("name", TAFD)
def test_the_announced_passes_are_those_that_are_counted(name: str) -> None:
    for text in PROTOCOLS[name].threats(SHAPE):
        threat = threat_of(text)
        suite = suite_named(name, threat)
        (attack,) = suite.attacks.values()
        counted = passes_of(attack, threat, 3)
        assert attack_cost(attack, threat, 3, SIZE) == counted, text
        assert announced_cost(suite, threat, 7, 3, SIZE).total == 7 * (1 + sum(counted))


@pytest.mark.parametrize(("kind", "count"), [("ace", 3), ("hsv_curve", 3), ("lightness", 1)])
def test_a_step_on_curves_has_length_1_in_slopes_over_their_number(kind: str, count: int) -> None:
    (attack,) = suite_named("tafd_v10", kind).attacks.values()
    allowed = parse_threat(f"{kind}:16").around(torch.rand(2, 3, 4, 4))
    assert isinstance(attack, PGD)
    start, size = allowed.identity(), attack.step_sizes(allowed)
    upwards = torch.rand(start.shape) + 0.1
    moved = (allowed.step(start, upwards, size) - start).flatten(1) / 64
    assert torch.allclose(moved.norm(dim=1), torch.ones(2), atol=1e-5)
    assert math.isclose(float(size[0]), math.sqrt(64 / count), rel_tol=1e-6)


def test_a_flow_of_the_paper_moves_what_its_grid_moves() -> None:
    # offsets of 0.045 of a grid of 32 points from -1 to 1
    threat = threat_of(PROTOCOLS["tafd_v20"].threats((3, 32, 32))[-1])
    grid = torch.linspace(-1, 1, 32)
    assert float(threat.extent) * float(grid[1] - grid[0]) == pytest.approx(0.045, rel=1e-5)


@pytest.mark.parametrize("name", TAFD)
def test_threats_that_a_protocol_does_not_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"the suite {name} has attacks for the threats linf, l2, ace, .*rotation"):
        suite_named(name, "rotation")


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 224, 224), (1, 12, 9)])
def test_every_usual_threat_can_be_searched_on_its_images(shape: tuple[int, int, int]) -> None:
    texts = usual_threats(shape)
    kinds = frozenset().union(*(kinds_in(parse_threat(text)) for text in texts))
    assert kinds >= {"linf", "l2", "l1", "rotation", "shift", "brightness", "flow", "patch", "corruption"}
    assert ("hue" in kinds) == (shape[0] == 3)
    for text in texts:
        threat = parse_threat(text)
        threat.around(torch.zeros(0, *shape))
        suite = suite_named("unforeseen", threat)
        assert all(attack.needs.accept(threat) for attack in suite.attacks.values()), text
        assert set(suite.attacks) >= set(suite_named("standard", threat).attacks)
        assert suite.curve is None
        assert all(suite.title(attack) != attack for attack in suite.attacks), "every stage has a title"


def test_digits_have_the_corruptions_of_mnist_c_too() -> None:
    both = "corruption:3", "mnist_c:1"
    assert usual_threats((1, 28, 28))[-2:] == both
    assert earlier_threats((1, 28, 28)) == (usual_threats((1, 28, 28))[:-1],)
    for shape in ((3, 28, 28), (1, 32, 32), (1, 28, 30), (3, 32, 32)):
        assert usual_threats(shape)[-1] == both[0]
        assert earlier_threats(shape) == ()
    *_, (text, attacks, cost) = protocol_costs(PROTOCOLS["unforeseen"], (1, 28, 28), 10, 10)
    assert (text, attacks) == (both[1], "Every corruption")
    assert cost.per_image == 2 + 15  # the image before the search and in it, and each corruption


def test_searches_without_gradients_suit_the_threat() -> None:
    more = {
        text: set(suite_named("unforeseen", parse_threat(text)).attacks)
        - set(suite_named("standard", parse_threat(text)).attacks)
        for text in ("linf:0.1", "corruption:2", "flow:1", "rotation:9", "rotation:9+shift:1", "rotation:9&shift:1")
    }
    search = "parameter_search"
    assert list(more.values()) == [
        set(), set(), {search}, {search, "grid"}, {search, "grid"}, {search, "composite"}
    ]  # fmt: skip


def test_kinds_of_chains_and_of_the_affine_family_are_those_of_their_parts() -> None:
    assert kinds_in(parse_threat("affine:rotation=3,shift=1")) == {"rotation", "shift"}
    assert kinds_in(parse_threat("rotation:3&linf:0.1")) == {"rotation", "linf"}
    assert kinds_in(parse_threat("l2:1")) == {"l2"}
