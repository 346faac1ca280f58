"""`robustly audit`."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from robustly.cli.arguments import Trust
from robustly.data import load_test
from robustly.evaluation import Audit, Check, EvaluationTarget, Suite, audit
from robustly.evaluation.suites.composed import suite_from
from robustly.evidence import EvidenceError, Summary, read_evidence
from robustly.experiments.configuration import build_config
from robustly.experiments.rows_audit import rows_checks
from robustly.experiments.run_folder import evaluation_folder, load_on_device, open_run
from robustly.experiments.seen_attacks import seen_attacks_check


def run_audit(folder: Path, rerun: int, trust_code: bool, label: str | None = None) -> int:
    """Re-check the evaluation of a run; 0 if every check passed, else 1.

    Raises:
        ValueError: the folder has no run, or weights or data cannot be read.
    """
    console = Console()
    if rerun < 1:
        raise ValueError(f"--rerun must be at least 1, got {rerun}")
    config = open_run(folder)
    kept = evaluation_folder(folder, label)
    try:
        summary = read_evidence(kept).summary
    except EvidenceError as error:
        _print_check(console, Check("the evidence is complete and readable", str(error)))
        return 1
    if summary.data.settings is None:
        _print_check(
            console, Check("the data can be loaded again", f"{kept} does not state the settings of its data")
        )
        return 1
    stored = config
    config = replace(config, data=build_config({"data": summary.data.settings}).data)
    data = load_test(config.data)
    rows = rows_checks(folder, stored, summary, data)
    model, _, device = load_on_device(folder, config, data, Trust(everything=trust_code).allows)
    target = EvaluationTarget(model, data.to(device), config.threat)
    suite = _suite(summary)
    marks = seen_attacks_check(folder, stored, summary, suite)
    result = Audit((*audit(kept, target, suite, rerun=rerun).checks, *rows, marks))
    for check in result.checks:
        _print_check(console, check)
    verdict = "[green]audit passed" if result.passed else "[red]AUDIT FAILED"
    console.print(f"{verdict}[/]: {sum(check.passed for check in result.checks)} of {len(result.checks)} checks")
    return 0 if result.passed else 1


def _suite(summary: Summary) -> Suite | None:
    """The suite of an evaluation: built in, or composed from the stages in the evidence."""
    try:
        return suite_from(summary.suite.name, summary.composed, summary.threat.kind)
    except (ValueError, KeyError, TypeError):
        return None


def _print_check(console: Console, check: Check) -> None:
    mark = "[green]ok    [/]" if check.passed else "[red]FAILED[/]"
    tail = f": {check.problem}" if check.problem else ""
    console.print(f"{mark} {escape(check.name + tail)}", highlight=False, soft_wrap=True)
