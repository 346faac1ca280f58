"""Gradients and landscapes against closed forms."""

import pytest
import torch
from torch import Tensor, nn

from robustly.analysis.input_gradients import (
    edge_agreement,
    gini,
    gradient_statistics,
    high_frequency_share,
    relative_variation,
    summarised,
)
from robustly.analysis.landscapes import input_landscapes, weight_landscape
from robustly.models.weight_directions import filter_normalised
from robustly.randomness import KeyedGenerator
from robustly.testing.networks import small_network
from robustly.threats.lp import ThreatModel

WEIGHT = torch.tensor([[0.0, 0, 0, 0], [2, 2, 2, 2], [6, 0, 0, 0], [3, 3, 0, 0]], dtype=torch.float64)
BIAS = torch.tensor([0, -4.8, -3.9, -3.606], dtype=torch.float64)
CENTRE = torch.full((3, 1, 2, 2), 0.5, dtype=torch.float64)
LABELS = torch.zeros(3, dtype=torch.int64)


def linear(weight: Tensor, bias: Tensor) -> nn.Module:
    """The model of R1, in train mode so that a leak shows."""
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    return nn.Sequential(nn.Flatten(), layer)


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[2.0, 0.0]], dtype=x.dtype).expand(len(x), 2)


class Explodes(nn.Module):
    """Fails after some calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.net, self.calls = small_network((1, 4, 4)), calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("out of luck")
        logits: Tensor = self.net(x)
        return logits


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("norm", "epsilon", "radius", "nearest"),
    [("linf", 0.1, 0.1, 1), ("l2", 0.1, 0.606 / 18**0.5, 3), ("l1", 0.1, 0.15, 2)],
)
def test_the_first_order_radius_of_a_linear_model_is_exact(
    norm: str, epsilon: float, radius: float, nearest: int
) -> None:
    found = gradient_statistics(linear(WEIGHT, BIAS), CENTRE, LABELS, ThreatModel(norm, epsilon), batch_size=2)
    assert found.radius.tolist() == pytest.approx([radius] * 3)
    assert found.nearest.tolist() == [nearest] * 3


def test_the_gradient_of_a_linear_model_has_its_closed_form() -> None:
    expected = torch.tensor([2.071544, 1.055724, 0.374218, 0.374218], dtype=torch.float64)  # R1
    found = gradient_statistics(linear(WEIGHT, BIAS), CENTRE, LABELS, ThreatModel("linf", 0.1))
    assert found.l1.tolist() == pytest.approx([float(expected.sum())] * 3, rel=1e-5)
    assert found.l2.tolist() == pytest.approx([float(expected.norm())] * 3, rel=1e-5)


def test_wrong_images_have_radius_zero_and_flat_models_an_infinite_one() -> None:
    x = torch.rand(2, 1, 4, 4)
    found = gradient_statistics(Constant(), x, torch.tensor([0, 1]), ThreatModel("linf", 0.1))
    assert found.correct.tolist() == [True, False]
    assert found.radius.tolist() == [float("inf"), 0.0]
    assert found.l1.tolist() == [0.0, 0.0]
    plain = summarised(found, ThreatModel("linf", 0.1))
    assert (plain["zero_gradients"], plain["radius"]["unreachable"], plain["radius"]["beyond_epsilon"]) == (2, 1, 1)
    assert plain["measures"]["edges"]["median"] is None
    assert plain["radius"]["histogram"] is None


def test_summaries_count_every_example_once() -> None:
    net = small_network((1, 4, 4))
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = torch.arange(40) % 4
    found = gradient_statistics(net, x, y, ThreatModel("l2", 0.5))
    plain = summarised(found, ThreatModel("l2", 0.5))
    for name in ("l1", "edges", "concentration"):
        measure = plain["measures"][name]
        assert sum(measure["histogram"]["counts"]) == measure["count"] == 40
        assert measure["median"] == pytest.approx(float(getattr(found, name).double().quantile(0.5)))
    assert sum(plain["radius"]["histogram"]["counts"]) == plain["correct"] == int(found.correct.sum())
    assert plain["radius"]["beyond_epsilon"] == int((found.radius > 0.5).sum())


@pytest.mark.slow
def test_statistics_do_not_depend_on_the_batches_and_leave_the_model_alone() -> None:
    net = small_network((3, 5, 4))
    before = state_of(net)
    x, y = torch.rand(7, 3, 5, 4), torch.arange(7) % 4
    whole = gradient_statistics(net, x, y, ThreatModel("linf", 0.1))
    parts = gradient_statistics(net, x, y, ThreatModel("linf", 0.1), batch_size=3)
    torch.testing.assert_close(whole.radius, parts.radius)
    torch.testing.assert_close(whole.high_frequency, parts.high_frequency)
    assert_untouched(net, before)


def test_gradients_along_an_edge_agree_with_it_and_others_do_not() -> None:
    image = torch.zeros(2, 1, 16, 16)
    image[..., 8:] = 1.0
    gradient = torch.zeros(2, 1, 16, 16)
    gradient[0, ..., 7:9] = 1.0
    gradient[1, ..., 0] = 1.0
    on, off = edge_agreement(gradient, image).tolist()
    assert on > 0.8
    assert off < 0.05
    assert edge_agreement(torch.zeros(1, 1, 16, 16), image[:1]).isnan().all()


def test_unrest_and_fine_detail_of_a_constant_and_a_checkerboard() -> None:
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)[None, None]
    maps = torch.cat([torch.ones_like(board), board])
    assert relative_variation(maps).tolist() == pytest.approx([0.0, 2 * 2 * 15 * 16 / 256])
    assert high_frequency_share(maps).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


def test_gini_of_equal_single_and_graded_values() -> None:
    values = torch.tensor([[1.0, 1, 1, 1], [0, 0, 5, 0], [1, 2, 3, 4], [0, 0, 0, 0]])
    found = gini(values)
    assert found[:3].tolist() == pytest.approx([0.0, 0.75, 0.25])
    assert bool(found[3].isnan())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_landscape_of_a_constant_model_is_flat(norm: str) -> None:
    threat = ThreatModel(norm, 1 if norm == "l0" else 0.1)
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    found = input_landscapes(Constant(), x, y, threat, KeyedGenerator(0, torch.arange(2)), points=5)
    found.append(weight_landscape(Constant(), x[:1], y[:1], points=5))
    for surface, wrong in zip(found, (0.0, 1.0, 0.0), strict=True):
        assert surface.smoothness() == {"roughness": 0.0, "largest_roughness": 0.0, "misclassified_share": wrong}
        assert (surface.loss == surface.loss[0, 0]).all()


def test_input_landscapes_go_along_the_gradient_and_a_random_direction() -> None:
    net, threat = linear(WEIGHT, BIAS), ThreatModel("linf", 0.101)
    (surface,) = input_landscapes(net, CENTRE[:1], LABELS[:1], threat, KeyedGenerator(3, LABELS[:1]), points=5)
    step = torch.full((1, 1, 2, 2), 0.101, dtype=torch.float64)  # the sign of R1's gradient is + everywhere
    with torch.no_grad():
        expected = [
            nn.functional.cross_entropy(net(CENTRE[:1] + a * step), LABELS[:1]).item() for a in (-2, -1, 0, 1, 2)
        ]
    assert surface.loss[2].tolist() == pytest.approx(expected)
    assert surface.axis.tolist() == [-2, -1, 0, 1, 2]
    assert surface.margin is not None
    assert float(surface.margin[2, 2]) == pytest.approx(-0.606)
    assert surface.misclassified[2].tolist() == [0, 0, 0, 1, 1]  # the radius is 0.1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_both_directions_have_the_length_of_epsilon(norm: str) -> None:
    from robustly.analysis.landscapes import _directions

    threat = ThreatModel(norm, 0.3)
    gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    x = torch.zeros_like(gradient)
    for direction in _directions(gradient, norm, 0.3, KeyedGenerator(0, torch.arange(4))):
        assert threat.distance(x + direction, x).tolist() == pytest.approx([0.3] * 4, rel=1e-5)


@pytest.mark.slow
def test_the_random_direction_of_an_image_hangs_on_its_id_alone() -> None:
    net, threat = small_network((1, 4, 4)), ThreatModel("linf", 0.2)
    x, y, ids = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2]), torch.tensor([5, 9, 7])
    together = input_landscapes(net, x, y, threat, KeyedGenerator(0, ids), points=3)
    (alone,) = input_landscapes(net, x[2:], y[2:], threat, KeyedGenerator(0, ids[2:]), points=3)
    torch.testing.assert_close(together[2].loss, alone.loss)


def test_landscapes_leave_the_model_bit_for_bit_also_after_a_failure() -> None:
    x, y, threat = torch.rand(4, 1, 4, 4), torch.arange(4), ThreatModel("l2", 0.5)
    net = small_network((1, 4, 4))
    before = state_of(net)
    input_landscapes(net, x, y, threat, KeyedGenerator(0, y), points=3)
    surface = weight_landscape(net, x, y, points=3)
    assert_untouched(net, before)
    assert surface.loss[0, 0] != surface.loss[1, 1]
    broken = Explodes(4)
    before = state_of(broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        weight_landscape(broken, x, y, points=3)
    assert_untouched(broken, before)
    with pytest.raises(RuntimeError, match="out of luck"):
        input_landscapes(broken, x, y, threat, KeyedGenerator(0, y), points=3)
    assert_untouched(broken, before)


@pytest.mark.slow
def test_the_middle_of_the_weight_landscape_is_the_model_in_evaluation_mode() -> None:
    net = small_network((1, 4, 4))
    x, y = torch.rand(6, 1, 4, 4), torch.arange(6) % 4
    surface = weight_landscape(net, x, y, points=5, seed=4)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(net.eval()(x), y)
    torch.testing.assert_close(surface.loss[2, 2], expected)
    again, other = weight_landscape(net, x, y, points=5, seed=4), weight_landscape(net, x, y, points=5, seed=5)
    assert torch.equal(surface.loss, again.loss)
    assert not torch.equal(surface.loss, other.loss)


def test_weight_directions_are_as_long_as_each_filter_and_spare_biases_and_norms() -> None:
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 3))
    own = {name: value.detach() for name, value in net.named_parameters()}
    drawn = {name: filter_normalised(name, value, seed=1) for name, value in own.items()}
    found = {name: direction for name, direction in drawn.items() if direction is not None}
    assert set(found) == {"0.weight", "3.weight"}
    for name, direction in found.items():
        rows = filter_normalised(name, own[name][1:3], seed=1, first=1)
        assert rows is not None
        assert torch.equal(rows, direction[1:3]), "some filters have their share of the direction"
        torch.testing.assert_close(direction.flatten(1).norm(dim=1), own[name].flatten(1).norm(dim=1))


@pytest.mark.parametrize(("points", "extent"), [(4, 1.0), (1, 1.0), (5, 0.0)])
def test_a_grid_without_a_middle_is_refused(points: int, extent: float) -> None:
    with pytest.raises(ValueError, match="odd number of points"):
        weight_landscape(Constant(), torch.rand(1, 1, 4, 4), LABELS[:1], points=points, extent=extent)
