"""Evidence of one or several runs -> one self-contained HTML page."""

import base64
import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata, resources
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from robustly.reports import formats
from robustly.reports.charts import Figure
from robustly.reports.comparison import Comparison, compare, comparison_figures
from robustly.reports.evidence import ReportError, RunEvidence
from robustly.reports.reading import read_run
from robustly.reports.views import RunView, embedded_json, passes, view

SECTIONS = (
    ("attacks", "Attacks"),
    ("trust", "Trust"),
    ("union", "Several threats"),
    ("robustness", "Where it breaks"),
    ("inside", "Inside"),
    ("pictures", "Pictures"),
    ("training", "Training"),
    ("setup", "Setup"),
)


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Write the report of one run, or the comparison of several, as one HTML file.

    The file appears whole or not at all: it is written under a temporary name beside `output`, then
    renamed.

    Args:
        runs: the folders of the runs.
        output: the HTML file to write; missing folders are made.

    Returns:
        `output`.

    Raises:
        ReportError: if there is no run, or a run cannot be read.
    """
    page = render([read_run(Path(run)) for run in runs])
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8", newline="\n")
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return output


def render(runs: Sequence[RunEvidence]) -> str:
    """The page of these runs as text.

    Raises:
        ReportError: if there is no run.
    """
    if not runs:
        raise ReportError("A report needs at least one run.")
    runs = _distinct_names(runs)
    views = [view(run, f"run{i + 1}") for i, run in enumerate(runs)]
    comparison = compare(runs) if len(runs) > 1 else None
    together = comparison_figures(runs) if comparison else ()
    scripts = {name: _script(_resource(f"{name}.js")) for name in ("theme", "page")}
    scripts["plotly"] = _script(get_plotlyjs())
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("robustly.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment.get_template("page.html").render(
        title=_title(runs),
        lead=_lead(runs),
        version=metadata.version("robustly"),
        navigation=_navigation(views, comparison),
        views=views,
        comparison=comparison,
        figures=together,
        figures_json=embedded_json(_figures(views, together)),
        style=_resource("style.css"),
        theme_script=scripts["theme"],
        plotly_script=scripts["plotly"],
        page_script=scripts["page"],
        script_hashes=[_hash(text) for text in scripts.values()],
    )


def _distinct_names(runs: Sequence[RunEvidence]) -> list[RunEvidence]:
    """Runs of one name are told apart by the folders they lie in, or else by numbers."""
    often = Counter(run.name for run in runs)
    longer = [
        run
        if often[run.name] == 1
        else replace(run, name=f"{run.path.resolve().parent.name}/{run.path.resolve().name}")
        for run in runs
    ]
    often = Counter(run.name for run in longer)
    return [
        run if often[run.name] == 1 else replace(run, name=f"{run.name} ({i + 1})") for i, run in enumerate(longer)
    ]


def _title(runs: Sequence[RunEvidence]) -> str:
    names = [run.name for run in runs]
    if len(names) <= 2:
        return " against ".join(names)
    return f"{len(names)} runs compared"


def _lead(runs: Sequence[RunEvidence]) -> str:
    """What all the runs were tested on, where they have that in common."""
    tested = [run.evaluation for run in runs if run.evaluation is not None]
    if not tested:
        return f"{len(runs)} training runs, none of them evaluated yet."
    parts = [f"{len(runs)} runs side by side"]
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


def _navigation(views: Sequence[RunView], comparison: Comparison | None) -> list[tuple[str, str, str]]:
    """Links as (id, section, words); the page aims those with a section at the run that is shown."""
    links = [("summary", "", "Summary")]
    if comparison is not None:
        links += [("comparison", "", "Side by side"), ("together", "", "Charts"), ("runs", "", "Runs")]
    for section, words in SECTIONS:
        keys = [one.key for one in views if _has(one, section)]
        if keys:
            links.append((f"{section}-{keys[0]}", section, words))
    return links


def _has(one: RunView, section: str) -> bool:
    parts = {
        "attacks": one.run.evaluation is not None,
        "trust": bool(one.checks),
        "union": bool(one.union),
        "robustness": bool(one.charts),
        "inside": bool(one.analysis or one.measures),
        "pictures": one.gallery is not None,
        "training": bool(one.training),
        "setup": True,
    }
    return parts[section]


def _figures(views: Sequence[RunView], together: Sequence[Figure]) -> dict[str, object]:
    """Everything that plotly draws, by the name that its place on the page carries."""
    found = [("all", figure) for figure in together]
    found += [(one.key, figure) for one in views for figure in (*one.charts, *one.analysis, *one.training)]
    return {f"{key}-{figure.words.key}": {"data": figure.data, "layout": figure.layout} for key, figure in found}


def _resource(name: str) -> str:
    return resources.files("robustly.reports").joinpath("templates", name).read_text(encoding="utf-8")


def _script(text: str) -> str:
    """JavaScript as it can stand in a page: nothing in it may end the script element or open a comment."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    return plain.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    """The hash by which the page's security policy lets this script run, and no other."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _breakable(text: str) -> Markup:
    """Text whose lines may break behind underscores and slashes, as run names need it on a phone."""
    parts = re.split(r"(?<=[_/-])", text)
    return Markup("<wbr>").join(parts)


_FILTERS = {
    "percent": formats.percent,
    "interval": formats.interval,
    "proportion": formats.proportion,
    "count": formats.count,
    "decimal": formats.decimal,
    "duration": formats.duration,
    "short": formats.short,
    "breakable": _breakable,
    "moment": formats.moment,
    "setting": formats.setting,
    "number": lambda value: f"{value:.5f}",
    "passes": passes,
}
