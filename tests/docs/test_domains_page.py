"""The example of the page on domains: its script runs, and its command is accepted."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from robustly.cli import main
from robustly.data import DataConfig, load_splits

PAGE = (Path(__file__).parents[2] / "docs" / "domains.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_script_writes_the_domains_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "make.py").write_text(script)
    runpy.run_path("make.py")
    (command,) = re.findall(r"\n(robustly sweep mnist5k/standard \\\n.*?)\n```", PAGE, re.DOTALL)
    words = shlex.split(command.replace("\\\n", ""))[1:]
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("waiting") == 4
    domains = words[words.index("--data.domains") + 1]
    splits = load_splits(DataConfig(domains=domains, leave_out="noisy", validation=100, test=200))
    assert splits.source_test is not None
    assert (len(splits.train), len(splits.test), len(splits.source_test)) == (3 * 950, 200, 600)
