"""The interval [certified, attacked] of a PGD-trained network beside AutoAttack: its width, its share, its time."""

import time
from collections import Counter
from pathlib import Path

import torch

from robustly import certify, evaluate
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


def measured(run: Path, count: int, seconds: float | None) -> dict[str, object]:
    """CPU seconds of both evaluations of the same images on one thread, and the shares that they found.

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
    spent = []
    results = []
    for certifies in (True, False):
        begin, wall = time.process_time(), time.monotonic()
        if certifies:
            result = certify(model, images, THREAT, seconds=seconds, progress=False)
        else:
            result = evaluate(model, images, THREAT, "aa_standard", mode="worst_case", curve="off", progress=False)
        spent.append((time.process_time() - begin, time.monotonic() - wall))
        results.append(result)
        print(spent[-1], result, flush=True)
    interval = results[0].interval
    assert interval is not None
    return {
        "count": len(images),
        "limit": seconds,
        "verified": interval.certified.share,
        "attacked": interval.attacked.share,
        "autoattack": results[1].summary.metrics.attacked.share,
        "seconds": spent[0],
        "autoattack_seconds": spent[1],
        "stages": Counter(f"{row['verdict']} by {row['stage']}" for row in results[0].proofs),
    }


def table(found: dict[str, object]) -> str:
    """The numbers as Markdown."""
    if not found:
        return "Not measured: the part has not run."
    ours, theirs = found["seconds"][0], found["autoattack_seconds"][0]
    stages = ", ".join(f"{count} {stage}" for stage, count in sorted(found["stages"].items()))
    return "\n".join(
        [
            "| images | verified, goal 90 % | attacked | AutoAttack | CPU time, s | its, s | ratio, goal 0.3 |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            f"| {found['count']} | {found['verified']:.1%} | {found['attacked']:.1%} | {found['autoattack']:.1%} | "
            f"{ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |",
            "",
            f"Of the images, {stages}.",
        ]
    )
