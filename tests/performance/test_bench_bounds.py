"""Times of bounds, and counted operations."""

import pytest
import torch
from torch import Tensor, nn

from robustly.performance import Meter, measure_bounds
from robustly.performance.operations import counted_operations, operations_of
from robustly.threats import Threat, parse_threat

NET = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
X = torch.full((2, 1, 4, 4), 0.5)


def bounds(model: nn.Module, threat: Threat, seconds: float):
    y = torch.zeros(2, dtype=torch.int64)
    return measure_bounds(model, X, y, threat, forward=0.5, meter=Meter(), seconds=seconds)


@pytest.mark.slow
def test_bounds_are_timed_in_units_of_forward_passes() -> None:
    found = bounds(NET, parse_threat("linf:0.01"), 60.0)
    assert list(found.times) == ["ibp", "crown"]
    assert found.failures == {}
    for one in found.times.values():
        assert one.forwards.median == pytest.approx(one.seconds.median / 0.5)
        assert 0 < one.seconds.median < 30
        assert one.batch_size == 2


def test_bounds_that_are_not_possible_are_named() -> None:
    assert "there are bounds for Lp balls" in bounds(NET, parse_threat("rotation:30"), 1.0).failures["crown"]
    few = bounds(NET, parse_threat("linf:0.01"), 1e-9)
    assert few.times == {}
    assert all("(--seconds)" in reason for reason in few.failures.values())

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x.flatten(1)).abs()[:, :3]

    assert "fft" in bounds(Odd(), parse_threat("linf:0.01"), 1.0).failures["ibp"]


def test_operations_in_closed_form() -> None:
    assert counted_operations(lambda: torch.relu(torch.ones(3, 4) @ torch.ones(4, 5))) == 2 * 3 * 4 * 5
    layers = 2 * (16 * 8 + 8 * 3)
    found = operations_of(NET, X, "float32")
    assert found["forward"] == layers
    assert found["input_backward"] == 2 * layers
    assert found["full_backward"] == 3 * layers - 2 * 16 * 8  # no gradient of the image


def test_a_network_that_fails_has_no_operations() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    assert operations_of(Broken(), X, "float32") == {}
