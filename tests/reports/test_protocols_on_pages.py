"""The section on suites of several threats: rows, differences, doubts, remarks, and a file that was changed."""

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import Synthetic, write_synthetic_run
from test_report_page import words

from robustly.evidence.corruption_result import MeanAccuracy
from robustly.evidence.protocol_result import (
    Gap,
    ProtocolColumn,
    ProtocolResult,
    ProtocolTerms,
    TrainedShare,
    write_protocol,
)
from robustly.reports import read_run, render
from robustly.statistics import Proportion

SECTION = '<section data-section="protocols"'


def column(threat: str, role: str, hits: int, gap: Gap | None = None, **more: tuple[str, ...]) -> ProtocolColumn:
    name = f"evaluation_unforeseen_{threat.partition(':')[0]}"
    given = {"attacks": ("PGD",), "masking": (), "failed": (), **more}
    return ProtocolColumn(
        evaluation=name,
        threat=threat,
        words=f"Words on {threat}.",
        suite="unforeseen",
        role=role,  # type: ignore[arg-type]
        robust=Proportion(hits, 40),
        gap=gap,
        **given,
    )


RESULT = ProtocolResult(
    schema=1,
    created="2026-01-01T00:00:00+00:00",
    terms=ProtocolTerms(
        "unforeseen",
        "mine",
        "All kinds.",
        "of_threats",
        True,
        True,
        ("l2:1",),
        ("linf:0.1: of this kind", "l1:3: of this kind"),  # earlier files name the threat of the training, too
        ("A note.",),
    ),
    weights_sha256="w",
    data_sha256="d",
    clean=Proportion(38, 40),
    columns=(
        column("linf:0.1", "trained", 30),
        column("l2:1", "trained", 28, masking=("Gradients vanish.",)),
        column("rotation:9", "tested", 10, Gap(18, 2, 0.4, (0.2, 0.55)), failed=("Grid",)),
    ),
    mean=MeanAccuracy(0.25, (0.1, 0.4)),
    worst="rotation:9",
    union=Proportion(7, 40),
    trained=TrainedShare(Proportion(26, 40)),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_synthetic_run(tmp_path / "runs", Synthetic(count=40, epochs=2))


def section(folder: Path) -> str:
    page = render([read_run(folder)])
    return words(page[page.index(SECTION) :].partition("</section>")[0])


def test_without_a_result_there_is_no_section(folder: Path) -> None:
    assert SECTION not in render([read_run(folder)])


def test_the_table_has_every_threat_with_its_difference(folder: Path) -> None:
    write_protocol(folder, RESULT)
    shown = section(folder)
    assert "unforeseen (mine)" in shown
    assert "L∞ 0.1 (trained on)" in shown
    assert "All threats of the training" in shown
    assert "40.0 [20.0, 55.0]" in shown
    assert "Mean of those not trained on" in shown
    assert shown.count("17.5 %") == 1, "the union"
    assert "l2:1: Gradients vanish." in shown
    assert "rotation:9: the attack Grid failed" in shown
    assert "Trained on, and compared with the others: linf:0.1, l2:1." in shown
    assert "Left out: l1:3: of this kind." in shown
    assert "Left out: linf:0.1" not in shown
    assert "Named by the user as threats of the training: l2:1." in shown
    assert "The user chose the threats" in shown
    assert "A note." in shown
    page = render([read_run(folder)])
    assert "Words on rotation:9." in page
    # a dot with its interval for clean, three threats, all of the training, mean and union
    drawn = page[page.index(SECTION) :].partition("</section>")[0]
    assert drawn.count('class="ruler dotted') == 7
    assert drawn.count('class="ruler dotted mean"') == 1
    assert "--clean-at: 0.95" in drawn
    assert "masking suspected" in drawn


def test_a_suite_that_compares_nothing_has_no_differences(folder: Path) -> None:
    terms = replace(
        RESULT.terms, protocol="tafd_v10", label="tafd_v10", compares=False, mean="with_clean", chosen=False
    )
    columns = tuple(replace(one, role="tested", gap=None) for one in RESULT.columns)
    write_protocol(folder, replace(RESULT, terms=terms, columns=columns, trained=None))
    shown = section(folder)
    assert "Mean with clean" in shown
    assert "Below the trained" not in shown
    assert "The user chose" not in shown


def test_a_file_without_its_evaluations_is_noted_above_the_numbers(folder: Path) -> None:
    write_protocol(folder, RESULT)
    assert "protocol_mine.json cannot be checked" in words(render([read_run(folder)]))


def test_texts_of_the_file_are_escaped(folder: Path) -> None:
    write_protocol(folder, replace(RESULT, terms=replace(RESULT.terms, notes=("<script>alert(1)</script>",))))
    assert "<script>alert(1)" not in render([read_run(folder)])
