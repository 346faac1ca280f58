"""Compare Margin-CS with the same training without costs, with the costs of other classes, and on noise alone.

    python benchmarks/costs.py FOLDER [MINUTES]

`mnist5k/margin_cs` as it is, 10 epochs, 3,500 digits. Four trainings for each of three seeds:

- costs: errors on a 3 or a 5 cost 1 (`costs: classes:3,5`).
- permuted: the same costs on two other digits, other ones for each seed.
- no costs: the same margins for all classes (`macer`, weight 10).
- noise alone: no margins at all (weight 0).

The recipe's settings were chosen with other seeds on held-out training images; these seeds were used for nothing
else. Robust: unbroken at l2:1.5 by APGD with 40 steps on cross-entropy and on the margin. The expected cost is that
of the digits 3 and 5. All numbers are of the last epoch, on 1,000 test images.

Runs and verdicts are kept in FOLDER, so that the command continues after a stop; no run begins after MINUTES.
Writes `benchmarks/results/costs.md`.
"""

import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from robustly.attacks import APGD
from robustly.cli import main
from robustly.data import load_test
from robustly.evaluation import Suite, evaluate
from robustly.experiments.run_folder import load_trained, open_run
from robustly.files import write_json
from robustly.objectives import margin
from robustly.statistics import student_t_95
from robustly.threats import parse_threat

RESULTS = Path(__file__).parent / "results" / "costs.md"
CLASSES = (3, 5)
SEEDS = {10: (4, 9), 11: (2, 8), 12: (0, 7)}
"""Seeds, and the two digits that have the costs in the permuted training."""
SUITE = Suite("costs", {"apgd": APGD(40), "apgd_margin": APGD(40, margin)}, curve=None)


@dataclass(frozen=True)
class Verdicts:
    """Verdicts of one network on the test images.

    Args:
        labels: true classes, `(N,)`.
        right: True where the prediction without an attack is right, `(N,)`.
        robust: True where no attack changes it, `(N,)`.
    """

    labels: NDArray[np.int64]
    right: NDArray[np.bool_]
    robust: NDArray[np.bool_]

    def on(self, classes: tuple[int, ...]) -> float:
        """Robust accuracy on the images of some classes."""
        return float(self.robust[np.isin(self.labels, classes)].mean())


def words_of(arm: str, seed: int) -> tuple[str, ...]:
    """Settings of a training beside those of the recipe."""
    return {
        "costs": (),
        "permuted": ("--method.loss.costs", "classes:" + ",".join(map(str, SEEDS[seed]))),
        "no costs": (
            "--method.loss", "{name: macer, sigma: 0.5, copies: 4, weight: 10, margin: 4}",
        ),
        "noise alone": ("--method.loss.weight", "0"),
    }[arm]  # fmt: skip


ARMS = ("costs", "permuted", "no costs", "noise alone")


def verdicts(root: Path, arm: str, seed: int) -> Verdicts:
    """Verdicts of a training, which is run if it is not there."""
    folder = root / f"{arm.replace(' ', '_')}_{seed}"
    stored = folder / "verdicts.json"
    if not stored.is_file():
        words = (*words_of(arm, seed), "--seed", str(seed), "--training.validation_steps", "1")
        trained = (folder / "model.safetensors").is_file()
        if not trained and main(["train", "mnist5k/margin_cs", *words, "--out", str(folder)]) != 0:
            raise SystemExit(f"{folder} failed")
        config = open_run(folder)
        data = load_test(config.data)
        model = load_trained(folder, config, data, lambda _: False, "last")[0]
        found = evaluate(model, data, parse_threat("l2:1.5"), SUITE, mode="worst_case", batch_size=250).table
        content = {
            "labels": data.labels.tolist(),
            "right": found.correct.tolist(),
            "robust": (found.correct & ~found.worst_case.broken).tolist(),
        }
        write_json(stored, content)
    content = json.loads(stored.read_text())
    return Verdicts(*(np.array(content[key]) for key in ("labels", "right", "robust")))


def shares(values: list[float]) -> str:
    """Percentages, one for each seed."""
    return ", ".join(f"{100 * value:.1f}" for value in values)


def difference(values: list[float]) -> str:
    """Mean of paired differences in points, and its 95 % interval of Student's t."""
    middle, half = (
        statistics.mean(values),
        student_t_95(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5,
    )
    return f"{100 * middle:+.1f} [{100 * (middle - half):+.1f}, {100 * (middle + half):+.1f}]"


def row(arm: str, found: list[Verdicts]) -> str:
    """Row of the table of one training over the seeds."""
    others = tuple(digit for digit in range(10) if digit not in CLASSES)
    cost = [float((~one.robust & np.isin(one.labels, CLASSES)).mean()) for one in found]
    parts = [
        shares([float(one.right.mean()) for one in found]),
        shares([float(one.robust.mean()) for one in found]),
        shares([one.on(CLASSES) for one in found]),
        shares([one.on(others) for one in found]),
        ", ".join(f"{value:.3f}" for value in cost),
    ]
    return f"| {arm} | {' | '.join(parts)} |"


def comparisons(found: dict[str, list[Verdicts]]) -> list[str]:
    """Rows of the paired differences in robust accuracy, in points."""
    with_costs, permuted = found["costs"], found["permuted"]
    lines = ["| costs on 3 and 5 against | robust, 3 and 5 | robust, all |", "| --- | ---: | ---: |"]
    for arm in ARMS[1:]:
        pairs = list(zip(with_costs, found[arm], strict=True))
        own = [one.on(CLASSES) - other.on(CLASSES) for one, other in pairs]
        whole = [float(one.robust.mean() - other.robust.mean()) for one, other in pairs]
        lines.append(f"| {arm} | {difference(own)} | {difference(whole)} |")
    # the permuted training has the costs of its own digits, which the first one has not: two effects for each seed
    swapped = [
        (one.on(CLASSES) - other.on(CLASSES) + other.on(classes) - one.on(classes)) / 2
        for one, other, classes in zip(with_costs, permuted, SEEDS.values(), strict=True)
    ]
    told = "Digits that have the costs against the same digits while two others have them, mean of both pairs:"
    return [*lines, "", told, f"{shares(swapped)}; mean {difference(swapped)}."]


def write(found: dict[str, list[Verdicts]]) -> None:
    """Write the page."""
    text = (__doc__ or "").split("\n\n")
    page = [
        "# Costs of confusions in Margin-CS",
        "",
        "\n\n".join(text[2:4]),
        "",
        text[4],
        "",
        "| training | clean | robust, all | robust, 3 and 5 | robust, others | expected cost |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(row(arm, found[arm]) for arm in ARMS),
        "",
        f"In %, for the seeds {', '.join(map(str, SEEDS))}. Paired differences in points: mean over the seeds and",
        "95 % interval (Student's t).",
        "",
        *comparisons(found),
        "",
        f"`python benchmarks/costs.py FOLDER`, {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, "
        f"{platform.machine()}, one thread.",
    ]
    RESULTS.write_text("\n".join(page) + "\n")


def run(root: Path, minutes: float) -> None:
    """Train and attack what is not there yet, then write the page."""
    began = time.monotonic()
    found: dict[str, list[Verdicts]] = {arm: [] for arm in ARMS}
    for seed in SEEDS:
        for arm in ARMS:
            if time.monotonic() - began > 60 * minutes:
                raise SystemExit("stopped; the same command continues")
            found[arm].append(verdicts(root, arm, seed))
            print(arm, seed, f"3 and 5: {100 * found[arm][-1].on(CLASSES):.1f} %", flush=True)
    write(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1e9)
