"""Check that nothing on a built site is wider than the screen, and photograph its pages.

    mkdocs build -d site && python docs_build/widths.py site [--pictures FOLDER] [--only NAME]

Opens every page at 1440 and 390 pixels. Code and tables may scroll inside; anything else that reaches beyond the
screen, or that a parent cuts off, is printed, and the exit code is 1. With `--pictures`, each page is also saved as
a picture, light at the one width and dark at the other. Needs Chromium, see `docs_build/gallery.py`.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SIZES = ((1440, "light"), (390, "dark"))
BEYOND = """() => {
  const width = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > width) found.push(`the page is ${document.documentElement.scrollWidth} wide`);
  const holds = node => ["auto", "scroll"].includes(getComputedStyle(node).overflowX)
    && node.getBoundingClientRect().right <= width + 1;
  for (const node of document.querySelectorAll(".md-content :is(pre, table, img, svg, p, li, h1, h2, h3, code, td, dt)")) {
    const box = node.getBoundingClientRect();
    if (!box.width || box.right <= width + 1) continue;
    let parent = node;
    while (parent && !holds(parent)) parent = parent.parentElement;
    if (!parent || !parent.closest(".md-content")) found.push(`${node.tagName.toLowerCase()} ends at ${Math.round(box.right)}: ${node.textContent.slice(0, 60)}`);
  }
  return found.slice(0, 5);
}"""  # noqa: E501


def problems(page: Page, scheme: str, site: Path, pictures: Path | None, only: str) -> Iterator[str]:
    """One sentence for each thing that is too wide at the size of the page."""
    width = page.viewport_size["width"]
    for file in sorted(site.rglob("index.html")):
        name = str(file.parent.relative_to(site))
        if only and only not in name:
            continue
        page.goto(file.as_uri())
        page.wait_for_timeout(80)
        yield from (f"{name} at {width}: {problem}" for problem in page.evaluate(BEYOND))
        if pictures is not None:
            page.screenshot(path=pictures / f"{name.replace('/', '_')}-{width}-{scheme}.png")


def main() -> int:
    """Check all pages; 1 if one is too wide."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("site", type=Path)
    arguments.add_argument("--pictures", type=Path)
    arguments.add_argument("--only", default="", help="pages with this text in their path")
    given = arguments.parse_args()
    if given.pictures is not None:
        given.pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox"])
        found = []
        for width, scheme in SIZES:
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            found += problems(page, scheme, given.site.resolve(), given.pictures, given.only)
        browser.close()
    sys.stdout.writelines(f"{one}\n" for one in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
