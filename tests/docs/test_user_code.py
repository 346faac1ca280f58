"""The table of user code is that of the scripts, and a pair of scripts gives one verdict."""

import re
import sys
from pathlib import Path

import pytest

from loading import load_module

ROOT = Path(__file__).parents[2]
user_code = load_module("benchmarks/user_code.py")


def test_imports_comments_and_empty_lines_are_not_counted(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from a import (\n    b,\n    c,\n)\n\n# why\nx = b(\n    c,\n)\n")
    assert user_code.lines(script) == 3


def test_the_committed_table_has_the_lines_of_the_scripts() -> None:
    table = (ROOT / "benchmarks" / "results" / "user_code.md").read_text(encoding="utf-8")
    for task in user_code.TASKS:
        (row,) = re.findall(rf"^\| {re.escape(task.words)} \| (\d+) \| (\d+) \|", table, re.MULTILINE)
        counts = [user_code.lines(user_code.FOLDER / task.name / f"{side}.py") for side in ("robustly", "peers")]
        assert [int(count) for count in row] == counts, task.name


@pytest.mark.peer
@pytest.mark.slow
def test_both_sides_of_a_task_give_the_same_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchattacks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(user_code.FOLDER))
    try:
        (task,) = (task for task in user_code.TASKS if task.name == "curve")
        ours, theirs = (
            user_code.run(user_code.FOLDER / "curve" / f"{side}.py")[0] for side in ("robustly", "peers")
        )
    finally:
        sys.modules.pop("victim", None)
    assert user_code.difference(ours, theirs) <= task.tolerance + 1e-6
    assert len(ours) == 4
    assert ours[0] > ours[-1]
