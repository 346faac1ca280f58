"""Writes run folders that look like real ones: drawn digits or coloured blobs, made-up numbers."""

import csv
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.numpy import save_file

from robustly.data.digits import mnist5k_rows
from robustly.reports.evidence import wilson

ATTACKS = {
    "pgd_10": "PGD-10",
    "pgd_20": "PGD-20",
    "pgd_50": "PGD-50",
    "cw": "CW (PGD-30, margin)",
    "autoattack": "AutoAttack",
}
COLOUR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Synthetic:
    """What the synthetic run is to look like; `robust` is the share that the weakest attack leaves."""

    name: str = "mnist5k_trades"
    clean: float = 0.978
    robust: float = 0.91
    count: int = 1000
    epochs: int = 30
    colour: bool = False
    certified: float | None = None
    classes: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()
    note: str | None = None
    training: bool = True
    evaluation: bool = True
    state: str = "finished"
    seed: int = 0
    masking: tuple[str, ...] = ()
    analysis: bool = False


@cache
def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` handwritten digits `(N, 1, 28, 28)` in [0, 1] and their labels."""
    rows = mnist5k_rows()["all"]
    chosen = torch.from_numpy(np.random.default_rng(5).permutation(len(rows))[:count])
    return rows.read(chosen).numpy().astype(np.float32) / 255, rows.labels[chosen].numpy()


def blobs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` coloured pictures `(N, 3, 32, 32)` and labels."""
    rng = np.random.default_rng(7)
    grid = np.linspace(-1, 1, 32)
    pictures = np.empty((count, 3, 32, 32), np.float32)
    for i in range(count):
        centre, width, colour = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.2, 0.6), rng.uniform(0.1, 0.95, 3)
        blob = np.exp(-((grid[:, None] - centre[0]) ** 2 + (grid[None] - centre[1]) ** 2) / width**2)
        sky = np.linspace(*rng.uniform(0.2, 0.8, 2), 32)[:, None] * np.ones(32)
        pictures[i] = sky[None] * (1 - blob) + blob * colour[:, None, None] + 0.02 * rng.normal(size=(3, 32, 32))
    return pictures.clip(0, 1), rng.integers(0, 10, count)


def write_synthetic_run(folder: Path, options: Synthetic = Synthetic()) -> Path:
    """Write the run `folder/NAME` and return its path."""
    path = folder / options.name
    path.mkdir(parents=True, exist_ok=True)
    if options.training:
        _write_training(path, options)
    if options.evaluation:
        _write_evaluation(path, options)
    if options.analysis:
        (path / "analysis.json").write_text(json.dumps(_analysis(options)), encoding="utf-8")
    return path


def _analysis(options: Synthetic) -> dict:
    """What `robustly analyse` would write: gradients, three surfaces, the union over two threats."""
    rng = np.random.default_rng(options.seed + 2)
    threat = _threat(options)

    def spread(values: np.ndarray) -> dict:
        counts, edges = np.histogram(values, 24)
        low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
        histogram = {"edges": edges.tolist(), "counts": counts.tolist()}
        return {"count": len(values), "median": middle, "low": low, "high": high, "histogram": histogram}

    def surface(height: float, single: bool) -> dict:
        axis = np.linspace(-2, 2, 21)
        loss = height * (1 + np.tanh(axis[None] + 0.1 * axis[:, None] ** 2))
        margin = (axis[None] - 1 + 0 * axis[:, None]).tolist()
        grids = {
            "axis": axis.tolist(),
            "loss": loss.tolist(),
            "wrong": (loss > 1.5 * height).astype(float).tolist(),
        }
        numbers = {"roughness": 0.01, "roughest": 0.1, "misclassified": 0.25}
        return {**grids, "margin": margin if single else None, **numbers}

    def share(robust: int) -> dict:
        part = wilson(robust, options.count)
        numbers = {"robust": robust, "count": options.count, "accuracy": part.share}
        return numbers | {"interval": [part.low, part.high]}

    radii, held = rng.gamma(2, threat["epsilon"], 150), options.count // 2
    names = ("l1", "l2", "edges", "variation", "high_frequency", "concentration")
    radius = {**spread(radii), "norm": "linf", "epsilon": threat["epsilon"], "unreachable": 0}
    return {
        "schema": 1,
        "model": {"weights_sha256": "9f2c" * 16},
        "threat": {"text": threat["text"]},
        "gradients": {
            "count": 200,
            "right": 150,
            "zero": 0,
            "measures": {name: spread(rng.uniform(0, 1, 200)) for name in names},
            "radius": {**radius, "beyond": int((radii > threat["epsilon"]).sum())},
        },
        "landscapes": {
            "inputs": [{"id": i, "label": "cat", **surface(1.0 + i, single=True)} for i in range(2)],
            "weights": {"images": 128, **surface(0.5, single=False)},
        },
        "union": {
            "clean": share(options.count - 1),
            "threats": [{"text": threat["text"], **share(held)}, {"text": "l2:0.5", **share(held // 2)}],
            "union": share(held // 3),
            "average": {"accuracy": 0.375, "interval": [0.3, 0.45]},
        },
    }


def _findings(options: Synthetic) -> list[dict]:
    """One check of each outcome, and those that masking was concluded from."""
    passed = {
        "id": "D6",
        "title": "gradients do not vanish",
        "passed": True,
        "value": 0.0,
        "threshold": "at most 1 %",
    }
    unknown = {"id": "D7", "title": "gradients are right", "passed": None, "value": None, "threshold": ""}
    found = [passed | {"words": "None vanished."}, unknown | {"words": "Nothing to compare."}]
    return found + [
        {"id": "D2", "title": "queries", "passed": False, "value": 0.05, "threshold": "0.002", "words": words}
        for words in options.masking
    ]


def _write_training(path: Path, options: Synthetic) -> None:
    rng = np.random.default_rng(options.seed)
    config = {
        "recipe": "trades_mnist5k",
        "seed": options.seed,
        "data": {"source": _source(options), "augment": ["crop", "flip"] if options.colour else []},
        "model": {"name": _model(options), "width": 32},
        "guide": None,
        "threat": _threat(options)["text"],
        "method": {
            "labels": "data",
            "inner": {"attack": "pgd", "steps": 10},
            "loss": {"name": "trades", "beta": 6.0},
        },
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5.0e-4},
        "schedule": {"name": "piecewise", "milestones": [20, 25]},
        "training": {"epochs": options.epochs, "batch_size": 128, "precision": "32-true"},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    rows = []
    for epoch in range(1, options.epochs + 1):
        grown, late = 1 - np.exp(-epoch / 5), max(0.0, epoch / options.epochs - 0.7)
        shake = rng.normal(0, 0.006, 4)
        rows.append(
            {
                "epoch": epoch,
                "step": epoch * 32,
                "learning_rate": 0.05 * (0.1 if epoch > 20 else 1) * (0.1 if epoch > 25 else 1),
                "train_loss": 0.35 + 1.9 * np.exp(-epoch / 6) + 0.02 * shake[0] - 0.2 * late,
                "train_clean_accuracy": min(0.999, options.clean * grown + 0.01 + abs(shake[1])),
                "train_robust_accuracy": "" if epoch % 2 else min(0.99, options.robust * grown + 0.12 * late),
                "validation_clean_accuracy": min(0.999, options.clean * grown + shake[2]),
                "validation_robust_accuracy": (options.robust + 0.01) * grown - 0.12 * late + shake[3],
                "seconds": 4.1 + shake[0],
                "images_per_second": 970.0,
                "guide_accuracy": min(0.999, (options.clean + 0.01) * grown),
                "label_agreement": min(0.999, options.clean * grown**0.8),
            }
        )
    with (path / "metrics.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    best = max(rows, key=lambda row: row["validation_robust_accuracy"])["epoch"]
    status = {
        "state": options.state,
        "best_epoch": best,
        "epochs": options.epochs,
        "seconds": 123.4,
        "message": "",
    }
    (path / "status.json").write_text(json.dumps(status))


def _write_evaluation(path: Path, options: Synthetic) -> None:
    folder = path / "evaluation"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(options.seed + 1)
    images, labels = blobs(options.count) if options.colour else digits(options.count)
    n, epsilon = options.count, _threat(options)["epsilon"]
    classes = options.classes or (COLOUR_CLASSES if options.colour else tuple(map(str, range(10))))
    difficulty = rng.uniform(size=n) * (0.8 + 0.4 * np.sin(labels * 1.7) ** 2)
    order = np.argsort(np.argsort(difficulty)) / n
    clean_right = order < options.clean
    wrong = (labels + rng.integers(1, 10, n)) % 10
    columns = {
        "id": np.arange(n),
        "label": labels,
        "clean_prediction": np.where(clean_right, labels, wrong),
        "clean_margin": np.where(clean_right, 1, -1) * rng.gamma(2, 2, n),
    }
    tensors: dict[str, np.ndarray] = {}
    results, broken_by_any = {}, np.zeros(n, bool)
    for i, attack in enumerate(ATTACKS):
        reached = options.robust - 0.004 * i + rng.normal(0, 0.004, n)
        broken = clean_right & (order > reached)
        broken_by_any |= broken
        rounded = broken & (rng.uniform(size=n) > 0.02)
        full = rng.uniform(size=n) < (0.4 if attack == "cw" else 0.97)
        distance = np.where(broken, epsilon * np.where(full, 1.0, rng.beta(4, 2, n)), np.nan)
        columns |= {
            f"{attack}.broken": broken,
            f"{attack}.broken_8bit": rounded,
            f"{attack}.distance": distance,
            f"{attack}.prediction": np.where(clean_right & ~broken, labels, wrong),
            f"{attack}.forwards": rng.integers(2, 40, n).astype(np.int32),
            f"{attack}.backwards": rng.integers(1, 39, n).astype(np.int32),
        }
        results[attack] = _result(clean_right & ~broken, clean_right & ~rounded, 9.1 * (i + 1), 3.2 * (i + 1) ** 2)
        tensors[f"{attack}.ids"] = np.flatnonzero(broken)
        tensors[f"{attack}.images"] = _adversarial(images[broken], np.nan_to_num(distance[broken]), rng)
    columns["worst_case.broken"] = broken_by_any
    shown = np.concatenate([np.flatnonzero(broken_by_any)[:24], np.flatnonzero(clean_right & ~broken_by_any)[:4]])
    tensors |= {"gallery.ids": shown, "gallery.images": np.ascontiguousarray(images[shown])}
    pq.write_table(pa.table(columns), folder / "evidence.parquet")
    save_file(tensors, folder / "adversarial.safetensors")
    held = clean_right & ~broken_by_any
    summary = _summary(options, classes, labels, clean_right, held, results)
    if options.masking:
        summary |= {"schema": 2, "findings": _findings(options), "masking": list(options.masking), "failures": {}}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def _summary(options, classes, labels, clean_right, held, results):
    proved = None
    if options.certified is not None:
        part = wilson(round(options.certified * len(labels)), len(labels))
        proved = {"name": "CROWN bounds", "radius": _threat(options)["epsilon"], "robust": part.correct}
        proved |= {"count": part.count, "accuracy": part.share, "interval": [part.low, part.high]}
    per_class = []
    for i, name in enumerate(classes):
        own = labels == i
        if own.any():
            clean, robust = (
                wilson(int(clean_right[own].sum()), int(own.sum())),
                wilson(int(held[own].sum()), int(own.sum())),
            )
            entry = {"class": name, "count": clean.count, "clean": clean.share, "robust": robust.share}
            entry |= {"clean_interval": [clean.low, clean.high], "robust_interval": [robust.low, robust.high]}
            per_class.append(entry)
    clean = _result(clean_right, clean_right, None, None)
    settings = {
        "steps": 10,
        "step_size": 0.075,
        "random_start": True,
        "restarts": 1,
        "objective": "cross_entropy",
    }
    return {
        "schema": 1,
        "created": "2026-09-21T14:03:22.118+00:00",
        "run": options.name,
        "model": {
            "name": _model(options),
            "parameters": 312202,
            "weights_sha256": "9f2c" * 16,
            "checkpoint": "best",
        },
        "data": {
            "source": _source(options),
            "split": "test",
            "count": len(labels),
            "sha256": "41ab" * 16,
            "classes": list(classes),
            "note": options.note,
        },
        "threat": _threat(options),
        "suite": {
            "name": "dynat",
            "mode": "every",
            "seed": 0,
            "attacks": [{"name": key, "title": title, "settings": settings} for key, title in ATTACKS.items()],
        },
        "clean": {
            "correct": clean["robust"],
            "count": clean["count"],
            "accuracy": clean["accuracy"],
            "interval": clean["interval"],
        },
        "attacks": results,
        "worst_case": _result(held, held, None, None),
        "certified": proved,
        "security_curve": _curve(options, clean_right.mean(), held.mean(), len(labels)),
        "per_class": per_class,
        "invalid": 0,
        "warnings": list(options.warnings),
        "versions": {"robustly": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "device": "cpu",
    }


def _curve(options, clean, robust, count):
    threat = _threat(options)
    grid = np.array([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1, 4 / 3, 5 / 3, 2]) * threat["epsilon"]
    steep = 10.0
    shift = threat["epsilon"] * (1 + np.log(max(robust, 1e-3) / max(clean - robust, 1e-3)) / steep)
    accuracy = clean / (1 + np.exp(steep * (grid - shift) / threat["epsilon"]))
    accuracy[0] = clean
    parts = [wilson(round(value * count), count) for value in accuracy]
    text = [f"{255 * e:.3g}/255" for e in grid] if options.colour else [f"{e:.3g}" for e in grid]
    certified = None
    if options.certified is not None:
        certified = [
            float(clean * (1 - (1 - options.certified / clean) * min(1.6, e / threat["epsilon"]))) for e in grid
        ]
        certified = [max(0.0, min(value, 0.9 * part.share)) for value, part in zip(certified, parts, strict=True)]
    return {
        "attack": "PGD-20",
        "epsilon": grid.tolist(),
        "epsilon_text": text,
        "accuracy": [part.share for part in parts],
        "low": [part.low for part in parts],
        "high": [part.high for part in parts],
        "certified": certified,
    }


def _result(held, held_8bit, passes, seconds):
    part, rounded = wilson(int(held.sum()), len(held)), wilson(int(held_8bit.sum()), len(held))
    return {
        "robust": part.correct,
        "count": part.count,
        "accuracy": part.share,
        "interval": [part.low, part.high],
        "accuracy_8bit": rounded.share,
        "interval_8bit": [rounded.low, rounded.high],
        "mean_forwards": passes,
        "mean_backwards": None if passes is None else passes - 1.1,
        "seconds": seconds,
    }


def _adversarial(images: np.ndarray, distance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(size=images.shape)
    smooth = sum(np.roll(noise, shift, axis) for axis in (2, 3) for shift in (-1, 0, 1))
    moved = images + distance[:, None, None, None] * np.sign(smooth)
    return np.ascontiguousarray(moved.clip(0, 1).astype(np.float32))


def _threat(options: Synthetic) -> dict:
    epsilon, text = (8 / 255, "8/255") if options.colour else (0.3, "0.3")
    words = (
        f"Each pixel may change by at most {text} (on a scale from 0 to 1), up or down and independently of "
        "its neighbours; the result must stay a picture, with every value between 0 and 1."
    )
    return {
        "text": f"linf:{text}",
        "norm": "linf",
        "epsilon": epsilon,
        "epsilon_text": text,
        "box": [0, 1],
        "words": words,
    }


def _source(options: Synthetic) -> str:
    return "cifar10" if options.colour else "mnist5k"


def _model(options: Synthetic) -> str:
    return "preact_resnet18" if options.colour else "small_cnn"
