"""Evidence of schema 4, whose certificates have no stages: it opens and is audited with the present rules."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from half_space import SUITE, HalfSpaceDecision, HalfSpaceProof, target
from robustly.evaluation import audit
from robustly.evidence import read_evidence, read_summary
from robustly.evidence.records import to_json
from robustly.evidence.schema import SUMMARY
from robustly.reports import read_run, render

SAMPLE = Path(__file__).with_name("schema_4")
CERTIFIED = replace(SUITE, certificates={"proof": HalfSpaceProof(), "decision": HalfSpaceDecision()})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(SAMPLE, tmp_path / "half_space")
    return tmp_path / "half_space"


def test_nothing_is_lost_and_nothing_is_invented() -> None:
    old = json.loads((SAMPLE / "evaluation" / SUMMARY).read_text())
    summary = read_summary(SAMPLE / "evaluation")
    assert (old["schema"], summary.schema) == (4, 4)
    assert summary.metrics.interval is None
    new = to_json(summary)
    for before, now in zip(old.pop("certificates"), new["certificates"], strict=True):
        assert before.items() <= now.items()
        assert (now["stages"], now["reasons"]) == ({}, {})
    assert old.items() <= new.items()
    columns = read_evidence(SAMPLE / "evaluation").table.certificates["decision"]
    assert set(columns.stage) == set(columns.reason) == {""}
    assert not columns.work.any()
    assert np.isnan(columns.seconds).all()
    assert columns.verified.any()


@pytest.mark.slow
def test_it_is_audited_and_reported(run: Path) -> None:
    result = audit(run / "evaluation", target(), CERTIFIED)
    assert result.passed, [check for check in result.checks if not check.passed]
    page = render([read_run(run)])
    assert "older rules" not in page
    file = run / "evaluation" / SUMMARY
    summary = json.loads(file.read_text())
    summary["certificates"][1]["verdicts"]["verified"] += 1
    file.write_text(json.dumps(summary))
    failed = [check for check in audit(run / "evaluation", target(), CERTIFIED).checks if not check.passed]
    assert "certificates[1].verdicts.verified" in failed[0].problem
