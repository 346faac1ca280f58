"""The interval [certified, attacked] of a PGD-trained network beside AutoAttack: its width, its share, its time."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from robustly import Result, certify, evaluate
from robustly.cli import main as robustly
from robustly.cli.recipes import recipe_names
from robustly.data import load_test
from robustly.experiments.run_folder import evaluation_data, load_trained, open_run

RECIPE = "mnist5k/pgd_at_conv_small"
THREAT = "linf:0.1"


def trained(folder: Path) -> Path:
    """The run of the recipe, trained if it is not there."""
    if not (folder / "model.safetensors").is_file():
        if RECIPE not in recipe_names():
            raise SystemExit(f"there is no recipe {RECIPE}: name a trained run with --run")
        if robustly(["train", RECIPE, "--out", str(folder)]) != 0:
            raise SystemExit("training failed")
    return folder


def measured(run: Path, count: int, seconds: float | None) -> dict[str, Any]:
    """CPU seconds of all evaluations of the same images on one thread, and the shares that they found.

    Args:
        run: folder of a trained run.
        count: number of test images, from the first.
        seconds: limit of the branch and bound of all images; None for none.
    """
    torch.set_num_threads(1)
    config = open_run(run)
    data = load_test(evaluation_data(config))
    model, _, _ = load_trained(run, config, data, trusts=lambda name: True)
    images = data.select(torch.arange(min(count, len(data))))
    runs: dict[str, Callable[[], Result]] = {
        "attack and proofs": lambda: certify(model, images, THREAT, seconds=seconds, halvings=0, progress=False),
        "with radii": lambda: certify(model, images, THREAT, seconds=seconds, progress=False),
        "AutoAttack": lambda: evaluate(
            model, images, THREAT, "aa_standard", mode="worst_case", curve="off", progress=False
        ),
    }
    rows = []
    for name, run_one in runs.items():
        begin, wall = time.process_time(), time.monotonic()
        result = run_one()
        cpu, wall = time.process_time() - begin, time.monotonic() - wall
        print(name, cpu, wall, result, flush=True)
        interval = result.interval
        rows.append(
            {
                "name": name,
                "verified": None if interval is None else interval.certified.share,
                "attacked": result.summary.metrics.attacked.share,
                "cpu": cpu,
                "wall": wall,
                "stages": Counter(f"{row['verdict']} by {row['stage']}" for row in result.proofs),
            }
        )
    return {"count": len(images), "limit": seconds, "rows": rows}


def table(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    if not found:
        return "Not measured: the part has not run."
    rows = found["rows"]
    lines = [
        f"| {found['count']} images | verified | not broken | CPU time, s | wall time, s | of AutoAttack's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        verified = "" if row["verified"] is None else f"{row['verified']:.1%}"
        lines.append(
            f"| {row['name']} | {verified} | {row['attacked']:.1%} | {row['cpu']:.1f} | {row['wall']:.1f} | "
            f"{row['cpu'] / rows[-1]['cpu']:.2f} |"
        )
    stages = ", ".join(f"{count} {stage}" for stage, count in sorted(rows[0]["stages"].items()))
    return "\n".join([*lines, "", f"Goals: 90 % verified, 0.3 of AutoAttack's time. Of the images, {stages}."])
