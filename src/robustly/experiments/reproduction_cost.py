"""The time that the runs of a reproduction take, from passes that are timed on this machine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from robustly.attacks.core.contract import frozen
from robustly.evaluation.batch_size import pass_seconds
from robustly.evaluation.suites.composed import suite_from
from robustly.evaluation.suites.cost import announced_cost
from robustly.experiments.configuration import RunConfig
from robustly.experiments.sweeps import Cell
from robustly.models import ModelConfig, build_model
from robustly.training.cost import step_cost

BATCH = 16
START = 3.0
"""Seconds in which a process of a run starts."""
HELD_OUT = 500
"""Validation images of a run whose settings do not state their number."""
UNBROKEN = 0.5
"""Share of the test images that attacks are assumed to leave."""

PassTime = Callable[[ModelConfig], float]
"""Seconds of a forward with a backward pass of one image through a network."""


@dataclass(frozen=True)
class DataSize:
    """Size of a data set.

    Args:
        classes: number of classes.
        shape: channels, height and width.
        train: images for training.
        test: images for tests.
    """

    classes: int
    shape: tuple[int, int, int]
    train: int
    test: int


def seconds_of(
    cells: Sequence[Cell], configs: Mapping[str, RunConfig], sizes: Mapping[str, DataSize], device: torch.device
) -> float:
    """Seconds of all cells, one after another.

    Args:
        cells: the runs.
        configs: their settings by name.
        sizes: sizes of the data sets, by the folder of the recipe.
        device: where passes are timed.
    """
    known: dict[tuple[object, ...], float] = {}
    total = 0.0
    for cell in cells:
        config, data = configs[cell.name], sizes[cell.recipe.partition("/")[0]]

        def of(model: ModelConfig, cell: Cell = cell, data: DataSize = data) -> float:
            key = (model.name, model.width, data.shape, cell.threads)
            if key not in known:
                with _threads(cell.threads):
                    known[key] = timed_pass(model, data, device)
            return known[key]

        if not cell.is_trained:
            total += training_seconds(config, data, of) + before_and_between(config, data, of)
        total += evaluation_seconds(cell, config, data, of) + START * len(cell.commands)
    return total


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """The number of threads of a run, which has fewer than this process if several run at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed_pass(config: ModelConfig, data: DataSize, device: torch.device) -> float:
    """Seconds of a forward with a backward pass of one image, timed on random images."""
    channels, height, width = data.shape
    images = torch.rand(BATCH, channels, height, width, generator=torch.Generator().manual_seed(0))
    fitted = replace(config, weights=None).for_images(data.classes, channels, (height, width))
    model = build_model(fitted, 0, images=images).to(device).eval()
    with frozen(model):
        return pass_seconds(model, images.to(device)) / BATCH


def training_seconds(config: RunConfig, data: DataSize, of: PassTime) -> float:
    """Seconds of the training steps of a run: its counted passes through each network, at the time of one."""
    cost = step_cost(config.method, config.training.epochs, config.frozen_networks, config.threats)
    models = {"model": config.model, **{name: network.model for name, network in config.networks.items()}}
    passes = {name: cost.forwards.get(name, 0) + cost.backwards.get(name, 0) for name in models}
    per_image = sum(passes[name] / 2 * of(model) for name, model in models.items())
    return _training_images(config, data) * config.training.epochs * per_image


def before_and_between(config: RunConfig, data: DataSize, of: PassTime) -> float:
    """Seconds of the epochs before a run (`model.pretrain`), and of the validation after each of its epochs."""
    images = _training_images(config, data)
    alone = [(config.model, config.pretrain)]
    alone += [(network.model, network.pretrain) for network in config.networks.values()]
    before = sum(images * epochs * of(model) for model, epochs in alone if epochs)
    attacked = UNBROKEN * config.training.validation_steps + 1
    return before + (config.data.validation or HELD_OUT) * config.training.epochs * attacked * of(config.model)


def _training_images(config: RunConfig, data: DataSize) -> int:
    return min(config.data.train_limit or data.train, data.train)


def evaluation_seconds(cell: Cell, config: RunConfig, data: DataSize, of: PassTime) -> float:
    """Seconds of the evaluations that a run does not have yet, if attacks leave half of the images."""
    test = min(config.data.test_limit or data.test, data.test)
    seconds = 0.0
    for evaluation in (one for one in cell.evaluations if not one.is_done(cell.folder)):
        words = dict(zip(evaluation.words[::2], evaluation.words[1::2], strict=True))
        suite = suite_from(words["--suite"], None, config.threat)
        images = min(int(words.get("--evaluation.count", test)), test)
        cost = announced_cost(suite, config.threat, images, data.classes)
        seconds += UNBROKEN * cost.seconds(of(config.model))
    return seconds
