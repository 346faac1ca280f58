"""A result: plotted, reported, saved, read, and audited with the model at hand."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_results import first_pixel, images, result_of, standing
from torch import nn

from robustly import ThreatModel, evaluate
from robustly.api import Result, evidence_folder, read_result
from robustly.attacks import FAB, PGD
from robustly.evaluation import EvaluationError, Suite
from robustly.evidence import EvidenceError
from robustly.evidence.storage import pictures_of, read_pictures
from robustly.models import AdapterError
from robustly.reports import ReportError

NAMESPACE = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def result() -> Result:
    return result_of(Suite("mine", {"pgd": PGD(5), "fab": FAB(steps=5)}, curve="pgd"))


def test_the_numbers_are_those_of_the_closed_form(result: Result) -> None:
    assert result.summary["worst_case"]["robust"] == standing(0.1)
    assert repr(result).startswith("Result of Sequential on 24 examples of memory\n")


def test_plot_has_a_bar_for_each_attack_with_its_share(result: Result) -> None:
    plot = result.plot()
    drawn = ET.fromstring(plot.svg)
    hovered = [one.text for one in drawn.iter(f"{NAMESPACE}title")]
    bars = {
        one.find(f"{NAMESPACE}title").text.split(":")[0]: float(one.get("width"))  # type: ignore[union-attr, arg-type]
        for one in drawn.iter(f"{NAMESPACE}rect")
    }
    assert list(bars) == ["No attack (clean)", "pgd", "fab", "Worst case"]
    share = result.summary.metrics.worst_case.robust.share
    assert bars["Worst case"] / bars["No attack (clean)"] == pytest.approx(share, abs=0.005)
    assert len(hovered) == 4 + len(result.summary.metrics.security_curve.epsilon) + 1  # type: ignore[union-attr]
    panels = [ET.fromstring(one) for one in re.findall("<svg.*?</svg>", plot._repr_html_())]
    assert [one.tag for one in panels] == [f"{NAMESPACE}svg"] * 2
    assert repr(plot).startswith("Plot: Sequential, linf:0.1, memory (")


def test_plot_escapes_names_and_has_one_panel_without_a_curve(result: Result) -> None:
    evil = replace(result.summary, run="</svg><script>\x00")
    evil = replace(evil, metrics=replace(evil.metrics, security_curve=None))
    plot = replace(result, summary=evil).plot()
    assert len(plot.panels) == 1
    assert all(one.tag != f"{NAMESPACE}script" for one in ET.fromstring(plot.svg).iter())


def test_plot_is_saved_as_svg_or_page(result: Result, tmp_path: Path) -> None:
    file = result.plot().save(tmp_path / "new" / "a.svg")
    assert ET.parse(file).getroot().tag == f"{NAMESPACE}svg"
    assert "<svg" in result.plot().save(str(tmp_path / "a.html")).read_text()
    with pytest.raises(ReportError, match=r"saved as \.svg or \.html, got 'a\.png'"):
        result.plot().save(tmp_path / "a.png")


def test_report_needs_no_run_folder(result: Result, tmp_path: Path) -> None:
    page = result.report(tmp_path / "new" / "page.html").read_text()
    assert "&lt;bright&gt;" in page
    assert "<bright>" not in page
    assert "audit(model, data)" in page
    assert str(tmp_path) not in page
    assert "robustly audit ." not in page
    with pytest.raises(ReportError, match=r"ends in \.html"):
        result.report(tmp_path)
    with pytest.raises(ReportError, match=r"ends in \.html"):
        result.report(tmp_path / "page.pdf")


def test_pictures_from_memory_are_those_of_the_file(result: Result, tmp_path: Path) -> None:
    one, other = pictures_of(result.images), read_pictures(result.save(tmp_path / "kept"))
    assert one.ids.tolist() == other.ids.tolist()
    assert {name: sorted(kept) for name, kept in one.adversarial.items()} == {
        name: sorted(kept) for name, kept in other.adversarial.items()
    }
    for name, kept in one.adversarial.items():
        assert all((kept[key] == other.adversarial[name][key]).all() for key in kept)


def test_audit_passes_and_goes_onto_page_and_into_the_folder(result: Result, tmp_path: Path) -> None:
    audit = result.audit(rerun="all")
    assert audit.passed, audit
    assert repr(audit).splitlines()[0].startswith("Audit passed: ")
    assert "Every standing verdict was attacked again." in repr(audit)
    assert "Audit passed" in result.report(tmp_path / "a.html", audit).read_text()
    assert "Not audited" in result.report(tmp_path / "b.html").read_text()
    kept = read_result(result.save(tmp_path / "kept", audit))
    assert kept.audited is not None
    assert kept.audited.passed
    assert "Audit passed" in kept.report(tmp_path / "c.html").read_text()


def test_audit_of_another_model_fails_with_its_reason(result: Result) -> None:
    other = first_pixel()
    with torch.no_grad():
        other[1].bias[0] += 0.5  # type: ignore[index, union-attr]
    audit = result.audit(other)
    assert not audit.passed
    assert "another checkpoint" in repr(audit)


def test_a_result_from_files_is_audited_with_a_given_model(result: Result, tmp_path: Path) -> None:
    kept = read_result(str(result.save(tmp_path / "kept")))
    with pytest.raises(EvaluationError, match="needs the evaluated model and data"):
        kept.audit()
    with pytest.raises(EvaluationError, match="needs the evaluated data"):
        kept.audit(first_pixel())
    with pytest.raises(AdapterError, match="or a function, got list"):
        kept.audit([1], images())  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match=r"as robustly\.ImageData, got tuple"):
        kept.audit(first_pixel(), (1, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="share must lie between 0 and 1"):
        kept.audit(first_pixel(), images(), share=2)
    with pytest.raises(ValueError, match='"sample" or "all"'):
        kept.audit(first_pixel(), images(), rerun="some")  # type: ignore[arg-type]
    assert not kept.audit(first_pixel(), images()).passed, "the suite 'mine' is known only to its author"
    assert replace(kept, suite=result.suite).audit(first_pixel(), images()).passed


def test_a_model_is_audited_in_the_form_in_which_it_was_evaluated() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = first_pixel()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.net(x)}

    model, data = Named(), images()
    evidence = evaluate(model, data, ThreatModel("linf", 0.1), "single_step", batch_size=24)
    assert Result.of(evidence, model, data).audit().passed


def test_folders_of_evidence_and_of_runs_are_found(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "run" / "evaluation_l2")
    with pytest.raises(EvidenceError, match="it has the evaluations l2"):
        evidence_folder(tmp_path / "run")
    assert evidence_folder(tmp_path / "run", "l2") == tmp_path / "run" / "evaluation_l2"
    result.save(tmp_path / "run" / "evaluation")
    assert evidence_folder(str(tmp_path / "run")) == tmp_path / "run" / "evaluation"
    assert evidence_folder(tmp_path / "run" / "evaluation") == tmp_path / "run" / "evaluation"
    with pytest.raises(EvidenceError, match=r"there is no folder .*nowhere$"):
        read_result(tmp_path / "nowhere")
    with pytest.raises(EvidenceError, match="evaluate it first"):
        read_result(tmp_path)
