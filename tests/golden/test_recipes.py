"""A little run of every recipe: it ends with the very weights that it had before, and with those of a run that was
stopped twice and resumed."""

from pathlib import Path

import pytest
import runs
import torch
from comparing import VALUES, compare
from safetensors.torch import load_file

from robustly.cli.recipes import read_recipe
from robustly.experiments.configuration import build_config
from robustly.experiments.overrides import apply_overrides
from robustly.experiments.run_folder import build_job
from robustly.models import ModelConfig, build_model
from robustly.runtime import Runtime, RuntimeConfig
from robustly.training import Job, Moment, Observer, train

pytestmark = pytest.mark.slow
STEPS_PER_EPOCH = 3  # 90 images in batches of 32


class Stop(Observer):
    """Stops a run as Ctrl-C would, after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher, and images besides the digits."""
    folder = tmp_path_factory.mktemp("files")
    net = build_model(ModelConfig(width=0.25, image_size=(16, 16)), seed=0)
    return runs.write_teacher(folder, net), runs.write_extra(folder)


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A recipe, and the folder of a little run of it. One run serves both tests."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.train(request.param, folder, *files)
    return request.param, folder


def little_job(recipe: str, files: tuple[Path, Path]) -> Job:
    words = [word for key, value in runs.little_settings(recipe, *files).items() for word in (f"--{key}", value)]
    return build_job(build_config(apply_overrides(read_recipe(recipe), words)), lambda name: False)


def go(job: Job, folder: Path, observer: Observer | None = None) -> None:
    train(job, Runtime(RuntimeConfig(device="cpu")), folder, config_digest="test", observer=observer)


@pytest.mark.parametrize("whole", VALUES["recipes"], indirect=True)
def test_a_recipe_ends_with_the_same_weights(whole: tuple[str, Path], same_arithmetic: bool) -> None:
    recipe, folder = whole
    compare(runs.released(folder), VALUES["recipes"][recipe], same_arithmetic)


@pytest.mark.parametrize("whole", runs.recipes(), indirect=True)
def test_a_stopped_run_ends_as_an_unbroken_one(
    whole: tuple[str, Path], files: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, folder = whole
    job = little_job(recipe, files)
    steps = STEPS_PER_EPOCH * job.method.replays
    with pytest.raises(KeyboardInterrupt):
        go(job, tmp_path, Stop(steps + 2))  # in the second epoch
    with pytest.raises(KeyboardInterrupt):
        go(little_job(recipe, files), tmp_path, Stop(steps + 1))  # in the third
    go(little_job(recipe, files), tmp_path)
    assert_same(load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors"), "released")
    one, other = (torch.load(path / "checkpoints/last.pt", weights_only=True) for path in (folder, tmp_path))
    for kind in ("networks", "memory"):
        assert one[kind].keys() == other[kind].keys()
        for name, tensors in one[kind].items():
            assert_same(tensors, other[kind][name], name)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], of: str) -> None:
    assert one.keys() == other.keys(), of
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), (of, name)
