"""Figures over several threats in a browser: no label overlaps another, and nothing is cut off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import Synthetic
from synthetic_threats import FEW, LONG, several
from test_report_in_browser import ARGUMENTS, CHROMIUM

from robustly.api import plot_threats
from robustly.reports import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]
OVERLAPS = """
selector => {
  const shown = [...document.querySelectorAll(selector)].filter(one => one.getBoundingClientRect().width > 0);
  const boxes = shown.map(one => [one.textContent.trim(), one.getBoundingClientRect()]);
  const found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [a, one] = boxes[i], [b, two] = boxes[j];
    const across = Math.min(one.right, two.right) - Math.max(one.left, two.left);
    const down = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
    if (across > 1 && down > 3) found.push(`${a} | ${b}`);
  }
  return found;
}
"""
OUTSIDE = """
() => [...document.querySelectorAll("svg text")].filter(one => {
  const own = one.getBoundingClientRect(), whole = one.ownerSVGElement.getBoundingClientRect();
  return own.left < whole.left - 1 || own.right > whole.right + 1 || own.bottom > whole.bottom + 1;
}).map(one => one.textContent)
"""
DOTS = """
() => [...document.querySelectorAll(".threats tbody tr")].map(row => {
  const cell = row.querySelector(".ruler").getBoundingClientRect();
  const dot = row.querySelector("i").getBoundingClientRect();
  return [(dot.left + dot.width / 2 - cell.left) / cell.width, cell.width,
          parseFloat(row.querySelector(".accuracy b").textContent) / 100];
})
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, options = tmp_path_factory.mktemp("threats"), Synthetic(count=100, epochs=2)
    many = several(folder, options, LONG)
    other = several(folder, replace(options, name="a_run_with_quite_a_long_name", seed=4), FEW)
    return {
        "plot": plot_threats(many).save(folder / "plot.svg"),
        "single": write_report([many], folder / "single.html"),
        "both": write_report([many, other], folder / "both.html"),
    }


def test_labels_do_not_overlap_at_any_width(files: dict[str, Path]) -> None:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for width, theme in ((390, "light"), (1440, "dark")):
            page: Any = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
            problems: list[str] = []
            page.on("console", lambda message, found=problems: found.append(message.text))
            for name in ("single", "both"):
                page.goto(files[name].as_uri())
                page.wait_for_timeout(800)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
                for cell in (".threats th > span", ".threats td b", ".threats td small", ".multiples h3"):
                    assert page.evaluate(OVERLAPS, cell) == [], (name, width)
                assert page.evaluate(OVERLAPS, ".matrix th, .matrix td") == [], (name, width)
            page.goto(files["single"].as_uri())
            dots = page.evaluate(DOTS)
            assert len(dots) == 15
            assert [place for place, *_ in dots] == pytest.approx([share for *_, share in dots], abs=0.006)
            assert min(room for _, room, _ in dots) > 200, width
            assert problems == []
            page.close()
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(files["plot"].as_uri())
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate(OVERLAPS, "svg text") == []
        browser.close()
