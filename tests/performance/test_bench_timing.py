"""Repeated measurements, bare passes and peak memory."""

from collections.abc import Iterator

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from robustly.cli.bench_tables import passes_table
from robustly.performance import (
    KINDS,
    BenchError,
    Meter,
    Passes,
    alternating,
    measure_passes,
    peak_bytes,
    weight_bytes,
)
from robustly.performance import timing as timing_module
from robustly.performance.passes import Copies, PassTime, bare_pass
from robustly.performance.timing import Spread, spread_of

CPU = torch.device("cpu")


class FakeClock:
    """A clock that the works themselves advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setitem(timing_module.CLOCKS, "wall", lambda: self.now)

    def work(self, *seconds: float):
        left: Iterator[float] = iter(seconds)

        def run() -> None:
            self.now += next(left)

        return run


def test_names_are_whole_in_a_table_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    slow = Spread(0.123, 0.1, 0.2, 5)
    times = [PassTime(kind, "bfloat16", "channels_last", 512, slow) for kind in KINDS]
    Console(width=80).print(passes_table(Passes(tuple(times)), "a title"))
    assert "│   512 │ bfloat16  │ channels-last │" in capsys.readouterr().out


def test_median_and_quartiles() -> None:
    assert spread_of([4.0, 1.0]) == Spread(2.5, 1.0, 4.0, 2)
    assert spread_of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert spread_of([5.0, 1.0, 3.0, 2.0, 4.0]).times(2) == Spread(6.0, 4.0, 8.0, 5)


def test_the_first_run_does_not_count_and_ratios_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    works = {"slow": clock.work(100, 2, 4, 12), "bare": clock.work(50, 1, 2, 3)}
    found = alternating(works, Meter(), 1000.0, most=3)
    assert found.seconds == {"slow": [2, 4, 12], "bare": [1, 2, 3]}
    assert found.spread("slow") == Spread(4, 2, 12, 3)
    assert found.ratio("slow", lambda one: one["bare"]) == Spread(2, 2, 4, 3)


def test_works_take_turns_and_time_ends_the_rounds() -> None:
    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    alternating(works, Meter(), 0.0, least=2, most=9)
    assert order == ["a", "b"] * 3


def test_a_work_that_fails_is_left_out() -> None:
    def fails() -> None:
        raise RuntimeError("too small\nsecond line")

    def memory() -> None:
        raise MemoryError

    found = alternating({"bad": fails, "good": lambda: None, "large": memory}, Meter(), 0.0, least=1)
    assert found.failures == {"bad": "RuntimeError: too small", "large": "not enough memory"}
    assert list(found.seconds) == ["good"]
    assert alternating({"bad": fails}, Meter(), 10.0).seconds == {}


class Net(nn.Module):
    """A network with batch normalisation that refuses some batch sizes."""

    def __init__(self, *refused: int) -> None:
        super().__init__()
        self.conv, self.norm, self.refused = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), refused

    def forward(self, x: Tensor) -> Tensor:
        if len(x) in self.refused:
            raise RuntimeError(f"no batches of {len(x)}")
        return self.norm(self.conv(x)).mean((2, 3))


def images(count: int) -> Tensor:
    return torch.linspace(0, 1, count * 48).reshape(count, 1, 6, 8)


def test_passes_of_every_kind_leave_the_model_as_it_is() -> None:
    model = Net().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure_passes(model, images, Meter(), sizes=(1, 4), seconds=1.0)
    assert {(one.kind, one.precision, one.layout, one.batch_size) for one in found.times} == {
        (kind, precision, layout, size)
        for kind in ("forward", "input_backward", "full_backward")
        for precision in ("float32", "bfloat16")
        for layout in ("contiguous", "channels_last")
        for size in (1, 4)
    }
    assert all(one.seconds is not None and 0 < one.seconds.low <= one.seconds.high for one in found.times)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(one.requires_grad and one.grad is None for one in model.parameters())


def test_a_model_that_fails_at_one_batch_size_is_measured_at_others() -> None:
    found = measure_passes(Net(1), images, Meter(), sizes=(1, 4), seconds=1.0)
    failed = [one for one in found.times if one.seconds is None]
    assert {one.batch_size for one in failed} == {1}
    assert failed[0].failure == "RuntimeError: no batches of 1"
    assert found.best("forward").batch_size == 4
    with pytest.raises(BenchError, match="the model fails in every pass: RuntimeError: no batches of 1"):
        measure_passes(Net(1, 16), images, Meter(), sizes=(1,), seconds=1.0)


def test_batch_sizes_that_take_too_long_are_left_out_but_for_the_first() -> None:
    found = measure_passes(Net(), images, Meter(), sizes=(2, 4, 64), seconds=1e-6)
    assert found.left_out == (4, 64)
    assert {one.batch_size for one in found.times} == {2}


def test_the_first_batch_of_several_images_may_take_longer() -> None:
    found = measure_passes(Net(), images, Meter(), sizes=(1, 4, 64), seconds=0.02)
    assert {one.batch_size for one in found.times} >= {1, 4}


def test_double_precision_and_vectors_are_measured_in_their_own_type() -> None:
    model = nn.Sequential(nn.Linear(5, 3)).double()
    found = measure_passes(model, lambda count: torch.ones(count, 5), Meter(), sizes=(2,), seconds=0.2)
    assert found.precisions == ("float64", "bfloat16")
    assert {one.layout for one in found.times} == {"contiguous"}


def test_a_pass_computes_in_its_precision_layout_and_mode() -> None:
    seen: list[tuple[torch.dtype, bool, bool]] = []

    class Spy(Net):
        def forward(self, x: Tensor) -> Tensor:
            last = x.is_contiguous(memory_format=torch.channels_last)
            seen.append((x.dtype, last, self.training))
            return super().forward(x)

    copies, x = Copies(Spy(), {}), torch.rand(2, 3, 6, 8)[:, :1].repeat(1, 1, 1, 1)
    copies.model.conv = nn.Conv2d(2, 3, 3)
    x = torch.rand(2, 2, 6, 8)
    bare_pass(copies, x, "forward", "bfloat16", "channels_last")()
    bare_pass(copies, x, "full_backward", "float32", "contiguous")()
    assert seen == [(torch.bfloat16, True, False), (torch.float32, False, True)]


def test_peak_memory_counts_what_is_alive_at_one_time() -> None:
    def work() -> None:
        one = torch.zeros(1000, dtype=torch.uint8)
        two = torch.zeros(500, dtype=torch.uint8)
        one.add_(1).view(10, 100)  # no new memory
        del one
        three = torch.zeros(700, dtype=torch.uint8)
        del two, three

    assert peak_bytes(work, CPU) == 1500


def test_peak_memory_counts_activations_and_gradients() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    x = torch.ones(50, 100)

    def forward_and_back() -> None:
        (x @ weight).relu().sum().backward()
        weight.grad = None

    found = peak_bytes(forward_and_back, CPU)
    assert found >= 4 * (100 * 100 + 50 * 100)  # the gradient, and the result of relu
    assert found <= 4 * (100 * 100 + 5 * 50 * 100)


def test_bytes_of_weights() -> None:
    assert weight_bytes(nn.Linear(3, 4), nn.Linear(1, 1).double()) == 4 * 16 + 8 * 2
