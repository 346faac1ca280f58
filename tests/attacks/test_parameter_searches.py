"""Random draws, random search and the grid over the parameters of threats, without gradients."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import PGD, Attack, AttackError, GridSearch, ParameterSearch, RandomDraws
from robustly.attacks.grid_search import grid
from robustly.attacks.parameter_search import proposal
from robustly.objectives import ClassificationGoal, margin
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack, small_network
from robustly.threats import Rotation, parse_threat

BOXES = tuple(parse_threat(text) for text in ("affine:rotation=90,shift=2", "rotation:90+shift:2"))
BALLS = tuple(parse_threat(text) for text in ("linf:0.4", "l2:2", "rotation:60+linf:0.3"))
DRAWS = KeyedGenerator(0, torch.arange(6))
LABELS = torch.zeros(6, dtype=torch.int64)


@pytest.mark.slow
@pytest.mark.parametrize("threats", [BOXES, BALLS], ids=["boxes", "balls"])
@pytest.mark.parametrize("attack", [RandomDraws(6), ParameterSearch(6, restarts=2)], ids=["draws", "search"])
def test_random_searches_keep_the_contract(attack: Attack, threats: tuple) -> None:
    check_attack(attack, threats, targeted=True)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [GridSearch(queries=30), GridSearch((3, 3, 2))], ids=["queries", "counts"])
def test_the_grid_keeps_the_contract(attack: Attack) -> None:
    check_attack(attack, BOXES, targeted=True)


class Place(nn.Module):
    """Class 1 where the one white pixel of an image is within `reach` of a place from the centre, else class 0."""

    def __init__(self, right: float, down: float, reach: float) -> None:
        super().__init__()
        self.place, self.reach = (right, down), reach

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        total = x.sum((1, 2, 3)) + 1e-12
        column = (x.sum((1, 2)) * (torch.arange(width) - width // 2)).sum(1) / total
        row = (x.sum((1, 3)) * (torch.arange(height) - height // 2)).sum(1) / total
        near = self.reach - torch.hypot(column - self.place[0], row - self.place[1])
        return torch.stack([torch.zeros_like(near), near], 1)


class Centred(nn.Module):
    """A random network whose classes are about equally frequent among some images."""

    def __init__(self, x: Tensor, seed: int = 0) -> None:
        super().__init__()
        self.net = small_network(tuple(x.shape[1:]), seed=seed).eval()
        with torch.no_grad():
            self.mean = self.net(x).mean(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) - self.mean


def victim(count: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    x = KeyedGenerator(seed, torch.arange(count)).uniform(1, 6, 6)
    net = Centred(x, seed)
    with torch.no_grad():
        return net, x, net(x).argmax(1)


def point(count: int = 6) -> Tensor:
    x = torch.zeros(count, 1, 11, 11)
    x[:, :, 5, 5] = torch.linspace(0.5, 1, count).view(-1, 1)
    return x


def test_the_grid_has_both_ends_and_starts_at_the_centre() -> None:
    points = grid((5, 1, 3))
    expected = set(product((0.0, 0.25, 0.5, 0.75, 1.0), (0.5,), (0.0, 0.5, 1.0)))
    assert {tuple(one) for one in points.tolist()} == expected
    assert len(points) == 15
    assert points[0].tolist() == [0.5, 0.5, 0.5]
    assert ((points - 0.5).abs().amax(1).diff() >= 0).all()
    assert grid((4,)).shape == (4, 1)


@pytest.mark.parametrize(
    ("queries", "parameters", "each"),
    [(775, 1, 775), (775, 2, 27), (775, 3, 9), (775, 4, 5), (775, 5, 3), (776, 1, 775), (5, 2, 2), (343, 3, 7)],
)
def test_a_grid_has_as_many_points_as_queries_allow(queries: int, parameters: int, each: int) -> None:
    assert GridSearch(queries=queries).points_of(parameters) == (each,) * parameters


def test_the_grid_of_the_paper_has_775_points_and_costs_them() -> None:
    paper, threat = GridSearch((31, 5, 5)), parse_threat("affine:rotation=30,shift=3")
    found = paper(Place(9, 9, 0.1), point(1), LABELS[:1], threat=threat, generator=DRAWS.select(LABELS[:1]))
    assert (found.forwards.item(), found.backwards.item()) == (776, 0)


def test_an_image_is_turned_to_the_first_angle_of_the_grid_that_breaks_it() -> None:
    """A point three to the right is above the centre after a quarter turn; the angles are 8 degrees apart."""
    x = torch.zeros(6, 1, 11, 11)
    x[:, :, 5, 8] = 1.0
    model = Place(0, -3, 3 * 2 * math.sin(math.radians(5)))  # within ten degrees of a quarter turn
    found = GridSearch((31,))(model, x, LABELS, threat=Rotation(120), generator=DRAWS)
    assert found.broken.all()
    assert found.theta is not None
    assert torch.allclose(found.theta, torch.tensor(88.0))
    assert (found.forwards == 1 + 1 + 2 * 10 + 2).all(), "it stops at the angle: 0, then pairs at 8 to 80, -88, 88"
    assert not GridSearch((31,))(model, x, LABELS, threat=Rotation(70), generator=DRAWS).broken.any()


def test_the_worst_point_of_the_grid_is_kept() -> None:
    """Nothing breaks: the result is the point of highest margin of all, by brute force."""
    threat, (net, x, y) = parse_threat("affine:rotation=3,shift=0.05,scale=0.02"), victim(6)
    allowed, goal = threat.around(x), ClassificationGoal(y)
    low, high = allowed.bounds()
    values = torch.stack(
        [margin(net(allowed.apply(low + (high - low) * share)), goal).detach() for share in grid((3, 3, 3, 3))]
    )
    found = GridSearch((3,))(net, x, y, threat=threat, generator=DRAWS)
    held = ~found.broken
    assert torch.equal(found.broken, (values > 0).any(0))
    assert held.any()
    assert found.margin is not None
    assert torch.allclose(found.margin[held], values.amax(0)[held], atol=1e-5)
    assert torch.allclose(margin(net(found.x_adv), goal)[held], values.amax(0)[held], atol=1e-5)


def test_random_draws_are_those_of_pgd_without_steps() -> None:
    threat, (net, x, y) = parse_threat("affine:rotation=60,shift=2"), victim(6)
    one, other = (
        attack(net, x, y, threat=threat, generator=DRAWS)
        for attack in (RandomDraws(20), PGD(0, margin, restarts=20))
    )
    assert torch.equal(one.x_adv, other.x_adv)
    assert torch.equal(one.broken, other.broken)
    assert torch.equal(one.forwards, other.forwards)
    assert one.broken.any()
    assert int(one.forwards.max()) <= 21


def test_a_search_finds_a_small_place_that_draws_miss() -> None:
    """A disc of radius 0.1 in a square of side 8: a draw hits it once in 2,000, a search climbs to it."""
    threat, model = parse_threat("shift:4"), Place(2.3, -3.1, 0.1)
    drawn = RandomDraws(150)(model, point(), LABELS, threat=threat, generator=DRAWS)
    found = ParameterSearch(150)(model, point(), LABELS, threat=threat, generator=DRAWS)
    assert int(drawn.broken.sum()) <= 1
    assert found.broken.all()
    assert found.theta is not None
    assert torch.allclose(found.theta, torch.tensor([2.3, -3.1]), atol=0.11)
    assert (found.forwards <= 152).all()


def test_a_longer_search_continues_a_shorter_one_only_upwards() -> None:
    """The highest margin of a search of one step size never falls with its queries."""
    threat, model, worst = parse_threat("shift:4"), Place(2.3, -3.1, 0.001), []
    for queries in (0, 5, 20, 60):
        attack = ParameterSearch(queries, first_step=0.5, last_step=0.5)
        found = attack(model, point(), LABELS, threat=threat, generator=DRAWS)
        assert found.margin is not None
        worst.append(found.margin)
    assert (torch.stack(worst).diff(dim=0) >= 0).all()
    assert (worst[-1] > worst[0]).all()


def test_steps_shrink_geometrically_over_the_budget() -> None:
    attack = ParameterSearch(101, first_step=1.0, last_step=0.01)
    assert [attack.step_size(query) for query in (0, 50, 100)] == pytest.approx([1.0, 0.1, 0.01])
    assert ParameterSearch(1).step_size(0) == 1.0


def test_a_move_changes_some_parameters_by_at_most_its_length() -> None:
    many = KeyedGenerator(0, torch.arange(2000))
    allowed = parse_threat("affine:rotation=30,shift=3").around(torch.zeros(2000, 1, 8, 8))
    shares = proposal(allowed, allowed.identity(), many, 0.2) / torch.tensor([30.0, 3, 3])
    changed = (shares != 0).sum(1)
    assert set(changed.tolist()) == {1, 2, 3}
    assert 0.45 < float((shares != 0).float().mean()) < 0.6
    assert float(shares.abs().max()) <= 0.2
    assert float(shares.abs().amax(1).mean()) == pytest.approx(0.1, abs=0.01)
    assert abs(float(shares.mean())) < 0.01


@pytest.mark.parametrize("seed", range(2))
def test_a_dense_grid_breaks_all_that_gradients_and_draws_break(seed: int) -> None:
    net, x, y = victim(30, seed)
    draws, counted = KeyedGenerator(1, torch.arange(30)), []
    for text, counts in (("rotation:8", (81,)), ("affine:rotation=4,shift=0.1", (9, 5, 5))):
        threat = parse_threat(text)
        worst = GridSearch(counts)(net, x, y, threat=threat, generator=draws).broken
        searched = PGD(5, restarts=2)(net, x, y, threat=threat, generator=draws).broken
        searched |= RandomDraws(20)(net, x, y, threat=threat, generator=draws).broken
        assert (worst | ~searched).all(), text
        counted.append(int(searched.sum()))
    assert 0 < min(counted) <= max(counted) < 30, "some examples break, some do not"


def test_what_cannot_be_searched_is_refused_by_name() -> None:
    x = point()
    with pytest.raises(AttackError, match=r"few bounded numbers .*chains of them, the threat is linf:0\.1"):
        GridSearch()(Place(0, 0, 1), x, LABELS, threat=parse_threat("linf:0.1"), generator=DRAWS)
    with pytest.raises(AttackError, match=r"the threat is rotation:30\+linf:0\.1"):
        GridSearch()(Place(0, 0, 1), x, LABELS, threat=parse_threat("rotation:30+linf:0.1"), generator=DRAWS)
    with pytest.raises(AttackError, match="has 2 parameters, the grid has counts for 3"):
        GridSearch((3, 3, 3))(Place(9, 9, 1), x, LABELS, threat=parse_threat("shift:2"), generator=DRAWS)
    with pytest.raises(AttackError, match="3 queries are fewer than two points for each of 2 parameters"):
        GridSearch(queries=3)(Place(9, 9, 1), x, LABELS, threat=parse_threat("shift:2"), generator=DRAWS)
    with pytest.raises(AttackError, match="any threat but l0"):
        ParameterSearch()(Place(9, 9, 1), x, LABELS, threat=parse_threat("l0:2"), generator=DRAWS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomDraws(0), "at least 1, got 0"),
        (lambda: ParameterSearch(-1), "at least 0"),
        (lambda: ParameterSearch(first_step=0.1, last_step=0.5), "shrink"),
        (lambda: GridSearch(()), "whole numbers of at least 1"),
        (lambda: GridSearch((0, 3)), "whole numbers of at least 1"),
        (lambda: GridSearch((2000, 2000)), "at most 1,000,000 points"),
        (lambda: GridSearch(queries=0), "from 1 to 1,000,000"),
    ],
)
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(AttackError, match=message):
        make()
