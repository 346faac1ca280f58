"""`robustly diagnose`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from robustly.cli.subject import first_threat, keep_run, load_subject, run_of_command
from robustly.cli.terminal import PlainConsole
from robustly.cli.together import shared_among_processes
from robustly.evaluation import EvaluationTarget
from robustly.evaluation.diagnostics import diagnose, masking_suspected
from robustly.evaluation.parts import Crew
from robustly.evaluation.shards import divided
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
    run = run_of_command(place, overrides, takes_shards=True)
    config, folder = first_threat(run, "diagnose"), run.folder
    content = shared_among_processes(_diagnosed, (place, count, overrides, trust_code), config.runtime)
    if content is None:
        return 0
    findings, masking = [Finding(**one) for one in content["findings"]], content["masking"]
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


def _diagnosed(
    place: Path | None, count: int, overrides: list[str], trust_code: bool, crew: Crew
) -> dict[str, Any]:
    """The content of the file."""
    run = run_of_command(place, overrides, takes_shards=True)
    config = first_threat(run, "diagnose")
    subject = load_subject(run, trust_code)
    model = divided(subject.model, crew, subject.device)
    data, size = subject.data, config.evaluation.batch_size or 250
    target = EvaluationTarget(model, data, config.threat, config.seed, size, crew)
    findings = diagnose(target, count=min(count, len(data)))
    return {
        "schema": SCHEMA,
        "model": {"weights_sha256": weights_hash(model)},
        "data": {"source": data.source, "count": min(count, len(data))},
        "threat": str(config.threat),
        "findings": [asdict(finding) for finding in findings],
        "masking": masking_suspected(findings),
    }


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
