"""Measure the verifier: public sets solved, bounds beside auto_LiRPA, the interval beside AutoAttack.

    ROBUSTLY_SHARED_DATA=FOLDER python benchmarks/verification.py [PART ...] [--count N] [--processes 2]

Parts: `bounds`, `sandwich`, and the sets by name, or `sets` for all lists of FOLDER/verify and `eran` for its
networks. Without a part, all. Answers are kept in `--out` (default runs/verification) and finished ones are not
repeated, so a stopped run goes on; remove a file there to measure it again. auto_LiRPA is the installed package or
the folder in AUTO_LIRPA_PATH; without it, `bounds` is left out. The network of `sandwich` is the run of `--run`,
or trained (a few minutes). Sets take hours at their own time limits. Writes `benchmarks/results/verification.md`.
"""

import argparse
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustly.data import load_test
from robustly.experiments.run_folder import evaluation_data, load_trained, open_run
from robustly.files import write_text
from verification_parts import bounds, sandwich, sets
from verification_parts.networks import Pictured, eran

RESULTS = Path(__file__).parent / "results" / "verification.md"
GROUPS: Mapping[str, tuple[str, ...]] = {"sets": sets.LISTS, "eran": sets.ERAN}
SINGLE = ("bounds", "sandwich")


def measure_bounds(options: argparse.Namespace, out: Path) -> None:
    """ConvSmall of ERAN at two radii, and the network of the sandwich with its padding."""
    torch.set_num_threads(1)
    module, reason = bounds.peer()
    rows = []
    if module is not None:
        given = eran("mnist_conv_small_nat")
        for epsilon in (0.03, given.epsilon):
            rows += bounds.compared("conv_small of ERAN", given, epsilon, options.images, options.rounds)
        padded = Pictured(_network(sandwich.trained(options.run)), given.x, given.y, 0.1)
        rows += bounds.compared("conv_small, padded", padded, padded.epsilon, options.images, options.rounds)
    print(reason, flush=True)
    write_text(out / "bounds.json", json.dumps({"rows": rows, "reason": reason}, indent=1))


def _network(run: Path) -> nn.Sequential:
    """The trained network behind a normalisation that changes nothing."""
    config = open_run(run)
    model, _, _ = load_trained(run, config, load_test(evaluation_data(config)), trusts=lambda name: True)
    return nn.Sequential(nn.Identity(), *_layers(model)).eval()


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a network that applies its parts in order."""
    children = list(model.children())
    return [one for child in children for one in _layers(child)] if children else [model]


def measure_sandwich(options: argparse.Namespace, out: Path) -> None:
    found = sandwich.measured(sandwich.trained(options.run), options.count or 200, options.time)
    write_text(out / "sandwich.json", json.dumps(found, indent=1))


def written(out: Path, command: str) -> str:
    """The page, from what the folder has."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((out / name).read_text("utf-8")) if (out / name).is_file() else {}

    found = read("bounds.json")
    rows = {name: sets.read(out / f"{name}.csv") for group in GROUPS.values() for name in group}
    lines = [
        "# Verification",
        "## Public sets",
        sets.table(rows),
        "Time limits are those of the lists, 60 s for an image; wall time without the start of a process, two "
        "processes at once. ERAN: of the first 100 images, those that are classified correctly.",
        "## Bounds of nine margins",
        bounds.table(found.get("rows", []), found.get("reason", "")),
        f"CPU time for an image of one batch, medians of alternating runs in one process on one thread; alpha: "
        f"{bounds.ITERATIONS} iterations. Margin: mean over images of the worst bound. Difference: largest one of "
        "the CROWN margins from the same bounds of the hidden layers.",
        "## The interval of a PGD-trained network at linf 0.1",
        sandwich.table(read("sandwich.json")),
        f"{datetime.now(UTC):%Y-%m-%d}. `{command}`, torch {torch.__version__}, {platform.machine()}, 2 cores.",
    ]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    names = (*SINGLE, *GROUPS, *(name for group in GROUPS.values() for name in group))
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(names))
    parser.add_argument("--count", type=int, help="only the first instances of a set, images of the sandwich")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="repeat open instances, as on a machine that was busy")
    parser.add_argument("--images", type=int, default=16, help="images of the bounds")
    parser.add_argument("--rounds", type=int, default=7, help="alternating runs of the bounds")
    parser.add_argument("--time", type=float, default=20.0, help="seconds of branch and bound of the sandwich")
    parser.add_argument("--run", type=Path, help="trained run for the sandwich")
    parser.add_argument("--out", type=Path, default=Path("runs/verification"))
    parser.add_argument("--table", action="store_true", help="only write the table again")
    options = parser.parse_args()
    for part in options.parts:
        if part not in names:
            parser.error(f"unknown part {part!r}: use {', '.join(names)}")
    options.run = options.run or options.out / "pgd_at_conv_small"
    options.out.mkdir(parents=True, exist_ok=True)
    single = {"bounds": measure_bounds, "sandwich": measure_sandwich}
    for part in () if options.table else options.parts or (*SINGLE, *GROUPS):
        if part in single:
            single[part](options, options.out)
        for name in GROUPS.get(part, () if part in single else (part,)):
            sets.run(name, options.out, options.processes, options.count, options.again)
        write_text(RESULTS, written(options.out, "python benchmarks/verification.py"))
    write_text(RESULTS, written(options.out, "python benchmarks/verification.py"))
    print(RESULTS.read_text("utf-8"))


if __name__ == "__main__":
    main()
