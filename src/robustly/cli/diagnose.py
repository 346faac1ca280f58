"""`robustly diagnose`."""

from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from robustly.cli.subject import first_threat, keep_run, load_subject, run_of_command
from robustly.cli.terminal import PlainConsole
from robustly.evaluation import EvaluationTarget
from robustly.evaluation.diagnostics import diagnose, masking_suspected
from robustly.evidence import Finding
from robustly.files import write_json
from robustly.models import weights_hash

DIAGNOSTICS, SCHEMA = "diagnostics.json", 1
_MARKS = {True: "[green]ok[/]", False: "[red]FAILED[/]", None: "[yellow]open[/]"}


def run_diagnostics(place: Path | None, count: int, overrides: list[str], trust_code: bool) -> int:
    """Test the model of a run for masked gradients and print the findings; 1 if masking is suspected, else 0.

    Args:
        place: the run, or a model that was trained elsewhere; see `given_run`.
        count: number of test images, from the first.
        overrides: settings, such as another threat.
        trust_code: whether models that only a file names may be imported.

    Raises:
        ValueError: the folder has no run, or weights or data cannot be read.
        OSError: the file cannot be written.
    """
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    run = run_of_command(place, overrides)
    config, folder = first_threat(run, "diagnose"), run.folder
    subject = load_subject(run, trust_code)
    model, data = subject.model, subject.data
    target = EvaluationTarget(model, data, config.threat, config.seed, config.evaluation.batch_size or 250)
    findings = diagnose(target, count=min(count, len(data)))
    masking = masking_suspected(findings)
    content = {
        "schema": SCHEMA,
        "model": {"weights_sha256": weights_hash(model)},
        "data": {"source": data.source, "count": min(count, len(data))},
        "threat": str(config.threat),
        "findings": [asdict(finding) for finding in findings],
        "masking": masking,
    }
    keep_run(run)
    write_json(folder / DIAGNOSTICS, content)
    console = PlainConsole()
    console.print(findings_table(findings, f"{folder.resolve().name}: {config.threat}"))
    if masking:
        console.print("[red]masking suspected:[/] robust accuracy is an upper bound", highlight=False)
    elif any(finding.passed is False for finding in findings):
        console.print("no masking suspected; the failed tests are hints for a better evaluation", highlight=False)
    console.print(f"diagnostics: {folder / DIAGNOSTICS}", soft_wrap=True, highlight=False, markup=False)
    return 1 if masking else 0


def findings_table(findings: list[Finding], title: str) -> Table:
    """A table with one row per finding: result, value and threshold, meaning."""
    table = Table(title=escape(title), title_justify="left", show_lines=True)
    for column in ("test", "", "measured", "meaning"):
        table.add_column(column)
    for finding in findings:
        value = "" if finding.value is None else f"{finding.value:.3g} ({finding.threshold})"
        table.add_row(
            escape(f"{finding.id}: {finding.title}"), _MARKS[finding.passed], escape(value), escape(finding.words)
        )
    return table
