"""Adversarial fine-tuning: settings of a run from trained weights, and accuracies before and after it."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from robustly import documents
from robustly.data import ImageData
from robustly.documents import DocumentError
from robustly.evaluation import evaluate, suite_named
from robustly.evaluation.target import Progress
from robustly.evidence.unions import Tested, union_of_threats
from robustly.experiments.configuration import RunConfig
from robustly.experiments.keys import UNTRAINED, Settings
from robustly.experiments.run_folder import CONFIG, RunError, open_run
from robustly.files import write_json
from robustly.models import weights_hash
from robustly.statistics import Proportion
from robustly.threats import Threat
from robustly.training.engine.loop import BEST, FINAL

RECORD, FORMAT = "finetune.json", "robustly-finetune-1"
SUITE = "quick"
EPOCHS = 10
"""Epochs where no earlier run gives their number."""
Mode = Literal["full", "head_first", "head_only"]
MODES: tuple[Mode, ...] = ("full", "head_first", "head_only")
_PGD = {"name": "pgd", "steps": 10, "relative_step_size": 0.25}
METHODS: dict[str, dict[str, Any]] = {
    "trades": {
        "inner": {**_PGD, "objective": "kl", "start": "gaussian"},
        "loss": {"name": "trades", "beta": 6.0},
    },
    "pgd_at": {"inner": {**_PGD, "objective": "cross_entropy", "start": "random"}, "loss": {"name": "adversarial"}},
}


@dataclass(frozen=True)
class FinetunePlan:
    """The choices of an adversarial fine-tuning.

    Args:
        source: a run folder, or a file of weights.
        data: source of the images; None for those of the run.
        threat: the threat; None for that of the run. Another one than the run's transfers its robustness.
        epochs: epochs; None for a quarter of the run's, or 10 without a run.
        mode: "full" trains all weights, "head_only" the head alone, "head_first" the head for `head_epochs` and all
            weights then.
        head_epochs: epochs of the head alone with "head_first"; None for a quarter of all, at least 1.
        head: name of the head; None for the last linear layer.
        layer_decay: factor of the learning rate from one block to the one before it; see `OptimizerConfig`.

    Raises:
        ValueError: a number out of range, or choices that contradict each other.
    """

    source: Path
    data: str | None = None
    threat: str | None = None
    epochs: int | None = None
    mode: Mode = "full"
    head_epochs: int | None = None
    head: str | None = None
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"--mode is one of {', '.join(MODES)}, got {self.mode!r}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"--epochs must be at least 1, got {self.epochs}")
        if self.head_epochs is not None and self.mode != "head_first":
            raise ValueError(f"--head-epochs has no effect with --mode {self.mode}: add --mode head_first")
        if self.head_epochs is not None and self.head_epochs < 1:
            raise ValueError(f"--head-epochs must be at least 1, got {self.head_epochs}")
        if self.head is not None and self.mode == "full" and self.layer_decay == 1:
            raise ValueError("--head has no effect without --mode head_first or head_only, or --layer-decay")


def finetuning_settings(plan: FinetunePlan, method: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings of a fine-tuning, as `build_config` takes them.

    The learning rates form a triangle, and the threat grows over the first third. The peak is that of the earlier
    run, or 0.01 with SGD, a tenth of the usual one, where there is none.

    Args:
        plan: the choices.
        method: the five parts as plain values.

    Raises:
        RunError: the source is neither a run with weights nor a file, or the settings lack data.
    """
    earlier, weights = _source(plan.source)
    if plan.data is None and earlier is None:
        raise RunError("name the images with --data: a file of weights does not hold them")
    epochs = plan.epochs or (EPOCHS if earlier is None else math.ceil(earlier.training.epochs / 4))
    head_epochs = {
        "full": 0,
        "head_first": min(plan.head_epochs or max(1, epochs // 4), epochs),
        "head_only": epochs,
    }[plan.mode]
    settings: dict[str, Any] = {
        "recipe": "finetune",
        "method": dict(method),
        "schedule": {"name": "one_cycle", "peak": 0.3},
        "training": {
            "epochs": epochs,
            "epsilon_ramp": round(epochs / 3, 3),
            "head_epochs": head_epochs,
            "head": plan.head,
        },
        "optimizer": {"learning_rate": 0.01},
        "model": {},
        "data": {},
    }
    if earlier is not None:
        plain = earlier.as_plain()
        kept_keys = ("seed", "threat", "threats", "data", "runtime", "evaluation")
        settings |= {key: plain[key] for key in kept_keys if key in plain}
        settings["model"] = {**plain["model"], "pretrain": 0}  # the weights are trained
        settings["optimizer"] = dict(plain["optimizer"])
        kept = ("batch_size", "validation_batch_size", "validation_steps", "channels_last")
        settings["training"] |= {key: plain["training"][key] for key in kept}
    settings["model"] = {**settings["model"], "weights": str(weights)}
    settings["optimizer"]["layer_decay"] = plan.layer_decay
    if plan.threat is not None:
        settings.pop("threats", None)
        settings["threat"] = plan.threat
    if plan.data is not None and plan.data != settings["data"].get("source"):
        settings["data"] = {"source": plan.data}
    return settings


def earlier_threats(source: Path) -> tuple[Threat, ...]:
    """The threats of the run that is fine-tuned; none for a file of weights."""
    earlier, _ = _source(source)
    return () if earlier is None or earlier.recipe == UNTRAINED else earlier.threats


def is_of_a_run(source: Path) -> bool:
    """Return True for a run folder and for a file of weights inside one; their networks are known.

    Raises:
        RunError: the source is neither a run with weights nor a file.
    """
    return _source(source)[0] is not None


def _source(source: Path) -> tuple[RunConfig | None, Path]:
    """Settings of a run, if the source is one or a file in one, and the file of the weights.

    Raises:
        RunError: it is neither a run with weights nor a file.
    """
    if (source / CONFIG).is_file():
        config = open_run(source)
        files = [source / FINAL, source / BEST, *([Path(config.model.weights)] if config.model.weights else [])]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise RunError(f"{source} has no weights yet: finish its training first")
        return config, found
    if source.is_file():
        folder = next((one for one in source.resolve().parents[:2] if (one / CONFIG).is_file()), None)
        return None if folder is None else open_run(folder), source
    raise RunError(f"{source} is neither a run folder nor a file of weights")


@dataclass(frozen=True)
class Measured:
    """Accuracies of one set of weights on the test images.

    Args:
        weights: hash of the weights.
        clean: clean accuracy.
        robust: robust accuracy by threat.
        union: robust accuracy under all threats at once; None with one threat.
    """

    weights: str
    clean: Proportion
    robust: dict[str, Proportion] = field(default_factory=dict)
    union: Proportion | None = None


def measure(
    model: nn.Module, data: ImageData, threats: Mapping[str, Threat], *, seed: int, progress: Progress | None = None
) -> Measured:
    """Clean accuracy, and robust accuracy against the suite "quick" under each threat.

    Args:
        model: the network, on the device of the images.
        data: test images.
        threats: the threats by their text.
        seed: seed of the attacks; the same for all weights that are compared.
        progress: callback with (name, done, total).
    """
    clean, robust, rows = Proportion(0, max(len(data), 1)), {}, []
    for text, threat in threats.items():
        suite = replace(suite_named(SUITE, threat.kind), curve=None)
        found = evaluate(model, data, threat, suite, mode="worst_case", seed=seed, progress=progress)
        metrics = found.summary.metrics
        clean, robust[text] = metrics.clean, metrics.worst_case.robust
        rows.append(Tested(found.table, found.summary))
    union = union_of_threats(rows).union if len(rows) > 1 else None
    return Measured(weights_hash(model), clean, robust, union)


def test_images(data: ImageData, count: int) -> ImageData:
    """The first test images, at most `count`.

    Raises:
        ValueError: a count under 1.
    """
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    return data.select(torch.arange(min(count, len(data))))


def compared_threats(config: RunConfig, source: Path) -> dict[str, Threat]:
    """The threats of a fine-tuning, and those of the earlier run that differ, by their text."""
    return {str(threat): threat for threat in (*config.threats, *earlier_threats(source))}


def write_record(folder: Path, source: str, measured: Mapping[str, Measured]) -> None:
    """Write the accuracies of a fine-tuning, by "before" and "after"; the file holds numbers and texts only.

    Raises:
        OSError: the folder is read-only or the disk is full.
    """
    content = {name: asdict(one) for name, one in measured.items()}
    write_json(folder / RECORD, {"format": FORMAT, "source": source, "suite": SUITE, **content})


def read_record(folder: Path, threats: Collection[str], count: int) -> dict[str, Measured]:
    """Accuracies of a fine-tuning, by "before" and "after".

    Empty without a file, if it is damaged, and if it is of other threats or another number of images.

    Args:
        folder: the run.
        threats: texts of the threats.
        count: number of test images.
    """
    try:
        content = documents.read_json(folder / RECORD)
        found = {name: _measured(content[name]) for name in ("before", "after") if name in content}
        fits = all(
            set(one.robust) == set(threats)
            and one.clean.count == count
            and (one.union is None) == (len(threats) < 2)
            for one in found.values()
        )
        return found if fits else {}
    except (OSError, DocumentError, TypeError, KeyError, ValueError, AttributeError):
        return {}  # the numbers are measured again then


def _measured(content: Any) -> Measured:
    robust = {str(text): Proportion(**one) for text, one in content["robust"].items()}
    union = content.get("union")
    whole = None if union is None else Proportion(**union)
    return Measured(str(content["weights"]), Proportion(**content["clean"]), robust, whole)


def method_named(name: str, of_recipe: Settings | None) -> dict[str, Any]:
    """The five parts of a method as plain values.

    Args:
        name: "trades", "pgd_at", or the name of a recipe.
        of_recipe: settings of that recipe; None for the two names.

    Raises:
        RunError: the name is neither.
    """
    if name in METHODS:
        return METHODS[name]
    if of_recipe is None:
        raise RunError(f"--method is {', '.join(METHODS)} or the name of a recipe, got {name!r}")
    method: dict[str, Any] = dict(of_recipe.get("method") or {})
    return method
