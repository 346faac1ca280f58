"""Write synthetic run folders: drawn digits or coloured blobs, invented numbers."""

import csv
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml

from robustly.data.digits import mnist5k_rows
from robustly.evidence import (
    Evidence,
    EvidenceImages,
    EvidenceTable,
    Finding,
    StoredImages,
    Summary,
    Verdict,
    write_evidence,
)
from robustly.evidence.certified_numbers import CertificateTerms, CertifiedSummary
from robustly.evidence.metrics import metrics
from robustly.evidence.provenance import (
    DataRecord,
    ModelRecord,
    Plan,
    SuiteAttack,
    SuiteCertificate,
    SuiteRecord,
    ThreatRecord,
)
from robustly.evidence.records import to_json
from robustly.evidence.schema import AttackColumns, CertificateColumns, ExampleColumns, WorstCaseColumns
from robustly.evidence.summary import Metrics, SecurityCurve
from robustly.evidence.unions import MeanShare, ThreatShare, ThreatUnion
from robustly.statistics import Proportion

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
    """Properties of the synthetic run; `robust` is the share unbroken by the weakest attack."""

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
    proofs: bool = False


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
    """An analysis file: gradients, three surfaces, the union over two threats."""
    rng = np.random.default_rng(options.seed + 2)
    threat = _threat(options)
    epsilon = threat.limit

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
            "misclassified": (loss > 1.5 * height).astype(float).tolist(),
        }
        numbers = {"roughness": 0.01, "largest_roughness": 0.1, "misclassified_share": 0.25}
        return {**grids, "margin": margin if single else None, **numbers}

    def share(robust: int) -> Proportion:
        return Proportion(robust, options.count)

    radii, held = rng.gamma(2, epsilon, 150), options.count // 2
    names = ("l1", "l2", "edges", "variation", "high_frequency", "concentration")
    radius = {**spread(radii), "norm": "linf", "epsilon": epsilon, "unreachable": 0}
    return {
        "schema": 2,
        "model": {"weights_sha256": "9f2c" * 16},
        "threat": {"text": threat.text},
        "gradients": {
            "count": 200,
            "correct": 150,
            "zero_gradients": 0,
            "measures": {name: spread(rng.uniform(0, 1, 200)) for name in names},
            "radius": {**radius, "beyond_epsilon": int((radii > epsilon).sum())},
        },
        "landscapes": {
            "inputs": [{"id": i, "label": "cat", **surface(1.0 + i, single=True)} for i in range(2)],
            "weights": {"images": 128, **surface(0.5, single=False)},
        },
        "union": to_json(
            ThreatUnion(
                clean=share(options.count - 1),
                threats=(
                    ThreatShare(threat.text, threat.words, "dynat", (), share(held)),
                    ThreatShare("l2:0.5", "", "dynat", (), share(held // 2)),
                ),
                union=share(held // 3),
                average=MeanShare(0.375, (0.3, 0.45)),
            )
        ),
    }


def _findings(options: Synthetic) -> tuple[Finding, ...]:
    """One check of each outcome, and those that masking was concluded from."""
    return (
        Finding("D6", "gradients do not vanish", True, 0.0, "at most 1 %", "None vanished."),
        Finding("D7", "gradients are right", None, None, "", "Nothing to compare."),
        *(Finding("D2", "queries", False, 0.05, "0.002", words) for words in options.masking),
    )


def _write_training(path: Path, options: Synthetic) -> None:
    rng = np.random.default_rng(options.seed)
    config = {
        "recipe": "trades_mnist5k",
        "seed": options.seed,
        "data": {"source": _source(options), "augment": ["crop", "flip"] if options.colour else []},
        "model": {"name": _model(options), "width": 32},
        "guide": None,
        "threat": _threat(options).text,
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
    rng = np.random.default_rng(options.seed + 1)
    images, labels = blobs(options.count) if options.colour else digits(options.count)
    n, epsilon = options.count, _threat(options).limit
    classes = options.classes or (COLOUR_CLASSES if options.colour else tuple(map(str, range(10))))
    difficulty = rng.uniform(size=n) * (0.8 + 0.4 * np.sin(labels * 1.7) ** 2)
    order = np.argsort(np.argsort(difficulty)) / n
    clean_right = order < options.clean
    wrong = (labels + rng.integers(1, 10, n)) % 10
    examples = ExampleColumns(
        id=np.arange(n),
        label=labels,
        clean_prediction=np.where(clean_right, labels, wrong),
        clean_margin=(np.where(clean_right, 1, -1) * rng.gamma(2, 2, n)).astype(np.float32),
    )
    attacks, stored, broken_by_any = {}, {}, np.zeros(n, bool)
    for i, attack in enumerate(ATTACKS):
        reached = options.robust - 0.004 * i + rng.normal(0, 0.004, n)
        broken = clean_right & (order > reached)
        broken_by_any |= broken
        rounded = broken & (rng.uniform(size=n) > 0.02)
        full = rng.uniform(size=n) < (0.4 if attack == "cw" else 0.97)
        distance = np.where(broken, epsilon * np.where(full, 1.0, rng.beta(4, 2, n)), np.nan)
        attacks[attack] = AttackColumns(
            broken=broken | ~clean_right,
            broken_8bit=rounded | ~clean_right,
            distance=distance.astype(np.float32),
            prediction=np.where(broken, wrong, -1),
            forwards=rng.integers(2, 40, n),
            backwards=rng.integers(1, 39, n),
            passes_8bit=broken.astype(np.int64),
            invalid=np.zeros(n, bool),
            tried=clean_right,
            margin=np.full(n, np.nan, np.float32),
            zero_gradients=np.zeros(n, np.int64),
        )
        moved = _adversarial(images[broken], np.nan_to_num(distance[broken]), rng)
        stored[attack] = StoredImages(np.flatnonzero(broken), moved)
    shown = np.concatenate([np.flatnonzero(broken_by_any)[:24], np.flatnonzero(clean_right & ~broken_by_any)[:4]])
    fallen = broken_by_any | ~clean_right
    proofs = {"bounds": _proofs(order, broken_by_any, examples, epsilon)} if options.proofs else {}
    table = EvidenceTable(examples, attacks, WorstCaseColumns(fallen, fallen), proofs)
    found = {
        name: StoredImages(np.flatnonzero(one.falsified), images[one.falsified]) for name, one in proofs.items()
    }
    kept = EvidenceImages(stored, StoredImages(shown, np.ascontiguousarray(images[shown])), found)
    write_evidence(Evidence(table, kept, _summary(options, classes, table)), path / "evaluation")


def _proofs(order: np.ndarray, broken: np.ndarray, examples: ExampleColumns, epsilon: float) -> CertificateColumns:
    """A certificate that proves easy examples by cheap bounds, refutes the hardest, and leaves others open."""
    correct, count = examples.label == examples.clean_prediction, len(order)
    verified = ~broken & correct & (order < 0.7)
    falsified = ~correct | (broken & (order > 0.93)) | (correct & ~broken & (order > 0.88))
    radius = np.where(verified, epsilon * (2.2 - 1.7 * order), epsilon * np.maximum(0.0, 1.5 - 1.5 * order))
    names = np.array(["ibp", "crown", "alpha", "branch"])
    stage = np.where(falsified, "attack", names[np.digitize(order, [0.25, 0.5, 0.6])])
    late = order > 0.8
    reason = np.where(late, "the time limit was reached", "the budget of domains is spent")
    verdict = np.where(verified, Verdict.VERIFIED, np.where(late, Verdict.TIMEOUT, Verdict.UNKNOWN))
    return CertificateColumns(
        verdict=np.where(falsified, Verdict.FALSIFIED, verdict).astype(np.int8),
        radius=np.where(falsified, 0.0, radius),
        prediction=examples.clean_prediction,
        lower_bound=np.full(count, np.nan),
        stage=stage,
        reason=np.where(verified | falsified, "", reason),
        work=np.where(stage == "branch", 500, 1),
        seconds=np.where(stage == "branch", 4.0, 0.05),
    )


def _summary(options: Synthetic, classes: tuple[str, ...], table: EvidenceTable) -> Summary:
    settings = {
        "kind": "PGD",
        "steps": 10,
        "step_size": 0.075,
        "random_start": True,
        "restarts": 1,
        "objective": "cross_entropy",
    }
    return Summary(
        created="2026-09-21T14:03:22.118+00:00",
        run=options.name,
        model=ModelRecord(_model(options), 312202, "9f2c" * 16, "best"),
        data=DataRecord(_source(options), len(table), "41ab" * 16, classes, split="test", note=options.note),
        threat=_threat(options),
        suite=SuiteRecord(
            name="dynat",
            mode="every",
            seed=0,
            batch_size=250,
            attacks=tuple(SuiteAttack(key, title, settings, Plan()) for key, title in ATTACKS.items()),
            certificates=tuple(SuiteCertificate(name, "Bounds", "model", {}) for name in table.certificates),
            curve="pgd_20",
        ),
        metrics=_metrics(options, classes, table),
        findings=_findings(options) if options.masking else (),
        masking=options.masking,
        seconds={name: 3.2 * (i + 1) ** 2 for i, name in enumerate(ATTACKS)},
        warnings=options.warnings,
        versions={"robustly": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        device="cpu",
    )


def _metrics(options: Synthetic, classes: tuple[str, ...], table: EvidenceTable) -> Metrics:
    """The counted numbers, with passes, a security curve and a certificate that are made up."""
    terms = {name: CertificateTerms("model") for name in table.certificates}
    counted = metrics(table, certificates=terms, classes=classes, limit=_threat(options).limit, curve=[])
    attacks = {
        name: replace(one, mean_forwards=9.1 * (i + 1), mean_backwards=9.1 * (i + 1) - 1.1)
        for i, (name, one) in enumerate(counted.attacks.items())
    }
    worst, certified = counted.worst_case.robust, counted.certified
    if options.certified is not None:
        proved = Proportion(round(options.certified * len(table)), len(table))
        certified = CertifiedSummary("CROWN bounds", _threat(options).limit, proved)
    curve = _curve(options, counted.clean.share, worst.share, len(table))
    return replace(counted, attacks=attacks, certified=certified, security_curve=curve)


def _curve(options: Synthetic, clean: float, robust: float, count: int) -> SecurityCurve:
    threat = _threat(options)
    grid = np.array([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1, 4 / 3, 5 / 3, 2]) * threat.limit
    steep = 10.0
    shift = threat.limit * (1 + np.log(max(robust, 1e-3) / max(clean - robust, 1e-3)) / steep)
    accuracy = clean / (1 + np.exp(steep * (grid - shift) / threat.limit))
    accuracy[0] = clean
    parts = [Proportion(round(value * count), count) for value in accuracy]
    text = [f"{255 * e:.3g}/255" for e in grid] if options.colour else [f"{e:.3g}" for e in grid]
    certified = None
    if options.certified is not None:
        proved = [float(clean * (1 - (1 - options.certified / clean) * min(1.6, e / threat.limit))) for e in grid]
        certified = tuple(max(0.0, min(value, 0.9 * part.share)) for value, part in zip(proved, parts, strict=True))
    return SecurityCurve(
        count=count,
        epsilon=tuple(grid.tolist()),
        epsilon_text=tuple(text),
        accuracy=tuple(part.share for part in parts),
        low=tuple(part.low for part in parts),
        high=tuple(part.high for part in parts),
        certified=certified,
    )


def _adversarial(images: np.ndarray, distance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(size=images.shape)
    smooth = sum(np.roll(noise, shift, axis) for axis in (2, 3) for shift in (-1, 0, 1))
    moved = images + distance[:, None, None, None] * np.sign(smooth)
    return np.ascontiguousarray(moved.clip(0, 1).astype(np.float32))


def _threat(options: Synthetic) -> ThreatRecord:
    epsilon, text = (8 / 255, "8/255") if options.colour else (0.3, "0.3")
    words = (
        f"Each pixel may change by at most {text} (on a scale from 0 to 1), up or down and independently of "
        "its neighbours; the result must stay a picture, with every value between 0 and 1."
    )
    return ThreatRecord(f"linf:{text}", "linf", words, (0.0, 1.0), epsilon, text, "input units", "linf")


def _source(options: Synthetic) -> str:
    return "cifar10" if options.colour else "mnist5k"


def _model(options: Synthetic) -> str:
    return "preact_resnet18" if options.colour else "small_cnn"
