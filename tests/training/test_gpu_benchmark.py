"""The benchmark of DYNAT on a GPU: its settings, sizes and refusals. Its runs are tried with `--device cpu`."""

import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from loading import ROOT, load_module
from robustly.cli.recipes import read_recipe
from robustly.experiments.configuration import RunConfig, build_config
from robustly.experiments.overrides import apply_overrides

FILE = "benchmarks/gpu/dynat.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    load_module("benchmarks/gpu/gpu_options.py")  # which it takes options from
    return load_module(FILE)


def config(benchmark: ModuleType, device: str, name: str) -> RunConfig:
    bench = benchmark.Bench(Path("data"), Path("out"), device, time.monotonic() + 500)
    recipe, changes = ({"guide": ("cifar10/standard", {})} | benchmark.ARMS)[name]
    settings = bench.settings(recipe, 1000, 7) | changes
    return build_config(
        apply_overrides(read_recipe(recipe), [f"--{key}={value}" for key, value in settings.items()])
    )


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_arms_differ_in_method_and_guide_only(benchmark: ModuleType, device: str) -> None:
    guide = config(benchmark, device, "guide")
    arms = {name: config(benchmark, device, name) for name in benchmark.ARMS}
    for arm in arms.values():
        for part in ("model", "data", "threat", "training", "optimizer", "schedule", "runtime"):
            assert getattr(arm, part) == getattr(arms["AT-CE"], part), part
        assert (arm.method.inner.mode, arm.method.inner.steps) == ("eval", 10)  # type: ignore[union-attr]
        assert arm.method_settings["inner"]["relative_step_size"] == 0.25
    objectives = {name: arm.method_settings["inner"]["objective"] for name, arm in arms.items()}
    assert objectives == {"AT-CE": "cross_entropy", "AT-KL": "kl", "TRADES": "kl", "DYNAT, guided": "kl"}
    assert arms["AT-KL"].method_settings["inner"] == arms["DYNAT, guided"].method_settings["inner"]
    assert arms["DYNAT, guided"].networks["guide"].model == guide.model


def test_planned_images_take_the_time_that_is_given(benchmark: ModuleType) -> None:
    rate, seconds = 2000.0, 300.0
    images = benchmark.planned_images(rate, seconds, 10**9, 128)
    arms = benchmark.ARM_EPOCHS[0] * images / rate
    guide = benchmark.GUIDE_EPOCHS * images / rate / 11
    assert arms + guide == pytest.approx(seconds, rel=1e-3)
    assert benchmark.planned_images(rate, seconds, 5000, 128) == 5000
    assert benchmark.planned_images(1.0, 1.0, 5000, 128) == 256


@pytest.mark.slow
def test_a_failed_process_ends_the_benchmark_with_its_words(benchmark: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "arm0"
    process = benchmark.started(["train", "nothing/here"], folder)
    with pytest.raises(SystemExit, match="unknown recipe"):
        benchmark.finish({folder: process}, 60)


def test_what_is_not_finished_in_time_is_stopped(benchmark: ModuleType, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], cwd=ROOT)
    began = time.monotonic()
    benchmark.finish({tmp_path: process}, 0.5)
    assert process.poll() is not None
    assert time.monotonic() - began < 30
