"""Evidence as text, as a table of a notebook, as a pandas frame, and saved."""

import builtins
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tables import certificate, evaluation

from robustly.evidence import Evidence, EvidenceError, Verdict, read_evidence
from robustly.evidence.certified_numbers import CertifiedSummary
from robustly.statistics import Proportion


class Cells(HTMLParser):
    """The text of a page, and the names of its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def changed(evidence: Evidence, **fields: Any) -> Evidence:
    return replace(evidence, summary=replace(evidence.summary, **fields))


def certified(evidence: Evidence, hits: int) -> Evidence:
    share = Proportion(hits, evidence.summary.data.count)
    numbers = replace(evidence.summary.metrics, certified=CertifiedSummary("crown", 0.3, share))
    return changed(evidence, metrics=numbers)


def test_text_has_a_line_for_each_quantity() -> None:
    lines = repr(evaluation("linf:0.3", [1, 0, 1, 1])).splitlines()
    assert lines == [
        "Evidence of net on 4 examples of data",
        "  threat      linf:0.3, suite strong (1 attack)",
        "  clean       100.0 % [51.0, 100.0]",
        "  worst case  75.0 % [30.1, 95.4]",
        "  masking     not suspected",
    ]


def test_text_has_the_interval_masking_and_failures() -> None:
    evidence = changed(
        certified(evaluation("linf:0.3", [1, 0, 1, 1]), 2), masking=("D2 failed.",), failures={"pgd": "x"}
    )
    said = repr(evidence)
    assert "  interval    50.0 % certified to 75.0 % attacked, 1 undecided\n" in said
    assert "  masking     suspected: D2 failed.\n" in said
    assert said.endswith("  failed      pgd")


def test_names_cannot_break_lines_or_pages() -> None:
    evidence = evaluation("linf:0.3", [1, 0])
    bad = "<script>alert(1)</script>\n\x1b[2J"
    evil = changed(
        evidence, run=bad, warnings=(bad,), masking=(bad,), data=replace(evidence.summary.data, source=bad)
    )
    assert len(repr(evil).splitlines()) == len(repr(evidence).splitlines()) + 1  # its warning
    assert "\x1b" not in repr(evil)
    page = evil._repr_html_()
    assert "script" not in Cells(page).tags
    assert "<script>alert(1)</script> ?[2J" in " ".join(Cells(page).texts)
    assert "\x1b" not in page


def test_table_has_a_row_for_each_attack_and_the_worst_case() -> None:
    page = Cells(certified(evaluation("linf:0.3", [1, 0, 1, 1]), 2)._repr_html_())
    texts = [text for text in page.texts if text.strip()]
    start = texts.index("PGD")
    assert texts[start : start + 3] == ["PGD", "75.0 %", "30.1 to 95.4"]
    assert texts[-3:] == ["certified (crown)", "50.0 %", "15.0 to 85.0"]
    assert page.tags.count("tr") == 5
    assert "50.0 % certified to 75.0 % attacked, 1 undecided" in texts[:start]


def test_table_takes_its_colours_from_the_page_around_it() -> None:
    page = evaluation("linf:0.3", [1])._repr_html_()
    assert set(re.findall(r"[^-]color: ([^;\"]+)", page)) == {"inherit"}


def test_a_failed_attack_has_its_state_in_place_of_numbers() -> None:
    texts = Cells(changed(evaluation("linf:0.3", [1]), failures={"pgd": "x"})._repr_html_()).texts
    assert texts[texts.index("PGD") + 1] == "failed"


def test_pandas_has_one_row_per_example_and_words_for_verdicts() -> None:
    evidence = evaluation("linf:0.3", [1, 0, 1], first_id=7)
    proofs = {"crown": certificate([Verdict.VERIFIED, Verdict.UNKNOWN, Verdict.TIMEOUT], [0.3, 0, 0], [0, 0, 0])}
    frame = replace(evidence, table=replace(evidence.table, certificates=proofs)).to_pandas()
    assert frame["id"].tolist() == [7, 8, 9]
    assert frame["pgd.broken"].tolist() == [False, True, False]
    assert frame["certificate.crown.verdict"].tolist() == ["verified", "unknown", "timeout"]
    assert (~frame["worst_case.broken"]).mean() == evidence.summary["worst_case"]["accuracy"]


def test_without_pandas_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install pandas"):
        evaluation("linf:0.3", [1]).to_pandas()


def test_saved_evidence_is_read_again(tmp_path: Path) -> None:
    evidence = evaluation("linf:0.3", [1, 0])
    assert evidence.save(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    again = read_evidence(tmp_path / "a" / "b")
    assert repr(again) == repr(evidence)
    (tmp_path / "file").write_text("")
    with pytest.raises(EvidenceError, match="is a file"):
        evidence.save(tmp_path / "file")


def test_stored_tensors_are_listed_by_name_without_copies() -> None:
    images = evaluation("linf:0.3", [1, 0]).images
    found = dict(images.items())
    assert list(found) == ["pgd.ids", "pgd.images", "gallery.ids", "gallery.images"]
    assert found["gallery.ids"] is images.gallery.ids
