"""Lines around functions of one variable: closed forms, and tightness where it is known."""

import math

import pytest
import torch
from torch import Tensor

from robustly.certification.operations import Interval, Relaxation, relaxations
from robustly.certification.operations.activations import (
    SIGMOID,
    TANH,
    _gelu_slope,
    _gelu_tanh_slope,
    _silu_slope,
)


def box(*ends: tuple[float, float], dtype: torch.dtype = torch.float64) -> Interval:
    low, high = zip(*ends, strict=True)
    return Interval(torch.tensor([low], dtype=dtype), torch.tensor([high], dtype=dtype))


def numbers(extra: Relaxation) -> list[list[float]]:
    offsets = [
        torch.zeros_like(extra.upper_slope) if one is None else one
        for one in (extra.lower_offset, extra.upper_offset)
    ]
    return [
        one.expand_as(extra.upper_slope)[0].tolist()
        for one in (extra.lower_slope, offsets[0], extra.upper_slope, offsets[1])
    ]


def close(*values: float) -> list[object]:
    return [pytest.approx(value, abs=1e-12) for value in values]


def test_relu_by_hand():
    found = numbers(relaxations.relu(box((-1, 2), (-2, 1), (1, 3), (-3, -1), (0, 2), (-2, 0), (0, 0), (-1, 1))))
    assert found[0] == [1, 0, 1, 0, 1, 0, 0, 0]
    assert found[1] == [0] * 8
    assert found[2] == close(2 / 3, 1 / 3, 1, 0, 1, 0, 1, 0.5)
    assert found[3] == close(2 / 3, 2 / 3, 0, 0, 0, 0, 0, 0.5)


def test_free_slope_of_relu_counts_only_where_the_sign_is_open():
    free = torch.tensor([[0.25, 0.25, 0.25]], dtype=torch.float64)
    assert numbers(relaxations.relu(box((-1, 2), (1, 3), (-3, -1)), free))[0] == [0.25, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chord_of_relu_is_sound_in_exact_arithmetic(dtype: torch.dtype):
    """With fractions: the line of the rounded numbers is at or above the ends of the interval."""
    from fractions import Fraction

    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** torch.randint(-30, 5, (2, 400), generator=generator)
    ends = (torch.rand(2, 400, generator=generator) * sizes).to(dtype)
    extra = relaxations.relu(Interval(-ends[:1], ends[1:]))
    assert extra.upper_offset is not None
    for low, high, slope, offset in zip(
        -ends[0], ends[1], extra.upper_slope[0], extra.upper_offset[0], strict=True
    ):
        line = [Fraction(slope.item()) * Fraction(x.item()) + Fraction(offset.item()) for x in (low, high)]
        assert line[0] >= 0
        assert line[1] >= Fraction(high.item())


def test_absolute_value_and_leaky_relu_by_hand():
    found = numbers(relaxations.kink(box((-1, 2), (-2, 1), (-3, -1)), -1.0))
    assert found[0] == [1, -1, -1]
    assert found[2] == close(1 / 3, -1 / 3, -1)
    assert found[3] == close(4 / 3, 4 / 3, 0)
    steep = numbers(relaxations.kink(box((-1, 2)), 3.0))  # concave: the chord is below
    assert [steep[0][0], steep[1][0]] == close(5 / 3, -4 / 3)
    assert [steep[2][0], steep[3][0]] == close(1, 0)


def test_clip_by_hand():
    found = numbers(relaxations.clip(box((-1, 0.5), (0.5, 3), (-3, 2), (0.2, 0.8), (-2, -1), (2, 3)), 0.0, 1.0))
    # Lower line at the ends, upper line at the ends: closest valid ones.
    assert found[2] == close(1 / 3, 0, 0.25, 1, 0, 0)
    assert found[3] == close(1 / 3, 1, 0.75, 0, 0, 1)
    assert found[0] == close(0, 0.2, 0, 1, 0, 0)
    assert found[1] == close(0, 0.4, 0, 0, 0, 1)


def test_s_shaped_on_one_side_of_its_centre():
    found = numbers(relaxations.s_shaped(box((0, 2), (-2, 0)), TANH, 0.0))
    slope, chord = 1 - math.tanh(1) ** 2, math.tanh(2) / 2
    assert found[0] == close(chord, slope)
    assert found[1] == close(0, slope - math.tanh(1))
    assert found[2] == close(slope, chord)
    assert found[3] == close(math.tanh(1) - slope, 0)


def test_s_shaped_across_its_centre():
    """Above [-1, 4]: the tangent through the lower end; above [-3, 1]: the chord."""
    extra = relaxations.s_shaped(box((-1, 4), (-3, 1)), SIGMOID, 0.5)
    slope, offset = extra.upper_slope[0], extra.upper_offset[0]
    sigmoid = torch.sigmoid(torch.tensor([-1.0, -3.0, 1.0, 4.0], dtype=torch.float64))
    assert (-slope[0] + offset[0]).item() == pytest.approx(sigmoid[0].item(), abs=1e-12)
    assert (4 * slope[0] + offset[0]).item() > sigmoid[3].item() + 0.01
    assert slope[1].item() == pytest.approx(((sigmoid[2] - sigmoid[1]) / 4).item(), abs=1e-12)
    mirrored = relaxations.s_shaped(box((-4, 1), (-1, 3)), SIGMOID, 0.5)
    torch.testing.assert_close(mirrored.lower_slope, extra.upper_slope)
    torch.testing.assert_close(mirrored.lower_offset, 1 - extra.upper_offset)


@pytest.mark.parametrize(
    ("value", "slope", "curvature", "tail", "error"),
    [
        (torch.nn.functional.gelu, _gelu_slope, 0.81, 6.0, 1e-8),
        (lambda x: torch.nn.functional.gelu(x, approximate="tanh"), _gelu_tanh_slope, 0.81, 6.0, 1e-8),
        (torch.nn.functional.silu, _silu_slope, 0.51, 16.0, 2e-6),
        (SIGMOID.value, SIGMOID.slope, SIGMOID.curvature, None, None),
        (TANH.value, TANH.slope, TANH.curvature, None, None),
    ],
)
def test_constants_of_smooth_functions(value, slope, curvature: float, tail: float | None, error: float | None):
    """Derivative, bound of the second derivative and distance from relu in the tails, on a fine grid."""
    x = torch.linspace(-40, 40, 200_001, dtype=torch.float64).requires_grad_()
    (first,) = torch.autograd.grad(value(x).sum(), x, create_graph=True)
    torch.testing.assert_close(slope(x), first, rtol=1e-9, atol=1e-12)
    second = ((first[1:] - first[:-1]) / (x[1:] - x[:-1])).detach().abs()
    assert float(second.max()) < curvature
    assert float(second.max()) > 0.95 * curvature
    if tail is not None:
        outside = x.detach()[x.detach().abs() >= tail]
        assert float((value(outside) - outside.relu()).abs().max()) < error


@pytest.mark.parametrize("function", [torch.nn.functional.gelu, torch.nn.functional.silu])
def test_sampled_lines_are_close_to_the_function_at_the_ends(function):
    slope = _gelu_slope if function is torch.nn.functional.gelu else _silu_slope
    interval = box((-1, 1), (-2, 3), (0.5, 0.9))
    extra = relaxations.sampled(interval, relaxations.Smooth(function, slope, 0.81), 16.0, 2e-6)
    for end in interval:
        above = extra.upper_slope * end + extra.upper_offset - function(end)
        assert float(above.max()) < 0.002


def test_product_by_hand():
    """x in [-1, 2], z in [0, 3]: every plane touches the product in three corners."""
    first, second = box((-1, 2)), box((0, 3))
    for part, slopes, offset in ((0.0, (0, -1), 0.0), (1.0, (3, 2), -6.0)):
        extra = relaxations.product(first, second, torch.full((1, 1), part, dtype=torch.float64))
        assert extra.lower_slope[0, 0].tolist() == close(*slopes)
        assert extra.lower_offset.item() == pytest.approx(offset, abs=1e-12)
    extra = relaxations.product(first, second, torch.zeros(1, 1, dtype=torch.float64))
    assert extra.upper_slope[0, 0].tolist() == close(0, 2)
    assert extra.upper_offset.item() == pytest.approx(0, abs=1e-12)


def line_above(extra: Relaxation, x: Tensor) -> Tensor:
    return extra.upper_slope * x + extra.upper_offset


@pytest.mark.parametrize("width", [1e-7, 1e-5, 9e-4, 1.1e-3, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_narrow_intervals_stay_tight(width: float, dtype: torch.dtype):
    start = torch.linspace(-3, 3, 61, dtype=dtype).unsqueeze(0)
    extra = relaxations.s_shaped(Interval(start, start + width), TANH, 0.0)
    gap = line_above(extra, start) - (extra.lower_slope * start + extra.lower_offset)
    assert float(gap.max()) < width**2 + 1e3 * torch.finfo(dtype).eps
