"""Steps, jobs and simple networks shared by the training tests."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robustly.attacks import AttackResult
from robustly.data import Augmentation, Batch, DataConfig, Splits, load_splits
from robustly.models import ModelConfig, build_model
from robustly.randomness import KeyedGenerator
from robustly.runtime import Runtime, RuntimeConfig
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AuxiliaryNetwork,
    DataLabels,
    Job,
    Method,
    Moment,
    Networks,
    Observer,
    OptimizerConfig,
    Outcome,
    Part,
    ScheduleConfig,
    Step,
    TrainingConfig,
    train,
)

THREAT = ThreatModel("linf", 0.1)


def small_digits(train_limit: int = 150) -> Splits:
    return load_splits(DataConfig(train_limit=train_limit, validation=60, test=40, image_size=16))


def small_net(dropout: float = 0.0, seed: int = 0) -> nn.Module:
    return build_model(ModelConfig(width=0.25, dropout=dropout, image_size=(16, 16)), seed=seed)


class NormNet(nn.Module):
    """A convolution with batch normalisation, and a linear layer."""

    def __init__(self, seed: int = 0, channels: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(channels, 4, 3, stride=2)
            self.norm = nn.BatchNorm2d(4)
            self.head = nn.LazyLinear(10)
            self.head.initialize_parameters(torch.zeros(1, 4 * 49)) if channels == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.conv(x)).relu().flatten(1))
        return logits


class Block(nn.Module):
    """A convolution with normalisation, beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x)).relu()


def blocks_net(seed: int = 0) -> nn.Module:
    """Three blocks between a stem and a head, for digits of 16x16 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        blocks = (Block() for _ in range(3))
        return nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), *blocks, nn.Flatten(), nn.Linear(36, 10))


def double(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


class Constant(nn.Module):
    """A network with the same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(double(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def mlp(seed: int = 0, norm: bool = True, classes: int = 4) -> nn.Module:
    """A double-precision perceptron from 6 numbers to some classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Linear(8, classes)]
    return nn.Sequential(*layers).double()


@dataclass(frozen=True)
class Given(Part):
    """An inner maximisation that returns given points."""

    x_adv: Tensor

    def __call__(self, step: Step) -> AttackResult:
        none = torch.zeros_like(step.y)
        return AttackResult(self.x_adv, none.bool(), self.x_adv.new_zeros(len(none)), *[none] * 3, none.bool())


def make_step(x: Tensor, y: Tensor, model: nn.Module, **changes: Any) -> Step:
    """A step made by hand: arguments of `Step`, and `guide`, `teachers`, `trained`, `threat`, `other_views`."""
    ids = torch.arange(len(y))
    guide, inner = changes.pop("guide", None), changes.get("inner")
    trained = ({} if guide is None else {"guide": guide}) | changes.pop("trained", {})
    networks = Networks(model, trained=trained, frozen=changes.pop("teachers", {}))
    settings: dict[str, Any] = {
        "threats": (changes.pop("threat", THREAT),),
        "moment": Moment(0, 0, 1, 1),
        "label_source": DataLabels(),
        "inner": None,
        "memory": {},
        "attack_steps": 0 if inner is None else inner.steps,
        "replays": 1 if inner is None else inner.replays,
    }
    batch = Batch(x, y, ids, KeyedGenerator(5, ids), changes.pop("other_views", ()))
    return Step(batch, networks, **(settings | changes))


class Stop(Observer):
    """Stop a run after a number of steps, as Ctrl-C does."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.images: set[int] = set()

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        self.left -= 1
        self.images.add(images)
        if self.left == 0:
            raise KeyboardInterrupt


def make_job(splits: Splits, method: Method, model: nn.Module | None = None, **changes: Any) -> Job:
    """A job of two epochs in batches of 32: fields of `Job`, and `guide`, `teachers`, `threat`."""
    training = {"epochs": 2, "batch_size": 32, "validation_steps": 2}
    training |= changes.pop("training", {})
    networks = {name: AuxiliaryNetwork(net, frozen=True) for name, net in changes.pop("teachers", {}).items()}
    if changes.get("guide") is not None:
        networks["guide"] = AuxiliaryNetwork(changes["guide"])
    changes.pop("guide", None)
    job = Job(
        method=method,
        model=small_net() if model is None else model,
        networks=networks | changes.pop("networks", {}),
        train=splits.train,
        validation=splits.validation,
        threats=(changes.pop("threat", THREAT),),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.05),
        schedule=ScheduleConfig(),
        training=TrainingConfig(**training),
        augmentation=Augmentation(),
    )
    return replace(job, **changes)


def run(job: Job, folder: Path, observer: Observer | None = None) -> Outcome:
    folder.mkdir(exist_ok=True)
    return train(job, Runtime(RuntimeConfig(device="cpu")), folder, config_digest="test", observer=observer)


def final(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def last(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    return state


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
