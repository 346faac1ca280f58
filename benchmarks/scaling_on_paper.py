"""Compute what large training and evaluation need, from counted passes, counted operations and measured speed.

    robustly bench --recipe mnist5k/pgd_at --json bench.json      # on the machine in question
    python benchmarks/scaling_on_paper.py --bench bench.json [--peak 989 --share 0.35 --memory 141]

Nothing here was run on a GPU. The throughput of a device is a parameter: its published peak, times the share of it
that passes reach. With the file of `robustly bench` from a GPU, that share is measured instead. Operations are
counted by PyTorch on tensors without values. Writes `benchmarks/results/scaling.md`.
"""

import argparse
import datetime
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustly.cli.recipes import read_recipe
from robustly.evaluation import as_suite
from robustly.evaluation.suites.cost import announced_cost, attack_cost
from robustly.experiments.configuration import build_config
from robustly.files import write_text
from robustly.models.wide_resnet import WideResNet
from robustly.performance import duration_words, peak_bytes
from robustly.performance.operations import counted_operations
from robustly.threats.lp import ThreatModel
from robustly.training.cost import StepCost, step_cost

RESULTS = Path(__file__).parent / "results" / "scaling.md"
META = torch.device("meta")
IMAGES, EPOCHS, BATCH = 1_281_167, 100, 1024
"""Training images of ImageNet, and an assumed length and batch of a run."""
SIZES = (32, 64, 224)
METHODS = {"PGD-AT": "pgd_at", "TRADES": "trades", "MART": "mart", "DYNAT": "dynat"}
DEVICES = (1, 8, 64)
TESTED, CLASSES, CHUNK = 50_000, 1000, 128
"""Test images of ImageNet, its classes, and images that a process takes at a time."""
RESNET_50 = 8.2e9
"""Operations of a forward pass of ResNet-50 at 224 x 224, as published (4.1 billion products and sums)."""
GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A device by its published figures, and an assumption.

    Args:
        peak: operations per second at its peak.
        share: share of the peak that passes reach.
        memory: bytes.
        link: bytes per second to another device of the same machine, in one direction.
        network: bytes per second to a device of another machine.
    """

    peak: float
    share: float
    memory: float
    link: float
    network: float

    def seconds(self, operations: float) -> float:
        return operations / (self.peak * self.share)


@dataclass(frozen=True)
class Needs:
    """Counted needs of one image of a network.

    Args:
        forward: operations of a forward pass.
        both: the same with a backward pass to the input.
        whole: the same with a backward pass to the weights.
        activations: most bytes of activations alive in a pass, in float32.
        saved: bytes of the inputs of all residual blocks, in float32.
        block: most bytes of activations within one block.
    """

    forward: float
    both: float
    whole: float
    activations: int
    saved: int
    block: int


def needs_of(model: nn.Module, size: int) -> Needs:
    """Count the operations and bytes of one image on tensors without values."""
    x = torch.empty(1, 3, size, size, device=META)

    def to_input() -> None:
        here = x.clone().requires_grad_()
        torch.autograd.grad(model(here).sum(), here)

    def to_weights() -> None:
        torch.autograd.grad(model(x).sum(), list(model.parameters()))

    for one in model.parameters():
        one.requires_grad_(False)
    forward, both = counted_operations(lambda: model(x)), counted_operations(to_input)
    activations = peak_bytes(to_input, META)
    saved: list[int] = []
    within: list[int] = []
    hooks = [
        one.register_forward_pre_hook(lambda module, given: saved.append(given[0].numel() * 4))
        for one in model.modules()
        if type(one).__name__ == "_Block"
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    for one in model.modules():
        if type(one).__name__ == "_Block":
            within.append(_block_bytes(model, one, x))
            if len(within) == 2:  # the widest images are in the first blocks
                break
    for one in model.parameters():
        one.requires_grad_(True)
    return Needs(forward, both, counted_operations(to_weights), activations, sum(saved), max(within))


def _block_bytes(model: nn.Module, block: nn.Module, x: Tensor) -> int:
    """Most bytes alive in a pass to the input of one block."""
    given: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda module, values: given.append(values[0]))
    model(x)
    hook.remove()

    def work() -> None:
        here = given[0].detach().requires_grad_()
        torch.autograd.grad(block(here).sum(), here)

    return peak_bytes(work, META)


def step_operations(cost: StepCost, needs: Needs) -> float:
    """Operations of one image in a training step; networks beside the model are as large as it."""
    total = 0.0
    for name, forwards in cost.forwards.items():
        backwards = cost.backwards[name]
        to_input = min(cost.attack_gradients, backwards) if name == "model" else 0
        total += to_input * needs.both + (backwards - to_input) * needs.whole
        total += max(forwards - backwards, 0) * needs.forward
    return total


def cost_of(recipe: str) -> StepCost:
    config = build_config(read_recipe(f"cifar10/{recipe}"))
    return step_cost(config.method, config.training.epochs, config.frozen_networks, config.threats)


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(columns)} |",
        f"| {' | '.join(['---'] * len(columns))} |",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def measured(found: dict[str, Any], device: Device) -> tuple[list[str], float | None]:
    """Table of a file of `robustly bench` in operations per second, and the share of the peak if it is of a GPU."""
    model, rows, share = found["model"], [], None
    operations = model["operations"]
    kinds = {"forward": "forward", "input_backward": "to the input", "full_backward": "to the weights"}
    for precision in dict.fromkeys(one["precision"] for one in found["passes"]["times"]):
        for kind, words in kinds.items():
            some = [
                one["seconds"]["median"] / one["batch_size"]
                for one in found["passes"]["times"]
                if one["kind"] == kind and one["precision"] == precision and one["seconds"]
            ]
            if some:
                speed = operations[kind] / min(some) if kind in operations else None
                rows.append([precision, words, f"{1000 * min(some):.3g}", f"{speed / 1e9:.1f}" if speed else ""])
                if found["device"].startswith("cuda") and kind == "input_backward" and speed:
                    share = max(share or 0.0, speed / device.peak)
    about = found["machine"]
    title = (
        f"`{model['name']}`, {model['parameters']:,} parameters, images of "
        f"{' x '.join(map(str, model['image']))}, on {about['gpu'] or about['processor']} "
        f"({found['device']}, {found['clock']} clock):"
    )
    columns = ["precision", "pass", "ms of an image", "10^9 operations per second"]
    return [title, "", *table(columns, rows)], share


def training_tables(device: Device, needs: dict[int, Needs], parameters: int) -> list[str]:
    """Operations, device hours and network of a training run."""
    rows, traffic = [], []
    for title, recipe in METHODS.items():
        cost = cost_of(recipe)
        cells = []
        for size in SIZES:
            hours = device.seconds(step_operations(cost, needs[size]) * IMAGES * EPOCHS) / 3600
            cells.append(f"{hours:,.0f}")
        rows.append([title, f"{sum(cost.forwards.values())} / {sum(cost.backwards.values())}", *cells])
        networks = sum(1 for name, count in cost.forwards.items() if count)
        passes = sum(cost.forwards.values()) + sum(cost.backwards.values())
        learning = sum(1 for name, count in cost.backwards.items() if count)
        reduced = 2 * 4 * parameters * learning  # a ring sends each gradient about twice
        gathered = 2 * parameters * passes + 4 * parameters * learning  # weights in bfloat16 for every pass
        step = device.seconds(step_operations(cost, needs[32]) * BATCH / 64)
        traffic.append(
            [
                title,
                str(networks),
                f"{reduced / 1e9:.1f}",
                f"{reduced / device.network:.2f}",
                f"{gathered / 1e9:.1f}",
                f"{gathered / device.network:.2f}",
                f"{step:.2f}",
            ]
        )
    return [
        f"Device hours of {EPOCHS} epochs on {IMAGES:,} images, by the side of the images:",
        "",
        *table(["method", "passes of an image, forward / backward", *(f"{size} px" for size in SIZES)], rows),
        f"Network: what each of 64 devices sends in a step of {BATCH} images, and the seconds for it between "
        "machines, beside those of the passes at 32 px (the case in which the network weighs most):",
        "",
        *table(
            [
                *("method", "networks", "data parallel, GB", "s", "FSDP, GB", "s", "passes, s"),
            ],
            traffic,
        ),
    ]


def memory_table(device: Device, needs: dict[int, Needs], parameters: int) -> list[str]:
    """Bytes of strategies, and the images that fit on a device."""
    rows = []
    weights = 4 * parameters
    for title, fixed, factor in (
        ("one network in float32, SGD with momentum, on every device", 3 * weights, 1.0),
        ("the same with a guide that is trained too, and averaged weights (DYNAT)", 7 * weights, 1.0),
        ("bf16-mixed", 3 * weights + weights / 2, 0.5),
        ("bf16-mixed, FSDP over 8 devices", (3 * weights + weights / 2) / 8 + weights / 2 / 10, 0.5),
        ("bf16-mixed, FSDP, activation checkpointing", (3 * weights + weights / 2) / 8 + weights / 2 / 10, 0.0),
    ):
        cells = []
        for size in SIZES:
            one = needs[size]
            each = one.activations * factor if factor > 0 else (one.saved + one.block) / 2
            cells.append(f"{max(int((device.memory - fixed) / each), 0):,} ({each / 2**20:,.0f} MiB)")
        rows.append([title, f"{fixed / GIB:.1f}", *cells])
    return [
        f"Memory: bytes that do not depend on the batch, and images that fit into {device.memory / 1e9:.0f} GB "
        "beside them (bytes of an image). Activations in bfloat16 are taken as half of those in float32; with "
        "checkpointing, the inputs of the blocks and one block are kept:",
        "",
        *table(["strategy", "fixed, GiB", *(f"{size} px" for size in SIZES)], rows),
    ]


def evaluation_table(device: Device, needs: dict[int, Needs], overhead: float) -> list[str]:
    """AutoAttack on the test images of ImageNet."""
    threat, rows = ThreatModel("linf", 4 / 255), []
    suite = as_suite("aa_standard", threat)
    forwards, backwards = (
        sum(attack_cost(attack, threat, CLASSES)[place] for attack in suite.attacks.values()) for place in (0, 1)
    )
    nets = {"ResNet-50, 224 px": (RESNET_50, 2 * RESNET_50)}
    nets |= {f"WRN-70-16, {size} px": (needs[size].forward, needs[size].both) for size in SIZES}
    for title, (forward, both) in nets.items():
        image = device.seconds(backwards * both + (forwards - backwards) * forward) * overhead
        for robust in (1.0, 0.4):
            whole = image * TESTED * robust
            tail = image * CHUNK
            cells = [duration_words(whole / count + (tail if count > 1 else 0)) for count in DEVICES]
            rows.append([title, f"{100 * robust:.0f} %", f"{whole / 3600:,.0f}", *cells])
    total = announced_cost(suite, threat, TESTED, CLASSES).total
    stored = TESTED * 3 * 224 * 224 * 4
    return [
        f"AutoAttack (`aa_standard`) takes {forwards:,} forward and {backwards:,} backward passes for an image "
        f"that it does not break, {total:,} passes for {TESTED:,} such images. Time by the share of images that it "
        f"does not break, {overhead:.2f} times the bare passes in the precision of the search "
        "(measured on the CPU above, median of the attacks). On several devices, a last "
        f"chunk of {CHUNK} images comes on top:",
        "",
        *table(
            [
                "network",
                "unbroken",
                "device hours",
                *(f"{count} device{'s' if count > 1 else ''}" for count in DEVICES),
            ],
            rows,
        ),
        f"The adversarial images of one attack on {TESTED:,} images of 224 x 224 in float32 take up to "
        f"{stored / GIB:.0f} GiB.",
        "",
    ]


def main() -> None:
    """Compute, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", type=Path, nargs="*", default=[], help="files of `robustly bench --json`")
    parser.add_argument(
        "--peak", type=float, default=989.0, help="published peak in bfloat16, 10^12 operations / s"
    )
    parser.add_argument("--share", type=float, default=0.35, help="assumed share of the peak, if none is measured")
    parser.add_argument("--memory", type=float, default=141.0, help="memory of a device, GB")
    parser.add_argument("--link", type=float, default=450.0, help="GB/s between devices of a machine")
    parser.add_argument("--network", type=float, default=50.0, help="GB/s of a device to other machines")
    options = parser.parse_args()
    found = [json.loads(file.read_text()) for file in options.bench]
    device = Device(
        options.peak * 1e12, options.share, options.memory * 1e9, options.link * 1e9, options.network * 1e9
    )
    tables, shares = [], []
    for one in found:
        lines, share = measured(one, device)
        tables += lines
        shares += [] if share is None else [share]
    if shares:
        device = Device(device.peak, max(shares), device.memory, device.link, device.network)
    ratios = [attack["own_ratio"]["median"] for one in found for attack in one["attacks"].values()]
    overhead = max(1.0, statistics.median(ratios)) if ratios else 1.0
    with META:
        net = WideResNet(70, 16.0, classes=CLASSES).eval()
    parameters = sum(p.numel() for p in net.parameters())
    needs = {size: needs_of(net, size) for size in SIZES}
    how = "measured by `robustly bench`" if shares else "**an assumption, not measured: no GPU was available**"
    operations = [
        [f"{size} px", *(f"{getattr(needs[size], kind) / 1e9:,.0f}" for kind in ("forward", "both", "whole"))]
        for size in SIZES
    ]
    pixels = IMAGES * 3 * 224 * 224
    lines = [
        "# Scaling on paper",
        "",
        f"A device has a published peak of {options.peak:g} x 10^12 operations per second in bfloat16 and "
        f"{options.memory:g} GB (H200-class), sends {options.link:g} GB/s within a machine and {options.network:g} "
        f"GB/s to another one. Passes reach {100 * device.share:.0f} % of the peak, which is {how}; all times "
        "are in inverse proportion to it.",
        "",
        "## Measured",
        "",
        *(tables or ["No file of `robustly bench` was given.", ""]),
        "## WRN-70-16",
        "",
        f"{parameters:,} parameters for {CLASSES:,} classes. 10^9 operations of one image, counted:",
        "",
        *table(["images", "forward", "to the input", "to the weights"], operations),
        *training_tables(device, needs, parameters),
        *memory_table(device, needs, parameters),
        f"The training images in 8 bits take {pixels / GIB:.0f} GiB at 224 px, {pixels * 64**2 / 224**2 / GIB:.0f} "
        f"GiB at 64 px and {pixels * 32**2 / 224**2 / GIB:.1f} GiB at 32 px.",
        "",
        "## AutoAttack on ImageNet",
        "",
        *evaluation_table(device, needs, overhead),
        f"`python benchmarks/scaling_on_paper.py --bench ...`, {datetime.date.today()}, torch {torch.__version__}.",
        "",
    ]
    write_text(RESULTS, "\n".join(lines))
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
