"""An evaluation as an entry for RobustBench's leaderboard: its JSON file, and the text of the issue."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustly.compat.robustbench.loading import RobustBenchError, checked_dataset, empty_network
from robustly.compat.robustbench.model_info import FIELDS, epsilon_text, info_file, percent
from robustly.compat.robustbench.zoo import CLASSES, Entry
from robustly.evaluation.suites.autoattack import autoattack
from robustly.evaluation.suites.suite import settings
from robustly.evidence import Evidence, EvidenceError, Summary, read_evidence
from robustly.evidence.provenance import Plan
from robustly.files import write_json, write_text

TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
USUAL_EPSILON = {
    ("cifar10", "Linf"): 8 / 255,
    ("cifar10", "L2"): 0.5,
    ("cifar100", "Linf"): 8 / 255,
    ("imagenet", "Linf"): 4 / 255,
}
_NORMS = {"linf": "Linf", "l2": "L2"}
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
_WIDE = re.compile(r"wrn(\d+)_(\d+)(_silu)?")
_BY_AUTHORS = ("link", "name", "authors", "additional_data", "number_forward_passes", "venue", "reported")


@dataclass(frozen=True)
class Claim:
    """An entry for RobustBench's leaderboard.

    Args:
        model_name: name of the entry, as NameYearFirstWordOfTitle; empty if it is not given yet.
        dataset: "cifar10", "cifar100" or "imagenet".
        threat_model: "Linf" or "L2".
        info: content of `model_info/{dataset}/{threat_model}/{model_name}.json`; None where `missing` names it.
        issue: text of the issue in which RobustBench takes new models, in Markdown.
        missing: fields that only the authors can fill in.
        remarks: sentences on what limits the claim; they are part of `issue`.
    """

    model_name: str
    dataset: str
    threat_model: str
    info: Mapping[str, Any]
    issue: str
    missing: tuple[str, ...]
    remarks: tuple[str, ...]

    def save(self, folder: str | Path = ".") -> tuple[Path, Path]:
        """Write `model_info/{dataset}/{threat_model}/{model_name}.json` and `{model_name}.md`; returns the paths.

        Raises:
            RobustBenchError: the claim has no name.
            OSError: a file cannot be written.
        """
        root = Path(folder)
        file = info_file(root / "model_info", self.dataset, self.threat_model, self.model_name)
        return self.write(file, root / f"{self.model_name}.md")

    def write(self, info: Path, issue: Path) -> tuple[Path, Path]:
        """Write the JSON file and the text of the issue to these paths, and return them.

        Raises:
            OSError: a file cannot be written.
        """
        for path in (info, issue):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(info, dict(self.info))
        write_text(issue, self.issue)
        return info, issue


def claim(
    evidence: Evidence | str | Path,
    model_name: str = "",
    *,
    dataset: str | None = None,
    name: str | None = None,
    link: str | None = None,
    authors: str | None = None,
    venue: str | None = None,
    architecture: str | None = None,
    additional_data: bool | None = None,
    number_forward_passes: int | None = None,
    reported: float | None = None,
    footnote: str | None = None,
    checkpoint: str | None = None,
) -> Claim:
    """The entry for the leaderboard of an evaluation with AutoAttack.

    Accuracies are computed from the rows of the evidence. Fields that only the authors can fill in stay empty.

    Args:
        evidence: result of `robustly.evaluate` with the suite "aa_standard", or the folder of an evaluation or run.
        model_name: name of the entry, as NameYearFirstWordOfTitle.
        dataset: "cifar10", "cifar100" or "imagenet"; None takes the one with as many classes.
        name: title of the paper.
        link: its address.
        authors: its authors, separated by commas.
        venue: such as "ICML 2026"; "Unpublished" for none.
        architecture: such as "WideResNet-28-10"; None finds it for published networks of this package.
        additional_data: whether more data than the training split were used.
        number_forward_passes: forward passes of one prediction.
        reported: robust accuracy that the paper states, in per cent.
        footnote: a sentence below the leaderboard, such as on generated images.
        checkpoint: address of weights and code.

    Raises:
        RobustBenchError: it is not evidence, or not of AutoAttack's standard version on the whole test set; an
            attack failed; or the threat is not a ball of Linf or L2 in [0, 1].
        EvidenceError: the evidence cannot be read.
    """
    if not isinstance(evidence, Evidence | str | Path):
        kind = type(evidence).__name__
        raise RobustBenchError(f"claim takes the result of robustly.evaluate, or a folder, got {kind}")
    found = evidence if isinstance(evidence, Evidence) else _read(Path(evidence).expanduser())
    summary = found.summary
    threat = _threat(summary)
    data = _dataset(summary, dataset)
    _check_suite(summary)
    if len(found.table) != TEST_IMAGES[data]:
        raise RobustBenchError(
            f"the evaluation is of {len(found.table):,} images, but a claim on {data} is of {TEST_IMAGES[data]:,}: "
            "evaluate the whole test set"
        )
    given = {
        "link": link,
        "name": name,
        "authors": authors,
        "additional_data": additional_data,
        "number_forward_passes": number_forward_passes,
        "dataset": data,
        "venue": venue,
        "architecture": _architecture(summary) if architecture is None else architecture,
        "eps": epsilon_text(summary.threat.limit),
        "clean_acc": percent(float(np.mean(found.table.correct))),
        "reported": None if reported is None else str(reported),
        "autoattack_acc": percent(float(np.mean(~found.table.worst_case.broken))),
        "footnote": footnote,
        "unreliable": bool(summary.masking),
    }
    missing = [field for field in (*_BY_AUTHORS, "architecture") if given[field] is None]
    missing = [*([] if model_name else ["model_name"]), *missing, *([] if checkpoint else ["checkpoint"])]
    info = {field: given[field] for field in FIELDS if field != "footnote" or footnote is not None}
    remarks = tuple(_remarks(summary, data, threat))
    issue = _issue(summary, threat, {**info, "model_name": model_name, "checkpoint": checkpoint}, remarks)
    return Claim(model_name, data, threat, info, issue, tuple(missing), remarks)


def _read(path: Path) -> Evidence:
    for folder in (path, path / "evaluation"):
        if (folder / "summary.json").is_file():
            return read_evidence(folder)
    raise EvidenceError(f"{path} has no evaluation: name a run, or the folder with its summary.json")


def _threat(summary: Summary) -> str:
    threat = summary.threat
    if threat.norm not in _NORMS or tuple(threat.box) != (0.0, 1.0):
        raise RobustBenchError(
            f"the threat is {threat.text} in [{threat.box[0]:g}, {threat.box[1]:g}], but the leaderboard has balls "
            "of Linf and L2 in [0, 1]"
        )
    return _NORMS[threat.norm]


def _dataset(summary: Summary, given: str | None) -> str:
    classes = len(summary.data.classes)
    if given is None:
        fitting = [name for name, number in CLASSES.items() if number == classes]
        if not fitting:
            raise RobustBenchError(f"the data have {classes} classes: the leaderboard has {', '.join(CLASSES)}")
        return fitting[0]
    name = checked_dataset(given)
    if CLASSES[name] != classes:
        raise RobustBenchError(f"the data have {classes} classes, but {name} has {CLASSES[name]}")
    return name


def _check_suite(summary: Summary) -> None:
    expected = autoattack("standard", str(summary.threat.norm)).attacks
    wanted = {name: _comparable(settings(attack)) for name, attack in expected.items()}
    run = {one.name: _comparable(one.settings) for one in summary.suite.attacks}
    whole = all(one.plan == Plan() for one in summary.suite.attacks)
    if run != wanted or not whole:
        raise RobustBenchError(
            f"the suite is {summary.suite.name} ({', '.join(run)}), but a claim is of AutoAttack's standard "
            "version: evaluate with the suite aa_standard"
        )
    if summary.failures:
        attack, reason = next(iter(summary.failures.items()))
        raise RobustBenchError(f"the attack {attack} failed, so the evaluation is not complete: {reason}")


def _comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the precision of the search; successes are confirmed in full precision."""
    return {name: value for name, value in values.items() if name != "precision"}


def _architecture(summary: Summary) -> str | None:
    """The leaderboard's name of a published network of this package; None if the number of parameters differs."""
    name, classes = summary.model.name, len(summary.data.classes)
    found = _WIDE.fullmatch(name)
    if found:
        entry, words = Entry("wide", int(found[1]), int(found[2]), classes), f"WideResNet-{found[1]}-{found[2]}"
    elif name in ("resnet18", "preact_resnet18"):
        entry = Entry("resnet" if name == "resnet18" else "preact", classes=classes)
        words = "ResNet-18" if name == "resnet18" else "PreActResNet-18"
    else:
        return None
    count = sum(value.numel() for value in empty_network(entry).parameters())
    return words if count == summary.model.parameters else None


def _remarks(summary: Summary, dataset: str, threat: str) -> list[str]:
    usual = USUAL_EPSILON.get((dataset, threat))
    remarks = []
    if usual is None:
        remarks.append(f"The leaderboard has no table for {threat} on {dataset}.")
    elif abs(summary.threat.limit - usual) > 1e-6:
        own = epsilon_text(summary.threat.limit)
        remarks.append(f"The radius is {own}; the usual one for {threat} on {dataset} is {epsilon_text(usual)}.")
    names = [one.lower() for one in summary.data.classes]
    if dataset == "cifar10" and names != _CIFAR10 and not all(one.isdecimal() for one in names):
        remarks.append(
            f"The classes are {', '.join(names[:3])}, ..., which are not those of CIFAR-10 in its order."
        )
    if "jpeg" in summary.data.source.lower() or "jpg" in summary.data.source.lower():
        remarks.append("The images seem to be compressed as JPEG; the leaderboard's are not.")
    if summary.data.seen:
        remarks.append(f"{summary.data.seen_words[0].upper()}{summary.data.seen_words[1:]}.")
    remarks += [f"Gradients may be masked: {words}" for words in summary.masking]
    return remarks


def _issue(summary: Summary, threat: str, values: Mapping[str, Any], remarks: tuple[str, ...]) -> str:
    def said(field: str, otherwise: str = "") -> str:
        value = values.get(field)
        return otherwise if value in (None, "") else str(value)

    extra = values["additional_data"]
    method = " ".join(
        [
            f"AutoAttack, version standard ({', '.join(one.title for one in summary.suite.attacks)}), as in",
            f"robustly {summary.versions.get('robustly', '')} on {summary.data.count:,} images;",
            f"seed {summary.suite.seed}, random numbers keyed by example; searches in {_precision(summary)},",
            f"successes confirmed in float32. SHA-256 of the weights: {summary.model.weights_sha256}.",
            *remarks,
        ]
    )
    lines = [
        f"Title: [New Model] {said('model_name', '<NameYearFirstWordOfTitle>')}",
        "",
        "# Paper Information",
        "",
        f"- **Paper Title**: {said('name')}",
        f"- **Paper URL**: {said('link')}",
        f"- **Paper authors**: {said('authors')}",
        "",
        "# Leaderboard Claim(s)",
        "",
        "## Model 1",
        "",
        f"- **Architecture**: {said('architecture')}",
        f"- **Threat Model**: {threat}",
        f"- **eps**: {said('eps')}",
        f"- **Clean accuracy**: {said('clean_acc')}",
        f"- **Robust accuracy**: {said('autoattack_acc')}",
        f"- **Additional data**: {'' if extra is None else str(bool(extra)).lower()}",
        f"- **Evaluation method**: {method}",
        f"- **Checkpoint and code**: {said('checkpoint')}",
        "",
        "# Model Zoo:",
        "",
        "- [ ] My models are for the Model Zoo (check if true)",
        "- [ ] The architecture is in RobustBench's model zoo or in `timm`, or I added a link to its code",
        "- [ ] I agree to release my model(s) under MIT license **OR** under a custom license, located here:",
        "",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _precision(summary: Summary) -> str:
    halves = any(one.settings.get("precision") == "bfloat16" for one in summary.suite.attacks)
    return "bfloat16 where that is faster" if halves and summary.precision != "full" else "float32"
