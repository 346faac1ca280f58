"""Accuracy of runs of `threats.py` under plain PGD, and with attacks on every branch of networks with domains."""

import statistics
from dataclasses import replace
from pathlib import Path

from robustly.data import load_test
from robustly.evaluation import evaluate
from robustly.evaluation.diagnostics import Budget, forced_routes
from robustly.evaluation.target import EvaluationTarget
from robustly.experiments.run_folder import load_on_device, open_run
from robustly.threats import parse_threat

STEPS = 20
IMAGES = 200


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
