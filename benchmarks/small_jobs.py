"""Compare verdict and CPU time of our suites with torchattacks' AutoAttack on few images and foreign networks.

    ROBUSTLY_SHARED_DATA=FOLDER python benchmarks/small_jobs.py [--out FOLDER] [--counts 16,100,500] [--victims ...]

The victims are plain PyTorch networks trained by a plain loop of projected gradient steps below, without any part
of this project: a linear network and a tiny convolutional one on the shipped digits, and a narrow ResNet-14 on
`cifar10-jpeg/{train,test}.parquet` in FOLDER (8/255; JPEG re-encoded images, so that numbers are not comparable
with published ones). They are trained where they are not there yet (20 CPU minutes for the ResNet).

Every tool evaluates the first test images by the same call as a user's: torchattacks' four attacks of AutoAttack
from survivor to survivor, and `evaluate` with all that it does (diagnostics, tuning, 8-bit images) but for the
security curve, which torchattacks has no counterpart of. CPU time of the process, one thread; passes are counted
at the model, for every tool alike. Finished rows are kept and not run again. Writes
`benchmarks/results/small_jobs.md`.
"""

import argparse
import os
import platform
import sys
import time
import warnings
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoattack_tools import measured
from robustly import ThreatModel
from robustly.data import DataConfig, ImageData, load_splits, load_test

RESULTS = Path(__file__).parent / "results" / "small_jobs.md"
TOOLS = ("torchattacks", "aa_standard", "quick", "standard", "strong")
TOOL_TITLES = {"torchattacks": "AutoAttack, torchattacks", **{name: f"`{name}`" for name in TOOLS[1:]}}


class Scaled(nn.Module):
    """Shift and scale of the input, as the first layer of a network."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x) + self.shortcut(x))


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)
    )


def narrow_resnet() -> nn.Module:
    widths = (16, 32, 64)
    blocks: list[nn.Module] = []
    for before, after in zip((16, *widths), widths, strict=False):
        blocks += [Block(before, after, 1 if after == 16 else 2), Block(after, after, 1)]
    stem = [Scaled(0.47, 0.25), nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@dataclass(frozen=True)
class Victim:
    """A network, its data and its adversarial training."""

    title: str
    build: type | object
    epsilon: float
    epochs: int
    images: int
    rate: float
    steps: int


VICTIMS = {
    "linear": Victim("a linear network, digits, linf 0.1", linear, 0.1, 10, 4000, 0.05, 5),
    "tiny": Victim("a tiny convolutional network, digits, linf 0.15", tiny, 0.15, 15, 4000, 0.02, 5),
    "resnet": Victim(
        "a narrow ResNet-14, CIFAR-10 (JPEG q75), linf 8/255", narrow_resnet, 8 / 255, 10, 25_000, 0.1, 2
    ),
}


def adversarial(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
    """Projected gradient ascent from a random start: the inner loop of adversarial training."""
    size = 1.25 * epsilon / steps
    moved = (x + (2 * torch.rand_like(x) - 1) * epsilon).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(moved).float(), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = (moved.detach() + size * gradient.sign()).clamp(x - epsilon, x + epsilon).clamp(0, 1)
    return moved.detach()


def trained(name: str, train: ImageData, folder: Path) -> nn.Module:
    """The network of a victim, trained now if its weights are not in the folder."""
    victim, file = VICTIMS[name], folder / f"{name}.pt"
    torch.manual_seed(0)
    model = victim.build().to(memory_format=torch.channels_last)
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    count = min(victim.images, len(train))
    per_epoch = -(-count // 128)
    optimiser = torch.optim.SGD(model.parameters(), lr=victim.rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, victim.rate, total_steps=victim.epochs * per_epoch)
    for epoch in range(victim.epochs):
        total = 0.0
        for rows in torch.randperm(count).split(128):
            x, y = train.floats(rows), train.labels[rows]
            if x.shape[1] == 3:
                x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
                top, left = torch.randint(0, 9, (2,)).tolist()
                x = F.pad(x, (4, 4, 4, 4))[:, :, top : top + 32, left : left + 32]
            x = x.contiguous(memory_format=torch.channels_last)
            model.eval()
            moved = adversarial(model, x, y, min(1, (epoch + 1) / 5) * victim.epsilon, victim.steps)
            model.train()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(moved).float(), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"{name}, epoch {epoch + 1}: loss {total / count:.3f}, {time.process_time():.0f} CPU s", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model.eval()


def table(rows: dict[tuple[int, str], dict[str, object]]) -> str:
    """One line per number of images and tool, costs relative to torchattacks."""
    lines = [
        "| images | evaluation | robust | broken only here / only by torchattacks | CPU s | less time | passes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (count, name), row in rows.items():
        base = rows[count, "torchattacks"]
        theirs, robust = torch.tensor(base["robust"]), torch.tensor(row["robust"])
        differ = f"{int((theirs & ~robust).sum())} / {int((robust & ~theirs).sum())}"
        lines.append(
            f"| {count} | {TOOL_TITLES[name]} | {int(robust.sum())} | {differ} | {row['seconds']:.2f} "
            f"| {base['seconds'] / row['seconds']:.1f}x | {row['forwards'] + row['backwards']:,} |"
        )
    return "\n".join(lines)


def data_of(name: str) -> tuple[ImageData, ImageData]:
    """Training and test images of a victim."""
    source = "mnist5k"
    if name == "resnet":
        shared = os.environ.get("ROBUSTLY_SHARED_DATA")
        if not shared or not (Path(shared) / "cifar10-jpeg").is_dir():
            sys.exit("set ROBUSTLY_SHARED_DATA to a folder with cifar10-jpeg/train.parquet and test.parquet")
        source = str(Path(shared) / "cifar10-jpeg")
    config = DataConfig(source=source)
    return load_splits(config).train, load_test(config)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/small_jobs"))
    parser.add_argument("--counts", default="16,100,500")
    parser.add_argument("--victims", default=",".join(VICTIMS))
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--tag", default="", help="suffix of the records, for trials")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    parts = []
    for name in options.victims.split(","):
        victim = VICTIMS[name]
        train, test = data_of(name)
        model = trained(name, train, options.out)
        threat = ThreatModel("linf", "8/255" if name == "resnet" else victim.epsilon)
        rows: dict[tuple[int, str], dict[str, object]] = {}
        for count in map(int, options.counts.split(",")):
            data = test.select(torch.arange(count))
            for tool in options.tools.split(","):
                tag = "" if tool == "torchattacks" else options.tag
                record = options.out / "records" / f"{name}-{tool}-{count}{tag}.json"
                rows[count, tool] = measured(tool, model, data, threat, record)
                found = rows[count, tool]
                print(name, count, tool, sum(found["robust"]), f"{found['seconds']:.2f} s", flush=True)
        if "torchattacks" in options.tools:
            parts.append(f"## {victim.title[0].upper()}{victim.title[1:]}\n\n{table(rows)}\n")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchattacks"))
    text = (
        "# Our suites beside AutoAttack on few images\n\n" + "\n".join(parts) + "\n"
        "CPU time of one process and one thread, one run each, with diagnostics, tuning and 8-bit images but\n"
        "without the security curve. Passes are single images, forward and backward, counted at the model for\n"
        "every tool alike. torchattacks' attacks get survivors only, as in AutoAttack. The networks were trained\n"
        "by a plain loop, without this project.\n\n"
        f"{date.today()}, `python benchmarks/small_jobs.py --counts {options.counts} --victims {options.victims}`, "
        f"{versions}, {platform.machine()}.\n"
    )
    print(text)
    if not options.tag and set(options.tools.split(",")) == set(TOOLS):
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
