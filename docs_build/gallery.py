"""Make the pictures of the gallery: run the tutorial in a temporary folder, and photograph what it wrote.

    python docs_build/gallery.py [--runs FOLDER]

Needs Chromium (playwright's, or the program named by the variable `CHROMIUM`). Takes about a minute of CPU time.
With `--runs`, a folder in which the tutorial ran already is used. Writes `docs/images/*.png`.
"""

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from page_code import run_page
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from robustly.cli import main as main_command

DOCS = Path(__file__).parent.parent / "docs"
LARGEST = 200_000
"""Most bytes of a picture."""


@dataclass(frozen=True)
class Picture:
    """A picture of a file; `after` is the text of a heading at which it begins."""

    name: str
    file: str
    width: int = 1100
    height: int = 900
    after: str = ""
    scheme: str = "light"


PICTURES = (
    Picture("comparison", "comparison.html", height=1000),
    Picture("comparison-dark", "comparison.html", height=1000, scheme="dark"),
    Picture("comparison-phone", "comparison.html", width=390, height=1000),
    Picture("one-model", "page.html", height=1000),
    Picture("security-curve", "comparison.html", height=620, after="Robustness in detail"),
    Picture("adversarial-images", "comparison.html", height=620, after="Pictures"),
    Picture("dossier", "dossier.html", height=1100),
    Picture("plot", "plot.svg", width=940, height=340),
    Picture("threats", "threats.html", height=1390, after="Several threats"),
)
THREATS = ("linf:0.1", "l2:1", "rotation:30", "shift:2", "brightness:0.3", "rotation:15+linf:0.05")


def several_threats(folder: Path) -> None:
    """Evaluate the robust model of the tutorial under further threats, and write `threats.html`."""
    run, page = str(folder / "runs" / "robust"), str(folder / "threats.html")
    words = [
        "evaluate",
        run,
        "--trust-code",
        "--suite",
        "quick",
        "--evaluation.count",
        "200",
        "--curve",
        "on",
        "--keep",
    ]
    if main_command([*words, "--threats", *THREATS]) or main_command(["report", run, "--out", page]):
        raise SystemExit("the evaluation under several threats failed")


def photograph(page: Page, folder: Path, picture: Picture) -> bytes:
    """PNG of a part of a page, with a palette of 256 colours."""
    file = folder / picture.file
    if file.suffix == ".svg":
        page.set_content(file.read_text(encoding="utf-8"))
    else:
        page.goto(file.as_uri())
    page.wait_for_timeout(600)
    top = 0.0
    if picture.after:
        heading = page.get_by_role("heading", name=picture.after, exact=True).last
        top = max(0.0, heading.evaluate("node => node.getBoundingClientRect().top + scrollY") - 24)
    if top:
        page.add_style_tag(content="header, nav { position: static !important }")
    clip = {"x": 0, "y": top, "width": picture.width, "height": picture.height}
    raw = page.screenshot(full_page=True, clip=clip)
    small = io.BytesIO()
    Image.open(io.BytesIO(raw)).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    return small.getvalue()


def pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every picture."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox"])
        for picture in PICTURES:
            size = {"width": picture.width, "height": picture.height}
            page = browser.new_page(viewport=size, color_scheme=picture.scheme)
            yield picture.name, photograph(page, folder, picture)
            page.close()
        browser.close()


def main() -> None:
    """Run the tutorial and write the pictures."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=Path)
    given = arguments.parse_args().runs
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given or temporary).resolve()
        if given is None:
            with chdir(folder):
                sys.path.insert(0, str(folder))
                run_page(DOCS / "tutorial.md", {})
        with chdir(folder):
            sys.path.insert(0, str(folder))
            several_threats(folder)
        for name, content in pictures(folder):
            if len(content) > LARGEST:
                raise SystemExit(f"{name}.png has {len(content):,} bytes, more than {LARGEST:,}")
            (DOCS / "images" / f"{name}.png").write_bytes(content)


if __name__ == "__main__":
    main()
