"""The dossier: its sections, the checklist answered from the evidence, and both forms."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import Synthetic, write_synthetic_run

from robustly.evidence.audit_record import AuditRecord
from robustly.evidence.provenance import Plan
from robustly.reports.dossier.attack_tables import KnownAttack, untried_table
from robustly.reports.dossier.checklist import checklist
from robustly.reports.dossier.content import Floors, dossier
from robustly.reports.dossier.document import Grid, Items, markdown
from robustly.reports.dossier.limits import limit_sentences
from robustly.reports.dossier.page import dossier_page, write_dossier
from robustly.reports.reading import read_run
from robustly.reports.run import ReportError, RunEvidence
from robustly.reports.verdict import verdict

EVIL = "<script>alert(1)</script> | *x* \x1b[2J"


class Page(HTMLParser):
    """The text of a page and the names of its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunEvidence:
    return read_run(write_synthetic_run(tmp_path_factory.mktemp("runs"), Synthetic(count=120, epochs=3)))


def evaluated(run: RunEvidence, **fields: Any) -> RunEvidence:
    assert run.evaluation is not None
    return replace(run, evaluation=replace(run.evaluation, **fields))


def of_kinds(run: RunEvidence, *kinds: str) -> RunEvidence:
    """The run with the kinds of its first attacks changed."""
    assert run.evaluation is not None
    suite = run.evaluation.suite
    changed = [
        replace(one, settings={**one.settings, "kind": kind})
        for one, kind in zip(suite.attacks, kinds, strict=False)
    ]
    return evaluated(run, suite=replace(suite, attacks=(*changed, *suite.attacks[len(kinds) :])))


def known(name: str, kind: str, *, defined: bool = True, settings: dict[str, object] | None = None) -> KnownAttack:
    return KnownAttack(name, f"Words on {name}.", kind, defined, "l2", settings)


def grid(run: RunEvidence, title: str, *attacks: KnownAttack) -> Grid:
    document = dossier(run, attacks)
    (found,) = (
        one for part in document.sections for one in part.blocks if isinstance(one, Grid) and one.title == title
    )
    return found


def replies(run: RunEvidence) -> list[str]:
    return [one.reply for one in checklist(run)]


def test_sections_state_result_threat_and_audit(run: RunEvidence) -> None:
    document = dossier(run, ())
    text = markdown(document)
    metrics = run.evaluation.metrics  # type: ignore[union-attr]
    assert f"{metrics.worst_case.robust.hits} of 120" in text
    assert "Goal of the attacker: any wrong class" in text
    assert "Audit: not audited" in text
    assert [section.title for section in document.sections][:2] == ["Result", "Threat model"]
    assert "Interval \\[certified, attacked\\] on these examples: 0 (no certificate) to " in text
    assert document.lead == verdict(run).sentence


def test_a_certificate_gives_the_interval(tmp_path: Path) -> None:
    certified = read_run(write_synthetic_run(tmp_path, Synthetic(count=120, training=False, certified=0.5)))
    document = dossier(certified, ())
    assert "is proved robust on 50.0" in document.lead
    assert "neither broken nor certified" in " ".join(limit_sentences(certified))


@pytest.mark.parametrize(
    ("floors", "words"),
    [
        (Floors(clean=0.5), "50 %: met with 98.3 %"),
        (Floors(clean=0.97), "97 %: met with 98.3 %, but the interval [94.1, 99.5] contains it"),
        (Floors(clean=0.99), "99 %: NOT met with 98.3 %, but the interval [94.1, 99.5] contains it"),
        (Floors(clean=0.999), "99.9 %: NOT met with 98.3 %\n"),
    ],
)
def test_the_floor_of_clean_accuracy(run: RunEvidence, floors: Floors, words: str) -> None:
    text = markdown(dossier(run, (), floors)).replace("\\", "")
    assert f"Least clean accuracy: {words}" in text
    assert "Least robust accuracy: not stated" in text
    with pytest.raises(ReportError, match=r"--robust is a share between 0 and 1, such as 0\.85, got 45"):
        Floors(robust=45)


def test_untried_attacks_have_their_reason(run: RunEvidence) -> None:
    plain = of_kinds(run, "PGD", "Square", "FAB", "PMA", "APGD")
    assert plain.evaluation is not None
    suite = plain.evaluation.suite
    waiting = (*suite.attacks[:4], replace(suite.attacks[4], plan=Plan(on_suspicion=True)))
    numbers = dict(plain.evaluation.metrics.attacks)
    numbers["autoattack"] = replace(numbers["autoattack"], tried=0)
    summary = replace(
        plain.evaluation,
        suite=replace(suite, attacks=waiting),
        metrics=replace(plain.evaluation.metrics, attacks=numbers),
        failures={"pgd_20": "out of memory"},
    )
    first = dict(suite.attacks[0].settings)
    attacks = (
        known("pgd", "PGD"),
        known("same", "PGD", settings=first),
        known("other", "PGD", settings={**first, "steps": 99}),
        known("square", "Square"),
        known("apgd", "APGD"),
        known("ddn", "DDN", defined=False),
    )
    assert [(row[0], row[2]) for row in untried_table(summary, attacks).rows] == [
        ("other", "not run"),
        ("square", "failed: out of memory"),
        ("apgd", "in the suite, but not needed: nothing was suspicious"),
        ("ddn", "not defined for this threat (defined for l2)"),
    ]
    assert grid(plain, "Known attacks that were not tried", *attacks).rows[0][0] == "other"


def test_the_checklist_of_a_trained_run(run: RunEvidence) -> None:
    trained = evaluated(of_kinds(run, "PGD", "Square"), seen_attacks={"pgd_10": "training"})
    config = {"threat": "linf:0.3", "method": {"inner": {"name": "pgd", "steps": 7}, "loss": {"beta": 6.0}}}
    trained = replace(trained, config=config)
    answers = checklist(trained)
    assert replies(trained) == ["yes", "yes", "yes", "not measured", "yes", "yes", "yes", "not measured"]
    assert answers[0].words == "name pgd, steps 7"
    assert "trained at linf:0.3" in answers[1].words
    assert "98.3" in answers[1].words
    assert "not seen in training: 4" in answers[4].words
    assert "without gradients of the model: black-box search by scores" in answers[4].words


def test_the_checklist_without_a_record_of_the_training(run: RunEvidence) -> None:
    bare = replace(run, training=None, config=None)
    found = replies(bare)
    assert [found[i] for i in (0, 2, 3, 5)] == ["not measured"] * 4
    assert all("trained elsewhere" in checklist(bare)[i].words for i in (0, 2, 3, 5))


def test_items_of_the_checklist_can_be_answered_no(run: RunEvidence) -> None:
    assert run.training is not None
    stopped = replace(run.training, status=replace(run.training.status, state="diverged"))
    columns = {name: one for name, one in stopped.columns.items() if name != "validation_robust_accuracy"}
    bad = replace(run, training=replace(stopped, columns=columns), config={"method": {"loss": {"name": "plain"}}})
    bad = evaluated(bad, threat=replace(bad.evaluation.threat, words=""))  # type: ignore[union-attr]
    assert replies(bad) == ["no", "yes", "yes", "no", "no", "no", "no", "not measured"]
    assert "the training is diverged" in checklist(bad)[3].words


def test_an_attack_with_estimated_gradients_is_adaptive(run: RunEvidence) -> None:
    suite = run.evaluation.suite  # type: ignore[union-attr]
    first = replace(suite.attacks[0], settings={"kind": "APGD", "estimator": {"kind": "Averaged", "draws": 20}})
    adapted = evaluated(run, suite=replace(suite, attacks=(first, *suite.attacks[1:])))
    assert replies(adapted)[-1] == "yes"
    assert "PGD-10" in checklist(adapted)[-1].words


def test_limits_follow_from_the_evidence(run: RunEvidence) -> None:
    plain = " ".join(limit_sentences(run))
    assert "No certificate was computed" in plain
    assert "was not audited" in plain
    assert "not recorded which images" in plain
    assert "Only linf:0.3 was tested" in plain
    summary = run.evaluation
    assert summary is not None
    bad = evaluated(
        run,
        masking=("D2",),
        failures={"cw": "x"},
        composed={"a": {"attack": "pgd_10"}},
        seen_attacks={"pgd_20": "training"},
        warnings=("A warning.",),
        data=replace(summary.data, trained_on=2, selected_on=0),
        metrics=replace(summary.metrics, invalid=3),
        schema=3,
    )
    bad = replace(bad, audit=AuditRecord(False, 5, ("clean predictions",), "", (), "", "", ""))
    said = limit_sentences(bad)
    for words in (
        "Gradient masking is suspected",
        "The attack cw failed",
        "composed by its user",
        "The last audit failed: clean predictions",
        "older schema 3",
        "2 of 120 test images were trained on",
        "trained or selected with PGD-20",
        "On 3 examples the output became NaN",
        "A warning.",
    ):
        assert sum(words in one for one in said) == 1, words


def test_a_sampled_attack_is_a_limit(run: RunEvidence) -> None:
    summary = run.evaluation
    assert summary is not None
    numbers = dict(summary.metrics.attacks)
    numbers["cw"] = replace(numbers["cw"], tried=7)
    said = limit_sentences(evaluated(run, metrics=replace(summary.metrics, attacks=numbers)))
    (found,) = (one for one in said if "that stood before it" in one)
    assert found.startswith("CW (PGD-30, margin) was run on 7 of the ")


def test_names_from_files_are_no_markup(run: RunEvidence) -> None:
    summary = run.evaluation
    assert summary is not None
    classes = tuple(replace(one, name=EVIL) for one in summary.metrics.per_class)
    evil = evaluated(
        replace(run, name=EVIL),
        data=replace(summary.data, source=EVIL, note=EVIL),
        metrics=replace(summary.metrics, per_class=classes),
        masking=(EVIL,),
        warnings=(EVIL,),
    )
    document = dossier(evil, (known(EVIL, "DDN"),))
    library = pytest.importorskip("markdown", reason="the documentation's tools are not installed")
    rendered = library.markdown(markdown(document), extensions=["tables"])
    for page in (Page(dossier_page(document)), Page(rendered)):
        assert not page.tags & {"script", "em"}
        assert "<script>alert(1)</script> | *x*" in page.text
    assert "\x1b" not in markdown(document)
    tables = [one for part in document.sections for one in part.blocks if isinstance(one, Grid)]
    assert rendered.count("<td") == sum(len(row) for table in tables for row in table.rows), "no cell was split"


def test_both_forms_are_written_and_have_the_same_sentences(run: RunEvidence, tmp_path: Path) -> None:
    document = dossier(run, (known("ddn", "DDN", defined=False),))
    page = write_dossier(document, tmp_path / "new" / "a.html").read_text()
    text = write_dossier(document, tmp_path / "a.MD").read_text()
    for section in document.sections:
        for block in section.blocks:
            for sentence in block.texts if isinstance(block, Items) else ():
                assert sentence in Page(page).text
                assert sentence.replace("\u202f", " ") in text.replace("\\", "")
    assert Page(page).tags.isdisjoint({"script", "img"})
    assert str(tmp_path) not in page
    for wrong in (tmp_path / "a.pdf", tmp_path):
        with pytest.raises(ReportError, match=r"ends in \.md or \.html"):
            write_dossier(document, wrong)


def test_a_run_without_evaluation_has_none(run: RunEvidence) -> None:
    with pytest.raises(ReportError, match="not evaluated yet"):
        dossier(replace(run, evaluation=None), ())
