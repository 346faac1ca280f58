"""One self-contained HTML page, with style, scripts and figures, from a template and its content."""

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import metadata, resources

import jinja2
from markupsafe import Markup

from robustly.reports import formats
from robustly.reports.figures.charts import Figure
from robustly.reports.pages.attack_rows import passes
from robustly.reports.pages.run_view import embedded_json


def assembled(template: str, figures: Mapping[str, Figure], content: Mapping[str, object]) -> str:
    """The page as text.

    Args:
        template: name of the template's file; it extends `frame.html`.
        figures: all figures, by the id of their element on the page.
        content: values that the template uses.
    """
    scripts = {name: _script(_resource(f"{name}.js")) for name in ("theme", "page", "download", "plotly")}
    drawn = {key: {"data": figure.data, "layout": figure.layout} for key, figure in figures.items()}
    frame = {
        "version": metadata.version("robustly"),
        "figures_json": embedded_json(drawn),
        "style": _resource("style.css"),
        "theme_script": scripts["theme"],
        "plotly_script": scripts["plotly"],
        "page_script": scripts["page"],
        "download_script": scripts["download"],
        "script_hashes": [_hash(text) for text in scripts.values()],
    }
    return _environment().get_template(template).render({**content, **frame})


def static_page(template: str, content: Mapping[str, object]) -> str:
    """A page without scripts and figures as text.

    Args:
        template: name of the template's file.
        content: values that the template uses.
    """
    return _environment().get_template(template).render({**content, "style": _resource("style.css")})


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("robustly.reports.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment


def _resource(name: str) -> str:
    return resources.files("robustly.reports.pages").joinpath("templates", name).read_text(encoding="utf-8")


def _script(text: str) -> str:
    """JavaScript for a page, without sequences that end the script element or open a comment."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    return plain.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    """Hash of a script for the page's security policy, which allows no other scripts."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _breakable(text: str) -> Markup:
    """Text with allowed line breaks after underscores and slashes, for long names on narrow screens."""
    parts = re.split(r"(?<=[_/-])", text)
    return Markup("<wbr>").join(parts)


_FILTERS = {
    "percent": formats.percent,
    "interval": formats.interval,
    "deviating": lambda score: formats.deviating(score.share, score.deviation),
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
