"""Small runs from the command line whose every number is known: what they are, and what is compared of them.

`python tests/golden/runs.py` computes all of it anew and writes `values.json`. Do that only with a change that
means to alter numbers, and say in CHANGELOG which ones.
"""

import hashlib
import json
import math
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.numpy import load_file, save_file
from torch import nn

from robustly.cli import main

VALUES = Path(__file__).with_name("values.json")

LITTLE = {
    "threat": "linf:0.1",
    "data.source": "mnist5k",
    "data.train_limit": "90",
    "data.validation": "20",
    "data.test": "20",
    "data.image_size": "16",
    "training.epochs": "3",
    "training.batch_size": "32",
    "training.validation_steps": "1",
    "training.validation_batch_size": "20",
    "runtime.device": "cpu",
}
WITH_NORMS: dict[str, dict[str, str]] = {
    "cifar10/at_awp": {},  # attacks in train mode
    "cifar10/gkl": {"training.epsilon_ramp": "2"},  # averages over epochs, its own prior, AWP
    "cifar10/dynat_inner_awp": {},
    "cifar10/free_at": {},
    "cifar10/lbgat6": {},
    "cifar10/fat_trades": {},
    "cifar10/trades_extra": {},  # moving average, attacks in train mode that statistics do not see
    "cifar10/pgd_at": {"method.parameters": "{swa: {start: 1}, grad_align: {weight: 0.1}}"},
}
"""Recipes whose networks keep running statistics, as those of `mnist5k` do not."""

ROLES = ("guide", "teacher", "standard_teacher")

VICTIM = ["--data.image_size", "16", "--data.train_limit", "400", "--data.validation", "50", "--data.test", "60"]
VICTIM += ["--model.width", "0.25", "--training.epochs", "3", "--training.batch_size", "32"]
VICTIM += ["--training.epsilon_ramp", "1", "--threat", "linf:0.15", "--runtime.device", "cpu"]

KINDS = {
    "linf": {
        "pgd": {"steps": 7, "restarts": 2},
        "pgd_half": {"attack": "pgd", "steps": 5, "precision": "bfloat16", "start": "gaussian"},
        "pgd_margin": {
            "attack": "pgd",
            "steps": 5,
            "objective": "alternating",
            "start": "halfway",
            "early_stop": False,
        },
        "fgsm": {"attack": "fgsm"},
        "r_fgsm": {"attack": "r_fgsm"},
        "mim": {"steps": 5, "smoothing": 3},
        "mim_random": {"attack": "mim", "steps": 4, "decay": 0.5, "start": "random", "restarts": 2},
        "apgd": {"steps": 12},
        "apgd_odi": {"attack": "apgd", "steps": 8, "start": "odi", "objective": "dlr", "restarts": 2},
        "apgd_t": {"steps": 8, "targets": 2, "ranking": "malt"},
        "pma": {"steps": 6},
        "fab": {"steps": 6},
        "fab_t": {"attack": "fab", "steps": 6, "targets": 2, "restarts": 2, "stop_inside": True},
        "deepfool": {"steps": 10},
        "fmn": {"steps": 12, "restarts": 2},
        "square": {"queries": 60},
        "hopskipjump": {"steps": 2, "evaluations": 30, "tries": 50},
    },
    "l2": {
        "pgd": {"steps": 7},
        "mim": {"steps": 5},
        "apgd": {"steps": 12},
        "apgd_t": {"steps": 8, "targets": 2},
        "pma": {"steps": 6},
        "fab": {"steps": 6},
        "deepfool": {"steps": 10},
        "ddn": {"steps": 20},
        "fmn": {"steps": 12, "targets": 0},
        "cw_l2": {"steps": 12, "search_steps": 3, "initial_c": 0.1},
        "square": {"queries": 60, "rescale_schedule": True},
        "boundary": {"steps": 40, "tries": 50},
        "hopskipjump": {"steps": 2, "evaluations": 30, "tries": 50},
    },
    "l1": {
        "pgd": {"steps": 7},
        "mim": {"steps": 5},
        "apgd": {"steps": 20},
        "apgd_large": {"attack": "apgd", "steps": 20, "large_epsilon": True},
        "apgd_t": {"steps": 20, "targets": 2, "large_epsilon": True, "ranking": "malt"},
        "pma": {"steps": 6},
        "fab": {"steps": 6, "targets": 2},
        "fmn": {"steps": 12},
        "ead": {"steps": 12, "search_steps": 3, "initial_c": 0.1},
        "ead_elastic": {"attack": "ead", "steps": 10, "search_steps": 2, "initial_c": 1.0, "rule": "elastic_net"},
        "square": {"queries": 60},
    },
    "l0": {
        "pgd": {"steps": 7},
        "fmn": {"steps": 12},
        "sigma_zero": {"steps": 20},
        "jsma": {"targets": 2},
        "sparse_rs": {"queries": 60},
    },
}
RADII = {"linf": "0.07", "l2": "0.6", "l1": "3", "l0": "3"}


def fingerprint() -> str:
    """Hash of what this machine's arithmetic makes of some convolutions: bits are compared where it agrees."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 16, 16, generator=generator)
    parts = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(4608, 10))
    for dtype in (torch.float32, torch.bfloat16):
        here = x.to(dtype).requires_grad_()
        value = net.to(dtype)(here).log_softmax(1)[:, 0].sum()
        parts += [
            value.detach().float(),
            *(g.float() for g in torch.autograd.grad(value, [here, *net.parameters()])),
        ]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]


def digest(values: np.ndarray[Any, Any]) -> str:
    content = f"{values.dtype}{values.shape}".encode() + np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def robustly(*words: object) -> None:
    code = main([str(word) for word in words])
    assert code == 0, words


def recipe_settings(recipe: str) -> dict[str, Any]:
    dataset, _, method = recipe.partition("/")
    text = resources.files("robustly").joinpath("recipes", dataset, f"{method}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def recipes() -> list[str]:
    folder = resources.files("robustly").joinpath("recipes", "mnist5k")
    own = sorted(f"mnist5k/{entry.name.removesuffix('.yaml')}" for entry in folder.iterdir())
    return [*own, *WITH_NORMS]


def little_settings(recipe: str, teacher: Path, extra: Path) -> dict[str, str]:
    """The recipe's method on 90 digits, its late parts at work from the second epoch on."""
    settings = recipe_settings(recipe)
    words = LITTLE | WITH_NORMS.get(recipe, {})
    if "threats" in settings:
        del words["threat"]
        words["threats"] = "[linf:0.1, l1:2]"
    if "&" in settings.get("threat", ""):
        words["threat"] = "rotation:10&brightness:0.1&linf:0.1"
    for role in ("model", *ROLES):
        if settings.get(role) is not None or role == "model":
            if (settings.get(role) or {}).get("pretrain"):
                words[f"{role}.pretrain"] = "3"
                words |= {"optimizer.learning_rate": "0.02"} if role == "guide" else {}  # for more than chance
            words[f"{role}.width"] = "0.0625" if recipe in WITH_NORMS else "0.25"
            if recipe in WITH_NORMS:
                words |= {f"{role}.name": "resnet18", f"{role}.mean": "[0.1]", f"{role}.std": "[0.3]"}
            elif role == "model" and settings["model"]["name"] == "small_cnn":
                words["model.dropout"] = "0.3"
            if role.endswith("teacher"):
                words[f"{role}.weights"] = str(teacher)
    method = settings["method"]
    if "extra_source" in settings["data"]:
        words["data.extra_source"] = str(extra)
    late = {"weights": method.get("weights"), "loss": method.get("loss")}
    late |= {f"parameters.{name}": part for name, part in (method.get("parameters") or {}).items()}
    for slot, part in late.items():
        for key in ("burn_in", "start", "begin") + (("warm_up",) if slot.endswith("awp") else ()):
            if isinstance(part, dict) and part.get(key, 0) > 1:
                words[f"method.{slot}.{key}"] = "1"
    return words


def write_teacher(folder: Path, net: nn.Module) -> Path:
    """A network that has learnt nothing, but says something."""
    path = folder / "teacher.safetensors"
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    save_file({name: value.numpy() for name, value in net.state_dict().items()}, path)
    return path


def write_extra(folder: Path) -> Path:
    """Images of nothing, with labels."""
    path = folder / "noise.npz"
    numbers = np.random.default_rng(0)
    np.savez(path, image=numbers.integers(256, size=(40, 16, 16), dtype=np.uint8), label=np.arange(40) % 10)
    return path


def train(recipe: str, folder: Path, teacher: Path, extra: Path) -> None:
    """A little run of a recipe."""
    words = [word for key, value in little_settings(recipe, teacher, extra).items() for word in (f"--{key}", value)]
    robustly("train", recipe, "--out", folder, *words)


def released(folder: Path) -> dict[str, Any]:
    """Hash and size of the released weights, and the losses on the way."""
    weights = load_file(folder / "model.safetensors")
    joined = b"".join(np.ascontiguousarray(weights[name]).tobytes() for name in sorted(weights))
    rows = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    losses = [float(row.split(",")[rows[0].split(",").index("train_loss")]) for row in rows[1:]]
    return {
        "weights": hashlib.sha256(joined).hexdigest()[:16],
        "norm": math.sqrt(sum(float(np.square(v.astype(np.float64)).sum()) for v in weights.values())),
        "losses": losses,
    }


def evidence(run: Path, name: str) -> dict[str, Any]:
    """Hashes of every column and image, and the numbers that a report prints."""
    folder = run / f"evaluation_{name}"
    table = pq.read_table(folder / "evidence.parquet")
    images = load_file(folder / "adversarial.safetensors")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    printed = {key: summary[key] for key in ("clean", "worst_case", "certified", "per_class", "invalid", "masking")}
    printed["attacks"] = {
        key: {name: value for name, value in entry.items() if name != "seconds"}
        for key, entry in summary["attacks"].items()
    }
    curve = summary["security_curve"]
    printed["security_curve"] = None if curve is None else {k: v for k, v in curve.items() if k != "attack"}
    printed["findings"] = {entry["id"]: [entry["passed"], entry["value"]] for entry in summary["findings"]}
    return {
        "columns": {column: digest(table[column].to_numpy()) for column in table.column_names},
        "images": {key: digest(values) for key, values in sorted(images.items())},
        "printed": printed,
    }


def evaluated(run: Path, suite: str, threat: str = "linf:0.07") -> dict[str, Any]:
    name = f"{suite}_{threat.partition(':')[0]}"
    words = ["--threat", threat, "--evaluation.batch_size", "25", "--evaluation.curve_count", "30"]
    robustly("evaluate", run, "--suite", suite, "--as", name, *words)
    return evidence(run, name)


def attacked(run: Path, norm: str, name: str) -> dict[str, Any]:
    """One attack on every example that the network classifies correctly."""
    stages = {name: {"attack": name, **KINDS[norm][name]}}
    label = f"{norm}_{name}"
    words = ["--threat", f"{norm}:{RADII[norm]}", "--evaluation.batch_size", "25", "--evaluation.suite", label]
    robustly("evaluate", run, "--as", label, *words, "--evaluation.stages", json.dumps(stages))
    found = evidence(run, label)
    return {
        "columns": {key: value for key, value in found["columns"].items() if key.startswith(f"{name}.")},
        "images": {key: value for key, value in found["images"].items() if key.startswith(f"{name}.")},
        "printed": found["printed"]["attacks"],
    }


def victim(folder: Path) -> Path:
    robustly("train", "mnist5k/trades", "--out", folder / "victim", *VICTIM)
    return folder / "victim"


def diagnosed(run: Path) -> dict[str, Any]:
    main(["diagnose", str(run), "--threat", "linf:0.07", "--count", "40"])
    content = json.loads((run / "diagnostics.json").read_text(encoding="utf-8"))
    return {entry["id"]: [entry["passed"], entry["value"]] for entry in content["findings"]}


def all_values(folder: Path) -> dict[str, Any]:
    from robustly.models import ModelConfig, build_model

    net = build_model(ModelConfig(width=0.25, image_size=(16, 16)), seed=0)
    teacher, extra = write_teacher(folder, net), write_extra(folder)
    values: dict[str, Any] = {"fingerprint": fingerprint(), "recipes": {}, "suites": {}, "attacks": {}}
    for recipe in recipes():
        train(recipe, folder / recipe.replace("/", "_"), teacher, extra)
        values["recipes"][recipe] = released(folder / recipe.replace("/", "_"))
    run = victim(folder)
    values["victim"] = released(run)
    for suite, threat in SUITES:
        values["suites"][f"{suite} {threat}"] = evaluated(run, suite, threat)
    for norm, kinds in KINDS.items():
        values["attacks"][norm] = {name: attacked(run, norm, name) for name in kinds}
    values["diagnostics"] = diagnosed(run)
    return values


SUITES = [
    *((suite, "linf:0.07") for suite in ("quick", "standard", "aa_standard", "dynat")),
    *(("quick", f"{norm}:{RADII[norm]}") for norm in ("l2", "l1", "l0")),
    ("standard", "l1:3"),
]

if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        found = all_values(Path(temporary))
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else VALUES
    target.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
