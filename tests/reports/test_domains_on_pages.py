"""The section on domains: rows, gaps, certified accuracy, and what is known of training and audit."""

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import Synthetic, write_synthetic_run
from test_report_page import words

from robustly.evidence.domains import CertifiedShare, DomainAccuracy, DomainResult, Gap
from robustly.reports import read_run, render
from robustly.reports.run import RunEvidence
from robustly.statistics import Proportion

PHOTO = DomainAccuracy("photo", Proportion(9, 10), Proportion(6, 10), CertifiedShare(Proportion(3, 10)))
ART = DomainAccuracy("art", Proportion(8, 10), Proportion(5, 10), CertifiedShare(Proportion(2, 10)))
BOTH = DomainAccuracy("all sources", Proportion(17, 20), Proportion(11, 20), CertifiedShare(Proportion(5, 20)))
INK = DomainAccuracy("ink", Proportion(5, 10), Proportion(1, 10), CertifiedShare(Proportion(0, 10)))
RESULT = DomainResult(
    schema=1,
    left_out="ink",
    threat="linf:0.1",
    suite="quick",
    weights_sha256="w",
    target=INK,
    sources=(PHOTO, ART),
    source=BOTH,
    clean_gap=Gap(0.35, (0.01, 0.6)),
    robust_gap=Gap(-0.025, (-0.3, 0.25)),
    certified_gap=Gap(0.25, (0.1, 0.4)),
    evaluations={},
)


@pytest.fixture
def run(tmp_path: Path) -> RunEvidence:
    return read_run(write_synthetic_run(tmp_path / "runs", Synthetic(count=20, epochs=2)))


def section(run: RunEvidence) -> str:
    page = render([run])
    start = page.index('<section data-section="domains"')
    return words(page[start : page.index("</section>", start)])


def test_a_run_without_domains_has_no_section(run: RunEvidence) -> None:
    assert '<section data-section="domains"' not in render([run])


def test_sources_target_and_gaps_are_shown(run: RunEvidence) -> None:
    text = section(replace(run, domains=RESULT))
    assert "The target is ink ." in text
    assert "photo source 10 90.0 [59.6, 98.2] 60.0 [31.3, 83.2] 30.0 [10.8, 60.3]" in text
    assert "all sources source 20 85.0" in text
    assert "ink target 10 50.0" in text
    assert "Gap: sources - target +35.0 [+1.0, +60.0] -2.5 [-30.0, +25.0] +25.0 [+10.0, +40.0]" in text
    assert "The evaluation on the source domains is not audited." in text


def test_one_source_has_no_row_for_all_and_no_certificate_no_column(run: RunEvidence) -> None:
    plain = {"target": replace(INK, certified=None), "sources": (replace(PHOTO, certified=None),)}
    bare = replace(RESULT, **plain, source=replace(BOTH, certified=None), certified_gap=None)
    text = section(replace(run, domains=bare))
    assert "all sources source" not in text
    assert "Certified" not in text


def test_the_sentence_on_training_states_what_is_known(run: RunEvidence) -> None:
    assert run.evaluation is not None
    for seen, expected in (
        ((0, 0), "The model was trained and selected without images of the target."),
        ((3, 0), "The model was trained or selected on images of the target."),
        ((None, None), "It is not known which domains the model was trained on."),
    ):
        data = replace(run.evaluation.data, trained_on=seen[0], selected_on=seen[1])
        shown = replace(run, evaluation=replace(run.evaluation, data=data), domains=RESULT)
        assert expected in section(shown)
