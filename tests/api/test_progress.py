"""The progress line of a notebook: one display, whose text changes and ends in a sentence."""

import io
from typing import Any

import pytest
from rich.console import Console

from robustly.api import progress


class Line:
    """In place of IPython's display handle."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def update(self, data: dict[str, str], raw: bool) -> None:
        assert raw
        self.texts.append(data["text/plain"])


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    found = Line()
    monkeypatch.setattr(progress, "_notebook_line", lambda: found)
    return found


def test_the_end_of_each_attack_is_shown_and_the_line_ends_with_the_time(line: Line) -> None:
    with progress.evaluation_progress(Console()) as shown:
        for done in range(11):
            shown("pgd", done, 10)
    assert line.texts[0] == "pgd: 0 of 10"
    assert line.texts[-2:] == ["pgd: 10 of 10", "evaluation finished in 0 s"]
    assert len(line.texts) < 11, "texts in quick succession are left out"


def test_an_interrupted_evaluation_says_so(line: Line) -> None:
    def interrupted() -> None:
        with progress.evaluation_progress(Console()) as shown:
            shown("pgd", 3, 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert line.texts[-1] == "evaluation stopped after 0 s"


def test_nothing_is_displayed_without_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    def displayed() -> Any:
        raise AssertionError("displayed although progress is off")

    monkeypatch.setattr(progress, "_notebook_line", displayed)
    with progress.evaluation_progress(Console(quiet=True)) as shown:
        shown("pgd", 1, 10)


def test_lines_in_a_file_come_after_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO())
    with progress.evaluation_progress(console) as shown:
        for done in range(10):
            shown("crown", done, 10)
            now[0] += 11
    assert console.file.getvalue().splitlines() == ["crown: 3 of 10", "crown: 6 of 10", "crown: 9 of 10"]  # type: ignore
