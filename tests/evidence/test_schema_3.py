"""Evidence of schema 3, whose 8-bit verdicts had another rule: it opens and is audited, and says so."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from half_space import SUITE, target
from robustly.evaluation import audit, evaluate
from robustly.evaluation.audit.statements import statement_checks
from robustly.evaluation.diagnostics import cheap_findings
from robustly.evidence import read_evidence, read_summary
from robustly.evidence.schema import SUMMARY
from robustly.evidence.schema_3 import OLD_RULE
from robustly.reports import read_run, render

SAMPLE = Path(__file__).with_name("schema_3")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(SAMPLE, tmp_path / "half_space")
    return tmp_path / "half_space"


def test_its_summary_says_that_the_meaning_differs() -> None:
    old = json.loads((SAMPLE / "evaluation" / SUMMARY).read_text())
    summary = read_summary(SAMPLE / "evaluation")
    assert (old["schema"], summary.schema) == (3, 3)
    assert (tuple(old["warnings"]), summary.warnings) == ((), (OLD_RULE,))
    assert "before schema 4" in OLD_RULE
    assert "overstate" in OLD_RULE


def test_its_columns_are_kept_and_nothing_is_invented() -> None:
    evidence, t = read_evidence(SAMPLE / "evaluation"), target()
    again = evaluate(t.model, t.data, t.threat, SUITE, batch_size=8, curve_count=None)
    assert evidence.images.eight_bit == {}
    for name, columns in evidence.table.attacks.items():
        now = again.table.attacks[name]
        assert np.array_equal(columns.broken, now.broken)
        assert not columns.passes_8bit.any()
        assert now.passes_8bit.any()
    across = evidence.table.attacks["across"].broken_8bit, again.table.attacks["across"].broken_8bit
    assert (int(across[0].sum()), int(across[1].sum())) == (3, 8), "the older rule lost five of eight"


def test_it_is_reported_with_the_warning(run: Path) -> None:
    assert "The 8-bit numbers follow the rule of evidence before schema 4" in render([read_run(run)])


def test_a_diagnostic_that_fails_now_cannot_be_left_out() -> None:
    evidence = read_evidence(SAMPLE / "evaluation")
    summary, t = evidence.summary, target()
    clean = t.logits(t.data.floats, torch.arange(len(t.data)))
    failed = [replace(one, passed=one.passed and one.id != "D6") for one in cheap_findings(t)]

    def found(**changes: object) -> dict[str, str]:
        forged = replace(evidence, summary=replace(summary, **changes))
        return {check.name: check.problem for check in statement_checks(forged, clean, failed, None)}

    name, sentences = "the diagnostics are reproduced", "the sentences on masked gradients follow from the findings"
    assert "D6" in found(findings=[])[name]
    stated = [one for one in failed if one.id == "D6"]
    assert not found(findings=stated)[name]
    assert not found(findings=stated, masking=(stated[0].words,))[sentences]
    assert found(findings=stated, masking=())[sentences]
    assert "Experts" in found(findings=stated, masking=("Experts have found no masking.",))[sentences]


def test_the_audit_checks_it_by_its_own_rule_and_names_it(run: Path) -> None:
    result = audit(run / "evaluation", target(), SUITE)
    assert result.passed, [check for check in result.checks if not check.passed]
    named = [check.name for check in result.checks if "older rule of schema 3" in check.name]
    assert [name.partition(":")[0] for name in named] == ["across", "halfway"]
