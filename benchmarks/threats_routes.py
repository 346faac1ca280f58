"""Accuracy of runs of `threats.py` under plain PGD, and with attacks on every branch of networks with domains."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly.data import load_test
from robustly.evaluation import evaluate
from robustly.evaluation.diagnostics import Budget, broken_by_routes, forced_routes
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence.unions import read_rows
from robustly.experiments.run_folder import load_on_device, open_run
from robustly.files import write_json
from robustly.threats import parse_threat

STEPS = 20
IMAGES = 200
KEPT = "broken_by_routes.json"
"""File in the folder of a run: the ids of the images that attacks on the branches break, by threat."""


def accuracy_by_route(folder: Path, threats: list[str], routed: bool) -> tuple[float, float]:
    """Mean accuracy over threats under PGD on the network, and with PGD on its branches; shares.

    Both are PGD-20 on the cross-entropy from one random start, on the first 200 test images. Results on a branch
    count where the network itself errs on them. Without branches the two numbers are the same.

    Args:
        folder: folder of the run.
        threats: texts of the threats.
        routed: whether the network has threat domains.
    """
    config = open_run(folder)
    data = load_test(replace(config.data, test_limit=IMAGES))
    loaded = load_on_device(folder, config, data, lambda name: False)
    plain, worst = [], []
    for text in threats:
        threat = parse_threat(text)
        if routed:
            target = EvaluationTarget(loaded.model, loaded.data, threat, batch_size=100)
            routes = forced_routes(target, count=IMAGES, budget=Budget(steps=STEPS))
            plain.append(routes.robust)
            worst.append(routes.worst)
        else:
            found = evaluate(loaded.model, loaded.data, threat, "pgd_20", curve="off", batch_size=100)
            plain.append(found.summary.metrics.worst_case.robust.share)
            worst.append(plain[-1])
    return statistics.fmean(plain), statistics.fmean(worst)


def broken_on_branches(folder: Path, text: str, images: int) -> list[int]:
    """Ids of the test images that PGD-20 on a branch, or on class and route, breaks under a threat.

    Found once and kept in the folder of the run.

    Args:
        folder: folder of a run whose network has threat domains.
        text: the threat.
        images: number of test images, from the first.
    """
    file, key = folder / KEPT, f"{text}, {images} images, {STEPS} steps"
    kept: dict[str, list[int]] = json.loads(file.read_text()) if file.exists() else {}
    if key not in kept:
        config = open_run(folder)
        data = load_test(replace(config.data, test_limit=images))
        loaded = load_on_device(folder, config, data, lambda name: False)
        target = EvaluationTarget(loaded.model, loaded.data, parse_threat(text), batch_size=100)
        broken = broken_by_routes(target, count=images, budget=Budget(steps=STEPS))
        kept[key] = loaded.data.ids[: len(broken)][broken].tolist()
        write_json(file, kept)
    return kept[key]


def shares_with_branches(
    folder: Path, texts: Mapping[str, str], finite: Sequence[str], balls: Sequence[str]
) -> dict[str, float]:
    """Accuracies where the attacks on the branches count beside those of each threat's evaluation; shares.

    Args:
        folder: folder of a run, with an evaluation under every threat.
        texts: threats by name.
        finite: names of threats of which the evaluation tries all changes, so that branches add nothing.
        balls: names of the threats of the Lp union.
    """
    found = {name: read_rows(folder / f"evaluation_{name}") for name in texts}
    unbroken = {}
    for name, one in found.items():
        ids = one.table.examples.id
        own = [] if name in finite else broken_on_branches(folder, texts[name], len(ids))
        unbroken[name] = ~one.table.worst_case.broken & ~np.isin(ids, own)
    return {
        "clean": float(next(iter(found.values())).table.correct.mean()),
        **{name: float(mask.mean()) for name, mask in unbroken.items()},
        "mean": statistics.fmean(float(mask.mean()) for mask in unbroken.values()),
        "lp_union": _union([unbroken[name] for name in balls]),
        "union": _union(list(unbroken.values())),
    }


def _union(masks: Sequence[NDArray[np.bool_]]) -> float:
    return float(np.stack(masks).all(0).mean())
