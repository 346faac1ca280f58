"""A dossier as a self-contained page without scripts, or as Markdown."""

from pathlib import Path

from robustly.files import write_text
from robustly.reports.dossier.document import Document, markdown
from robustly.reports.pages.html import static_page
from robustly.reports.run import ReportError

SUFFIXES = (".md", ".html")


def write_dossier(document: Document, output: Path) -> Path:
    """Write a dossier as `.md` or `.html`, and return the path; missing folders are created.

    Raises:
        ReportError: another suffix, or the path is that of a folder.
        OSError: the file cannot be written.
    """
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, markdown(document) if output.suffix.lower() == ".md" else dossier_page(document))
    return output


def check_output(output: Path) -> None:
    """Refuse a path that no dossier can be written to.

    Raises:
        ReportError: another suffix than `.md` and `.html`, or a folder.
    """
    if output.suffix.lower() not in SUFFIXES or output.is_dir():
        raise ReportError(f"a dossier is one file that ends in {' or '.join(SUFFIXES)}, got {str(output)!r}.")


def dossier_page(document: Document) -> str:
    """The dossier as one HTML page, light or dark as its reader prefers, for screens and paper."""
    parts = [
        (section.title, [(type(block).__name__, block) for block in section.blocks])
        for section in document.sections
    ]
    return static_page("dossier.html", {"document": document, "sections": parts})
