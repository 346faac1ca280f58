"""The tutorial runs, block by block, and its printed output is that of the code."""

import re
import sys
from pathlib import Path

import pytest

from loading import load_module
from robustly import read_evidence

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
page_code = load_module("docs_build/page_code.py")


@pytest.mark.slow
def test_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    page = tmp_path / "page.md"
    page.write_text(shorter(PAGE.read_text()))
    try:
        page_code.run_page(page, {})
    finally:
        sys.modules.pop("digits_net", None)
    mine, robust = (read_evidence(Path("runs", name, "evaluation")).summary for name in ("mine", "robust"))
    assert robust.metrics.worst_case.robust.low > mine.metrics.worst_case.robust.high, "finetuning made it robust"
    assert mine.metrics.security_curve is not None
    printed = capsys.readouterr().out
    (shown,) = (block.code for block in page_code.blocks(page.read_text()) if block.language == "text")
    assert without_numbers(shown) in without_numbers(printed)
    assert "audit passed" in printed
    for name in ("plot.svg", "page.html", "comparison.html", "dossier.html"):
        text = Path(name).read_text()
        assert str(tmp_path) not in text, f"{name} has a path of this machine"
    assert "linf:0.1" in Path("comparison.html").read_text()


def shorter(text: str) -> str:
    """The page with an epoch less and half the images; all else is as it is written."""
    for number, smaller in (
        ("--epochs 2 ", "--epochs 1 "),
        ("count=200,", "count=100,"),
        ("on 200 examples", "on 100 examples"),
        ("--evaluation.count 200 ", "--evaluation.count 100 "),
        ("--count 100 ", "--count 50 "),
    ):
        assert text.count(number) == 1, number
        text = text.replace(number, smaller)
    return text


def without_numbers(text: str) -> str:
    return re.sub(r"\d+\.\d", "0.0", text)


def test_other_programs_and_failures_are_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for command, problem in (("rm -r x", "not rm"), ("robustly info nowhere", "exit code 2")):
        page.write_text(f"```bash\n{command}\n```\n")
        with pytest.raises(RuntimeError, match=problem):
            page_code.run_page(page, {})
