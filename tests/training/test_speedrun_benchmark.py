"""The speed run on a GPU: its plan, settings and refusals. Its steps are tried with `--device cpu`."""

import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loading import load_module
from robustly.cli.recipes import read_recipe
from robustly.experiments.configuration import build_config
from robustly.experiments.overrides import apply_overrides

FILE = "benchmarks/gpu/speedrun.py"
OPERATIONS = {"forward": 100, "input_backward": 200, "full_backward": 300}


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    for name in ("gpu_options", "dynat"):  # which it takes parts from
        load_module(f"benchmarks/gpu/{name}.py")
    return load_module(FILE)


def timing(benchmark: ModuleType, step: float = 1e-4, suites: float = 5e-3) -> Any:
    """Timing of a step of 10 passes to the input, 6 to the weights and 1 forward alone."""
    found, longest = {"median": step * 8}, {"median": suites * 50}
    bench = {
        "model": {"operations": OPERATIONS},
        "step": {
            "seconds": found,
            "floor": {"median": step * 16},
            "batch_size": 8,
            "forwards": {"model": 17},
            "backwards": {"model": 16},
            "attack_gradients": 10,
        },
        "suites": [{"suite": name, "upper": longest, "count": 100} for name in ("standard", "pgd_20")],
    }
    return benchmark.timing_of(bench)


def test_the_file_of_the_bench_is_read_in_units_of_an_image(benchmark: ModuleType) -> None:
    found = timing(benchmark)
    assert (found.step, found.floor) == (pytest.approx(1e-4), pytest.approx(2e-4))
    assert found.passes == (10, 6, 1)
    assert found.suites == {"standard": pytest.approx(2.5e-3), "pgd_20": pytest.approx(2.5e-3)}


def test_steps_cost_their_passes(benchmark: ModuleType) -> None:
    """10 x 200 + 6 x 300 + 100 = 3900 operations; with two attack steps 2300."""
    assert timing(benchmark).share(10) == 1
    assert timing(benchmark).share(2) == pytest.approx(2300 / 3900)


@pytest.mark.parametrize("step", [2e-5, 1e-4, 1.5e-4, 2e-4, 1e-3])
def test_a_plan_fits_into_the_time(benchmark: ModuleType, step: float) -> None:
    found, images, left, starting, whole = timing(benchmark, step), 49_000, 480.0, 15.0, 525.0
    plan = benchmark.planned(found, images, 10_000, left, starting, whole)
    training = plan.epochs * images * step * found.share(plan.steps)
    assert plan.epochs == 2 or training <= benchmark.MARGIN * plan.training
    assert plan.training + plan.evaluation + starting + benchmark.GRACE == pytest.approx(left)
    assert plan.evaluation <= benchmark.EVALUATED * whole + benchmark.GRACE + 1
    more = benchmark.STEPS.index(plan.steps)
    if more:  # with more attack steps there would be too few epochs
        steps = benchmark.STEPS[more - 1]
        assert plan.training * benchmark.MARGIN / (images * step * found.share(steps)) < benchmark.ENOUGH + 1e-9


def test_plans_keep_within_their_limits(benchmark: ModuleType) -> None:
    fast = benchmark.planned(timing(benchmark, 1e-7), 49_000, 10_000, 480, 15, 525)
    assert (fast.steps, fast.epochs, fast.tested) == (10, benchmark.MOST, 10_000)
    slow = benchmark.planned(timing(benchmark, 1.0, 10.0), 49_000, 10_000, 480, 15, 525)
    assert (slow.steps, slow.epochs) == (2, 2)
    assert 1 <= slow.tested < 100


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("epochs", [2, 37])
def test_settings_are_those_of_the_recipe_with_the_plan(benchmark: ModuleType, device: str, epochs: int) -> None:
    plan = benchmark.Plan(5, epochs, 2000, 1, 1)
    values = benchmark.settings(benchmark.SCALES[device], Path("data"), device, 1000, plan)
    words = [f"--{key}={value}" for key, value in values.items()]
    config = build_config(apply_overrides(read_recipe(benchmark.RECIPE), words))
    assert config.threats_text == "linf:8/255"
    assert (config.training.epochs, config.data.test_limit) == (epochs, 2000)
    assert config.method_settings["inner"]["steps"] == 5
    assert config.method_settings["inner"]["step_size"] is None
    assert set(config.method_settings["parameters"]) == {"awp", "ema"}
    config.method.check_epochs(epochs)


def test_the_verdict_is_that_of_the_suite(benchmark: ModuleType) -> None:
    def said(accuracy: float) -> str:
        found: str = benchmark.verdict({"standard": {"worst_case": {"accuracy": accuracy}}})
        return found

    assert said(0.5).endswith("was reached.")
    assert said(0.4999).endswith("was missed.")
    assert "was not measured" in benchmark.verdict({})


@pytest.mark.slow
def test_a_timing_without_time_ends_in_one_sentence(benchmark: ModuleType, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(SystemExit, match="the timing did not end in half of the time"):
        benchmark.timed(tmp_path, benchmark.SCALES["cpu"], {"data.source": str(tmp_path)}, 0.1)
    assert time.monotonic() - began < 30
