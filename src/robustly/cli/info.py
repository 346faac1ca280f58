"""`robustly info`: the facts about a path, read from its files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from robustly.cli.runs import is_sweep, runs_in
from robustly.cli.terminal import PlainConsole
from robustly.documents import read_json
from robustly.evidence import EvidenceError, Summary, read_summary
from robustly.evidence.audit_record import read_audit, read_signature
from robustly.evidence.schema import IMAGES, SUMMARY, TABLE
from robustly.experiments.keys import UNTRAINED
from robustly.experiments.portable import HF_CONFIG, HF_WEIGHTS, KEY, description_from, stored_description
from robustly.experiments.run_folder import CONFIG, EVALUATION, RunError, open_run
from robustly.experiments.sweep_folders import state_of
from robustly.files import file_sha256
from robustly.models import read_weights, weights_hash
from robustly.statistics import Proportion
from robustly.training.engine.loop import BEST, FINAL

Facts = dict[str, Any]


def run_info(path: Path, as_json: bool) -> int:
    """Print the facts about a path; returns the exit code.

    Args:
        path: a run, a sweep, an evaluation, a file of weights, or an exported folder.
        as_json: whether JSON is printed.

    Raises:
        ValueError: nothing of these, or its files are damaged.
        OSError: a file cannot be read.
    """
    facts = facts_of(path)
    console = PlainConsole(soft_wrap=True)
    if as_json:
        print(json.dumps(facts, indent=1, allow_nan=False))  # noqa: T201
        return 0
    for line in _lines(facts):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def facts_of(path: Path) -> Facts:
    """The facts about a path, as plain values of JSON; the key `kind` names what it is.

    Raises:
        ValueError: it is nothing that robustly writes, or its files are damaged.
        OSError: a file cannot be read.
    """
    if path.is_file() and path.name in (CONFIG, SUMMARY, TABLE, IMAGES, HF_CONFIG):
        path = path.parent  # the file stands for its folder
    if (path / CONFIG).is_file():
        return run_facts(path)
    if is_sweep(path):
        return _sweep_facts(path)
    if (path / SUMMARY).is_file():
        return evidence_facts(path)
    if (path / HF_CONFIG).is_file():
        return _exported_facts(path)
    if path.is_file():
        return weights_facts(path)
    if not path.exists():
        raise RunError(f"there is no file or folder {path}")
    raise RunError(
        f"{path} is nothing that robustly writes: expected a folder with {CONFIG} (a run), {SUMMARY} (an "
        f"evaluation), sweep.yaml or {HF_CONFIG}, or a file of weights"
    )


def run_facts(folder: Path) -> Facts:
    """Settings, state and weights of a run, and the numbers of its evaluations."""
    config = open_run(folder)
    facts: Facts = {
        "kind": "run",
        "path": str(folder),
        "recipe": config.recipe,
        "seed": config.seed,
        "threat": config.threats_text,
        "data": config.data.source,
        "model": config.model.name,
        **({} if config.recipe == UNTRAINED else {"epochs": config.training.epochs, **_state(folder)}),
    }
    named = [] if config.model.weights is None else [Path(config.model.weights)]
    weights = next((one for one in (folder / FINAL, folder / BEST, *named) if one.is_file()), None)
    if weights is not None:
        facts["weights"] = _weights(weights)
    files = [one for one in folder.rglob("*") if one.is_file()]
    facts["size"] = {"files": len(files), "bytes": sum(one.stat().st_size for one in files)}
    found = sorted(one for one in folder.glob(f"{EVALUATION}*") if (one / SUMMARY).is_file())
    facts["evaluations"] = {one.name: _evaluation(one) for one in found}
    return {key: value for key, value in facts.items() if value is not None}


def _state(folder: Path) -> Facts:
    """Progress of the training of a run."""
    try:
        state = state_of(folder, evaluate=False)
    except RunError as error:
        return {"damaged": str(error)}
    return {
        "state": state.state,
        "best epoch": state.best_epoch,
        "training seconds": state.seconds,
        "validation clean": state.clean,
        "validation robust": state.robust,
    }


def evidence_facts(folder: Path) -> Facts:
    """Subject, numbers, checks and files of an evaluation."""
    summary = read_summary(folder)
    model, data = summary.model, summary.data
    failed = [finding.title for finding in summary.findings if finding.passed is False]
    facts: Facts = {
        "kind": "evidence",
        "path": str(folder),
        "run": summary.run or None,
        "schema": summary.schema,
        "created": summary.created or None,
        "model": {
            "name": model.name,
            "parameters": model.parameters,
            "weights_sha256": model.weights_sha256,
            "checkpoint": model.checkpoint,
        },
        "data": {"source": data.source, "split": data.split, "count": data.count, "classes": len(data.classes)},
        **_evaluation(folder, summary),
        "attacks": {one.attack.title: one.state or _share(one.numbers.robust) for one in summary.outcomes},
        "failed diagnostics": failed,
        "warnings": list(summary.warnings),
        "versions": dict(summary.versions),
        "files": {one.name: one.stat().st_size for one in sorted(folder.iterdir()) if one.is_file()},
    }
    return {key: value for key, value in facts.items() if value not in (None, [], {})}


def weights_facts(file: Path) -> Facts:
    """Tensors of a file of weights; its description if it was exported."""
    facts: Facts = {"kind": "weights", "path": str(file), **_weights(file)}
    found = stored_description(file) if file.suffix == ".safetensors" else None
    if found is not None:
        facts["description"] = description_from(found, str(file)).as_json()
    return facts


def _exported_facts(folder: Path) -> Facts:
    content = read_json(folder / HF_CONFIG)
    found = content.get(KEY) if isinstance(content, dict) else None
    kind = "Hugging Face folder" if found is None else "exported model"
    facts: Facts = {"kind": kind, "path": str(folder)}
    if found is not None:
        facts["description"] = description_from(found, str(folder / HF_CONFIG)).as_json()
    elif isinstance(content, dict):
        names = ("model_type", "architectures", "num_labels", "image_size")
        facts |= {name: content[name] for name in names if name in content}
        facts |= {"classes": len(content["id2label"])} if isinstance(content.get("id2label"), dict) else {}
    if (folder / HF_WEIGHTS).is_file():
        facts["weights"] = _weights(folder / HF_WEIGHTS)
    return facts


def _sweep_facts(folder: Path) -> Facts:
    runs = runs_in(folder)
    states = {run.name: state_of(run, evaluate=False) for run in runs}
    return {
        "kind": "sweep",
        "path": str(folder),
        "runs": len(runs),
        "states": dict(Counter(state.state for state in states.values())),
        "evaluated": {name: state.evaluated for name, state in states.items() if state.evaluated is not None},
    }


def _weights(file: Path) -> Facts:
    tensors = read_weights(file)
    types = Counter(str(value.dtype).removeprefix("torch.") for value in tensors.values())
    names = sorted(tensors)
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "file_sha256": file_sha256(file),
        "weights_sha256": weights_hash(tensors),
        "tensors": len(tensors),
        "numbers": sum(value.numel() for value in tensors.values()),
        "types": dict(types),
        "first": f"{names[0]} {tuple(tensors[names[0]].shape)}" if names else "",
        "last": f"{names[-1]} {tuple(tensors[names[-1]].shape)}" if names else "",
    }


def _evaluation(folder: Path, summary: Summary | None = None) -> Facts:
    """The numbers of an evaluation, and whether it was audited and signed. A summary of None is read."""
    try:
        summary = summary or read_summary(folder)
        audit, signature = read_audit(folder), read_signature(folder)
    except EvidenceError as error:
        return {"damaged": str(error)}
    metrics = summary.metrics
    facts: Facts = {
        "weights": "after the last epoch" if summary.model.is_last_epoch else None,
        "threat": summary.threat.text,
        "suite": summary.suite.name,
        "images": summary.data.count,
        "clean": _share(metrics.clean),
        "robust": _share(metrics.worst_case.robust),
        "robust as 8-bit files": _share(metrics.worst_case.robust_8bit),
        "certified": None if metrics.certified is None else _share(metrics.certified.robust),
        "masking suspected": bool(summary.masking),
        "audit": "none" if audit is None else ("passed" if audit.passed else "failed"),
        "signed": signature is not None,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _share(part: Proportion) -> Facts:
    return {"share": part.share, "low": part.low, "high": part.high, "count": part.count}


def _lines(facts: Facts, indent: str = "") -> list[str]:
    """Facts as lines; groups are indented."""
    lines: list[str] = []
    for key, value in facts.items():
        if value is None:
            continue
        if isinstance(value, dict) and set(value) == {"share", "low", "high", "count"}:
            low, high = 100 * value["low"], 100 * value["high"]
            lines.append(f"{indent}{key}: {100 * value['share']:.1f} % [{low:.1f}, {high:.1f}] of {value['count']}")
        elif isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, f"{indent}  ")] if value else []
        else:
            lines.append(f"{indent}{key}: {_text(key, value)}")
    return lines


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in ("bytes", "numbers", "parameters"):
        return f"{value:,}"
    if key.startswith("validation"):
        return f"{100 * value:.1f} %"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
