"""The pages on notebooks and pipelines: their code runs, and their workflow is one."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from robustly import ImageData, ThreatModel, evaluate
from robustly.api import Result
from robustly.api.gate import AT_LEAST
from robustly.cli import parser

DOCS = Path(__file__).parents[2] / "docs"
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_code_for_notebooks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = torch.arange(12 * 16, dtype=torch.uint8).reshape(12, 1, 4, 4)
    data = ImageData(pixels, torch.arange(12) % 2, torch.arange(12), ("a", "b"), "memory")
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    evidence = evaluate(model, data, ThreatModel("linf", "8/255"), "single_step", batch_size=12)
    names: dict[str, object] = {"model": model, "data": data, "result": Result.of(evidence, model, data)}
    code = PYTHON.findall((DOCS / "notebook.md").read_text(encoding="utf-8"))
    assert "robustly.evaluate(model, data, " in code[0]
    exec("import robustly", names)  # noqa: S102
    for block in code[1:]:
        exec(compile(block, "notebook.md", "exec"), names)  # noqa: S102
    assert sorted(one.name for one in tmp_path.iterdir()) == ["evidence", "plot.svg", "report.html"]
    assert "Audit passed" in (tmp_path / "report.html").read_text()
    assert isinstance(names["standing"], int)
    summary = evidence.summary.metrics
    fallen = names["fallen"]
    assert len(fallen) == summary.clean.hits - summary.worst_case.robust.hits  # type: ignore[arg-type]


def test_the_workflow_is_yaml_with_known_commands() -> None:
    (text,) = YAML.findall((DOCS / "pipeline.md").read_text(encoding="utf-8"))
    workflow = yaml.safe_load(text)
    steps = workflow["jobs"]["gate"]["steps"]
    lines = [line for step in steps if "run" in step for line in step["run"].strip().splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("robustly ")]
    assert [words[0] for words in commands] == ["train", "evaluate", "gate", "report", "dossier"]
    for words in commands:
        parser().parse_args(words)
    assert [step["if"] for step in steps if "if" in step] == ["always()", "always()"]
    (kept,) = (step["with"]["path"].split() for step in steps if "upload-artifact" in step.get("uses", ""))
    gate = next(words for words in commands if words[0] == "gate")
    assert {gate[gate.index("--junit") + 1], gate[gate.index("--json") + 1]} < set(kept)


def test_the_order_of_suites_on_the_page_is_that_of_the_gate() -> None:
    text = (DOCS / "pipeline.md").read_text(encoding="utf-8")
    (chain,) = re.findall(r"^((?:`\w+` < )+`\w+`)", text, re.MULTILINE)
    names = re.findall(r"\w+", chain)
    assert names == ["single_step", "dynat", "dynat_100", "standard", "strong"]
    for weaker, stronger in pairwise(names):
        assert stronger in AT_LEAST[weaker]
    assert "quick" in AT_LEAST["dynat"]
    assert "standard" in AT_LEAST["quick"]
    assert "aa_standard" in AT_LEAST["standard"]
