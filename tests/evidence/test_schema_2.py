"""Evidence of schema 2, written by the version before, opens, reports and audits as it did."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from half_space import SUITE, target
from robustly.evaluation import audit
from robustly.evidence import EvidenceError, read_evidence, read_summary
from robustly.evidence.records import to_json
from robustly.evidence.schema_3 import OLD_RULE
from robustly.reports import read_run, render

SAMPLE = Path(__file__).with_name("schema_2")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(SAMPLE, tmp_path / "half_space")
    return tmp_path / "half_space"


def test_nothing_is_lost() -> None:
    """Every field of the old summary is in the new one, most of them under the same name."""
    old = json.loads((SAMPLE / "evaluation" / "summary.json").read_text())
    new = to_json(read_summary(SAMPLE / "evaluation"))
    assert old.pop("schema") == 2
    threat, curve, certificates = (old.pop(key) for key in ("threat", "security_curve", "certificates"))
    assert new["threat"].pop("limit") == threat.pop("epsilon")
    assert new["threat"].pop("limit_text") == threat.pop("epsilon_text")
    assert threat.items() <= new["threat"].items()
    assert old.pop("data").items() <= new["data"].items()
    assert old.pop("suite").items() <= new["suite"].items()
    assert curve.pop("attack") == read_summary(SAMPLE / "evaluation").suite.title("across")
    assert curve == new["security_curve"]
    (proof,) = certificates
    assert new["certificates"][0].pop("certifies") == proof.pop("of")
    assert proof.items() <= new["certificates"][0].items()
    assert (old.pop("warnings"), new["warnings"]) == ([], [OLD_RULE])
    assert {name: entry.pop("seconds") for name, entry in old["attacks"].items()} == new["seconds"]
    assert {entry.pop("mean_passes_8bit") for entry in new["attacks"].values()} == {0.0}
    assert old.items() <= new.items()


def test_verdicts_follow_from_the_radii() -> None:
    evidence = read_evidence(SAMPLE / "evaluation")
    table, certified = evidence.table, evidence.summary.metrics.certified
    assert certified is not None
    assert int(table.certificates["proof"].verified.sum()) == certified.robust.hits == 12
    assert np.isnan(table.certificates["proof"].lower_bound).all()
    assert list(table.attacks) == ["across", "halfway"]
    assert (table.attacks["across"].broken & table.correct).sum() == 5


@pytest.mark.slow
def test_it_is_audited_and_a_changed_number_fails(run: Path) -> None:
    result = audit(run / "evaluation", target(), SUITE)
    assert result.passed, [check for check in result.checks if not check.passed]
    assert any(check.name.startswith("certificate proof: 20 of 20 proofs repeated") for check in result.checks)
    file = run / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    summary["certificates"][0]["accuracy"] += 0.05
    file.write_text(json.dumps(summary))
    failed = [check for check in audit(run / "evaluation", target(), SUITE).checks if not check.passed]
    assert "certificates[0].accuracy" in failed[0].problem


def test_it_is_reported(run: Path) -> None:
    page = render([read_run(run)])
    for text in ("Straight across", "half_space", "60.0\u202f%", "17 of 20 without any attack"):
        assert text in page
    assert not read_run(run).notes


@pytest.mark.parametrize("schema", [1, 7, "2", None])
def test_any_other_version_is_refused_with_its_number(run: Path, schema: object) -> None:
    file = run / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    file.write_text(json.dumps(summary | {"schema": schema}))
    for read in (read_summary, read_evidence):
        with pytest.raises(EvidenceError, match=rf"summary\.json is written in schema {schema}, .* reads schema 6"):
            read(run / "evaluation")


def test_a_field_that_is_missing_is_named(run: Path) -> None:
    file = run / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    del summary["threat"]["epsilon"]
    file.write_text(json.dumps(summary))
    with pytest.raises(EvidenceError, match=r"summary\.json.*epsilon"):
        read_evidence(run / "evaluation")
