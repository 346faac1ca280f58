"""The page of a dossier and the plot of a result in a browser: nothing is cut off, at any width and theme."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import Synthetic, write_synthetic_run
from test_report_in_browser import ARGUMENTS, CHROMIUM, VIEWS

from robustly.reports.dossier.attack_tables import KnownAttack
from robustly.reports.dossier.content import dossier
from robustly.reports.dossier.page import write_dossier
from robustly.reports.figures.result_plot import result_plot
from robustly.reports.reading import read_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]
OUTSIDE = """
() => [...document.querySelectorAll("svg text")].filter(one => {
  const own = one.getBoundingClientRect(), whole = one.ownerSVGElement.getBoundingClientRect();
  return own.left < whole.left - 1 || own.right > whole.right + 1 || own.bottom > whole.bottom + 1;
}).map(one => one.textContent)
"""
READABLE = """
() => {
  const shade = text => text.match(/[0-9.]+/g).slice(0, 3).reduce((sum, one) => sum + Number(one), 0);
  const ink = getComputedStyle(document.querySelector("main, svg text")).color;
  const ground = getComputedStyle(document.querySelector("main") ? document.body : document.querySelector("svg"));
  return Math.abs(shade(ink) - shade(ground.backgroundColor));
}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dossier")
    options = Synthetic(count=200, epochs=4, certified=0.4, warnings=("W" * 90,), masking=("M" * 90,))
    run = read_run(write_synthetic_run(folder, options))
    assert run.evaluation is not None
    titles = tuple(replace(one, title="Attack with a long title, " * 3) for one in run.evaluation.suite.attacks)
    run = replace(run, evaluation=replace(run.evaluation, suite=replace(run.evaluation.suite, attacks=titles)))
    known = (KnownAttack("a_name_that_has_no_place_to_break", "W" * 80, "DDN", False, "l2"),)
    page = write_dossier(dossier(run, known), folder / "dossier.html")
    assert run.evaluation is not None
    inline = f"<body style='margin: 0'>{result_plot(run.evaluation)._repr_html_()}</body>"
    (folder / "inline.html").write_text(inline, encoding="utf-8")
    return {
        "dossier": page,
        "plot": result_plot(run.evaluation).save(folder / "p.svg"),
        "inline": folder / "inline.html",
    }


def test_nothing_is_cut_off(files: dict[str, Path]) -> None:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for width, theme in VIEWS:
            page: Any = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
            problems: list[str] = []
            page.on("console", lambda message, found=problems: found.append(message.text))
            for name, file in files.items():
                page.goto(file.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
                assert page.evaluate(OUTSIDE) == [], (name, width)
                if name != "inline":
                    assert page.evaluate(READABLE) > 400, (name, theme)
            assert problems == []
            page.close()
        browser.close()
