"""`robustly audit`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from robustly.cli.arguments import Trust
from robustly.data import load_test
from robustly.evaluation import Check, EvaluationTarget, EvidenceError, Suite, audit, read_evidence
from robustly.evaluation.suites.composed import suite_from
from robustly.experiments.configuration import build_config
from robustly.experiments.run_folder import evaluation_folder, load_trained, open_run
from robustly.runtime import Runtime


def run_audit(folder: Path, rerun: int, trust_code: bool, label: str | None = None) -> int:
    """Re-check the evaluation of a run; 0 if every check passed, else 1.

    Raises:
        ValueError: no run there, weights or data that cannot be read.
    """
    console = Console()
    if rerun < 1:
        raise ValueError(f"--rerun must be at least 1, got {rerun}")
    config = open_run(folder)
    kept = evaluation_folder(folder, label)
    try:
        summary = read_evidence(kept).summary
        data_settings = summary["data"]["settings"]
        suite_name = summary["suite"]["name"]
    except (EvidenceError, KeyError, TypeError) as error:
        _say(console, Check("the evidence is complete and readable", str(error)))
        return 1
    config = replace(config, data=build_config({"data": data_settings}).data)
    data = load_test(config.data)
    model, _ = load_trained(folder, config, data, Trust(everything=trust_code).allows)
    device = Runtime(replace(config.runtime, processes=1, nodes=1)).device
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    target = EvaluationTarget(model, data.to(device), config.threat)
    result = audit(kept, target, _suite(suite_name, summary), rerun=rerun)
    for check in result.checks:
        _say(console, check)
    verdict = "[green]audit passed" if result.passed else "[red]AUDIT FAILED"
    console.print(f"{verdict}[/]: {sum(check.passed for check in result.checks)} of {len(result.checks)} checks")
    return 0 if result.passed else 1


def _suite(name: str, summary: dict[str, Any]) -> Suite | None:
    """The suite that was run: the known one of that name, or the one that the evidence says was composed."""
    try:
        return suite_from(name, summary.get("composed"), str(summary["threat"]["norm"]))
    except (ValueError, KeyError, TypeError):
        return None


def _say(console: Console, check: Check) -> None:
    mark = "[green]ok    [/]" if check.passed else "[red]FAILED[/]"
    tail = f": {check.problem}" if check.problem else ""
    console.print(f"{mark} {escape(check.name + tail)}", highlight=False, soft_wrap=True)
