"""Self-contained HTML page of one run, or of a comparison of several."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from robustly.files import write_text
from robustly.reports import formats
from robustly.reports.comparison_verdict import comparison_verdict
from robustly.reports.figures.charts import Figure
from robustly.reports.figures.threat_curves import threat_curves
from robustly.reports.pages.gallery import share_of_bytes
from robustly.reports.pages.html import assembled
from robustly.reports.pages.run_view import RunView, view
from robustly.reports.reading import read_run
from robustly.reports.run import ReportError, RunEvidence, distinct_names
from robustly.reports.source_names import named_sources
from robustly.reports.tables.comparison import Comparison, compare, comparison_figures
from robustly.reports.tables.threat_matrix import matrix_of_runs

SECTIONS = (
    ("attacks", "Attacks"),
    ("domains", "Domains"),
    ("costs", "Costs"),
    ("proofs", "Proofs"),
    ("trust", "Trust"),
    ("union", "Several threats"),
    ("protocols", "Suites of threats"),
    ("corruptions", "Corruptions"),
    ("robustness", "Robustness"),
    ("inside", "Inside"),
    ("pictures", "Pictures"),
    ("training", "Training"),
    ("setup", "Setup"),
)


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Write the report of one run, or the comparison of several, as one HTML file.

    The file is written under a temporary name beside `output` and then renamed, so that it is never incomplete.

    Args:
        runs: folders of the runs.
        output: HTML file to write; missing folders are created.

    Returns:
        `output`.

    Raises:
        ReportError: there is no run, or a run cannot be reported.
        EvidenceError: the evidence of a run is damaged.
    """
    page = render([read_run(Path(run)) for run in runs])
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page)
    return output


def render(runs: Sequence[RunEvidence], beside: Sequence[RunEvidence] = ()) -> str:
    """The page of these runs as text.

    Args:
        runs: the runs, which are compared if there are several.
        beside: further evaluations of theirs, such as proofs under a smaller threat, shown but not ranked.

    Raises:
        ReportError: there is no run.
    """
    if not runs:
        raise ReportError("A report needs at least one run.")
    if len(runs) == 1:
        runs, beside = [*runs, *beside], ()
    every = [*runs, *beside]
    names = distinct_names([(run.name, run.path) for run in every])
    every = [replace(_without_folders(run), name=name) for run, name in zip(every, names, strict=True)]
    runs, beside = every[: len(runs)], every[len(runs) :]
    views = [view(run, f"run{i + 1}", share_of_bytes(len(every))) for i, run in enumerate(every)]
    comparison = compare(runs) if len(runs) > 1 else None
    together = comparison_figures(runs) if comparison else ()
    matrix = matrix_of_runs(runs) if comparison else None
    curves = threat_curves(runs) if comparison else ()
    return assembled(
        "page.html",
        _figures(views, (*together, *curves)),
        {
            "title": _title(runs),
            "lead": _lead(runs),
            "beside": [one.verdict.sentence for one in views[len(runs) :]],
            "verdict": views[0].verdict if comparison is None else comparison_verdict(runs),
            "navigation": _navigation(views, comparison, matrix is not None or bool(curves)),
            "matrix": matrix,
            "threat_curves": curves,
            "views": views,
            "comparison": comparison,
            "figures": together,
            "count": len(runs),
        },
    )


def _without_folders(run: RunEvidence) -> RunEvidence:
    """The run with the names of files and folders instead of their paths; the numbers stay."""
    return replace(
        run,
        config=named_sources(run.config),
        training=named_sources(run.training),
        evaluation=named_sources(run.evaluation),
        notes=named_sources(run.notes),
        analysis=named_sources(run.analysis),
        audit=named_sources(run.audit),
        check=named_sources(run.check),
        corruptions=named_sources(run.corruptions),
        costs=named_sources(run.costs),
        union=named_sources(run.union),
        left_out=named_sources(run.left_out),
        tests=named_sources(run.tests),
        protocols=named_sources(run.protocols),
    )


def _title(runs: Sequence[RunEvidence]) -> str:
    names = [run.name for run in runs]
    if len(names) <= 2:
        return " against ".join(names)
    return f"{len(names)} runs compared"


def _lead(runs: Sequence[RunEvidence]) -> str:
    """The data and the threat, if all runs have the same."""
    tested = [run.evaluation for run in runs if run.evaluation is not None]
    if not tested:
        return f"{len(runs)} training runs, none of them evaluated yet."
    parts = [f"Comparison of {len(runs)} runs"]
    data = {
        f"{formats.count(one.data.count)} {one.data.split or ''} examples of {one.data.source}" for one in tested
    }
    threats = {one.threat.text for one in tested}
    if len(data) == 1:
        parts.append(f"tested on {' '.join(data.pop().split())}")
    if len(threats) == 1:
        parts.append(f"under {threats.pop()}")
    text = ", ".join(parts) + "."
    missing = len(runs) - len(tested)
    return text if not missing else f"{text} Not evaluated yet: {missing}."


def _navigation(
    views: Sequence[RunView], comparison: Comparison | None, threats: bool
) -> list[tuple[str, str, str]]:
    """Links as (id, section, text). Links with a section lead to the run that is shown."""
    links = [("summary", "", "Summary")]
    if comparison is not None:
        links.append(("comparison", "", "Comparison"))
        links += [("threats", "", "Threats")] if threats else []
        links += [("together", "", "Charts"), ("runs", "", "Runs")]
    for section, words in SECTIONS:
        keys = [one.key for one in views if _has(one, section)]
        if keys:
            links.append((f"{section}-{keys[0]}", section, words))
    return links


def _has(one: RunView, section: str) -> bool:
    parts = {
        "attacks": one.run.evaluation is not None,
        "domains": one.domains is not None,
        "costs": one.costs is not None,
        "proofs": bool(one.certificates),
        "trust": one.run.evaluation is not None,
        "union": bool(one.union or one.left_out),
        "protocols": bool(one.protocols),
        "corruptions": one.corruptions is not None,
        "robustness": bool(one.charts),
        "inside": bool(one.analysis or one.measures),
        "pictures": one.gallery is not None or one.pictures_left_out,
        "training": bool(one.training),
        "setup": True,
    }
    return parts[section]


def _figures(views: Sequence[RunView], together: Sequence[Figure]) -> dict[str, Figure]:
    """All figures of the page, by the id of their element."""
    found = [("all", figure) for figure in together]
    found += [
        (one.key, figure)
        for one in views
        for figure in (*one.charts, *one.threat_curves, *one.proofs, *one.analysis, *one.training)
    ]
    return {f"{key}-{figure.words.key}": figure for key, figure in found}
