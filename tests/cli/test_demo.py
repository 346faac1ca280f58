import html

import pytest

from robustly.cli import main
from robustly.cli.demo import PROVED_IMAGES, PROVED_THREAT
from robustly.cli.report import read_evaluations
from robustly.evidence import read_summary
from robustly.evidence.audit_record import read_audit
from robustly.reports.verdict import verdict

SMALL = [
    *("--training.epochs", "2"),
    *("--data.train_limit", "300"),
    *("--evaluation.count", "20"),
    *("--training.epsilon_ramp", "1"),
    *("--training.validation_steps", "2"),
    *("--model.width", "0.1"),  # bounds of the whole network take a minute
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_demo_trains_evaluates_audits_and_reports_and_can_be_repeated(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), *SMALL]) == 0
    assert [read_summary(out / name / "evaluation").metrics.clean.count for name in ("standard", "dynat")] == [
        20,
        20,
    ]
    record = read_audit(out / "dynat" / "evaluation")
    assert record is not None
    assert record.passed
    page = (out / "report.html").read_text()
    assert "dynat" in page
    proofs = read_summary(out / "dynat" / "evaluation_certified")
    interval = proofs.metrics.interval
    assert interval is not None
    assert (interval.certified.count, proofs.threat.text) == (PROVED_IMAGES, PROVED_THREAT)
    beside = read_evaluations(out / "dynat")[1]
    assert beside.name == "dynat, certified"
    assert verdict(beside).sentence in html.unescape(page)
    written = (out / "dynat" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["demo", "--out", str(out), *SMALL]) == 0
    assert "is kept" in capsys.readouterr().out
    assert (out / "dynat" / "model.safetensors").read_bytes() == written
