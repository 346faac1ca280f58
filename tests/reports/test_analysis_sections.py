"""Optional sections of the page: trust, threats, budget, analysis."""

import dataclasses
import json
import re

import numpy as np
import pytest
from synthetic_run import Synthetic, write_synthetic_run
from test_report_page import Tags, words

from robustly.evidence import EvidenceError
from robustly.evidence.schema import AttackColumns
from robustly.reports import read_run, render
from robustly.reports.figures.budget_figure import accuracy_against_budget
from robustly.reports.pages.run_view import view
from robustly.reports.tables.comparison import compare
from robustly.statistics import Proportion

pytestmark = pytest.mark.slow

REASON = "Square broke 3 images that gradients had left."
SECTIONS = ("Can these numbers be trusted?", "Several threats", "Gradients and loss surfaces")


@pytest.fixture
def analysed(tmp_path):
    options = Synthetic(name="analysed", count=200, epochs=3, masking=(REASON,), analysis=True)
    return write_synthetic_run(tmp_path / "runs", options)


def change(run, edit, name="analysis.json"):
    content = json.loads((run / name).read_text())
    edit(content)
    (run / name).write_text(json.dumps(content))


def test_evidence_without_findings_and_analysis_has_none_of_these_sections(run):
    page = words(render([read_run(run)]))
    assert [title for title in SECTIONS if title in page] == ["Can these numbers be trusted?"]
    assert "No check for masked gradients was run." in page
    assert "masking" not in page
    assert "Accuracy against the work of the attacks" in page


def test_suspected_masking_stands_in_the_headline_with_its_reasons(analysed):
    page = words(render([read_run(analysed)]))
    headline = page.partition("Outcomes of the")[0]
    assert "Upper bound; masking suspected." in headline
    assert REASON in headline
    assert "Signs were found" in page


def test_findings_come_by_outcome_and_the_bad_ones_are_open(analysed):
    run = read_run(analysed)
    assert [(group.kind, len(group.findings)) for group in view(run, "a").checks] == [
        ("failed", 1),
        ("undecided", 1),
        ("passed", 1),
    ]
    page = render([run])
    kinds = [attrs for tag, attrs in Tags(page).found if tag == "details"]
    assert ["open" in attrs for attrs in kinds if attrs.get("class") in ("failed", "undecided", "passed")] == [
        True,
        True,
        False,
    ]
    assert "Measured 0.05 · threshold: 0.002" in words(page)


def test_findings_without_a_sign_of_masking_say_that_this_proves_nothing(analysed):
    change(analysed, lambda summary: summary.update(masking=[]), "evaluation/summary.json")
    page = words(render([read_run(analysed)]))
    assert "No sign of masking was found" in page
    assert "masking suspected" not in page


def test_an_analysis_brings_its_table_its_figures_and_the_union(analysed):
    page = render([read_run(analysed)])
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL).group(1))
    keys = {key.removeprefix("run1-") for key in figures}
    assert {"first-order-radii", "weight-surface", "input-surface-a", "input-surface-b", "budget"} <= keys
    kinds = [trace["type"] for trace in figures["run1-input-surface-a"]["data"]]
    assert kinds == ["heatmap", "contour", "scatter"]
    assert [trace["type"] for trace in figures["run1-weight-surface"]["data"]] == ["heatmap"]
    text = words(page)
    for title in SECTIONS:
        assert title in text
    assert "Size of the gradient (L1)" in text
    rows = [text.index(name) for name in ("No attack (clean)", "L∞ 0.3", "L2 0.5", "Mean of the threats")]
    assert rows == sorted(rows)
    assert "16.5 %" in text.replace("\u202f", " ")  # 33 of 200 under both
    assert "not evidence of robustness" in text


def test_surfaces_of_pictures_share_one_scale(analysed):
    figures = {figure.words.key: figure for figure in view(read_run(analysed), "a").analysis}
    scales = {figures[f"input-surface-{letter}"].data[0]["zmax"] for letter in "ab"}
    assert len(scales) == 1
    assert next(iter(scales)) > 3


def test_parts_of_an_analysis_may_be_missing(analysed):
    def strip(content):
        content.update(union=None, landscapes=None)
        content["gradients"]["radius"].update(count=0, histogram=None)

    change(analysed, strip)
    shown = view(read_run(analysed), "a")
    assert (shown.analysis, shown.union, len(shown.measures)) == ((), (), 6)
    render([read_run(analysed)])


def test_an_analysis_of_other_weights_or_another_threat_is_pointed_out(analysed):
    change(analysed, lambda content: content.update(model={"weights_sha256": "00" * 32}))
    assert "are of different weights" in words(render([read_run(analysed)]))
    change(analysed, lambda content: content.update(model={"weights_sha256": "9f2c" * 16}, threat={"text": "l2:1"}))
    assert "The analysis was made for l2:1, the evaluation for linf:0.3." in words(render([read_run(analysed)]))


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda content: content.update(schema=7), "schema 7"),
        (lambda content: content.update(schema=1), "schema 1, but this robustly reads schema 2"),
        (lambda content: content["gradients"].pop("correct"), "gradients: correct is missing"),
        (lambda content: content["landscapes"]["weights"].update(loss=[[1.0]]), "rows of 21 numbers"),
        (lambda content: content["gradients"]["measures"]["l1"]["histogram"].update(counts=[1]), "one more than"),
        (lambda content: content["union"]["average"].update(interval=[0.1]), "interval should be a list of 2"),
    ],
)
def test_a_damaged_analysis_is_refused_with_one_sentence(analysed, edit, complaint):
    change(analysed, edit)
    with pytest.raises(EvidenceError, match=complaint):
        read_run(analysed)


def test_an_attack_that_failed_or_was_not_needed_has_no_number(analysed):
    def edit(summary):
        summary["failures"] = {"pgd_10": "out of memory"}
        summary["attacks"]["pgd_50"]["tried"] = 0
        summary["suite"]["attacks"][2]["plan"] = {"on_suspicion": True}

    change(analysed, edit, "evaluation/summary.json")
    run = read_run(analysed)
    assert [one.state for one in run.evaluation.outcomes] == ["failed", "", "not needed", "", ""]
    assert "PGD-10 failed" in words(render([run]))
    assert compare([run, run]).cells[0][1].value is None


def test_a_run_that_may_be_masked_is_no_best_run(analysed, run):
    honest = read_run(run)
    masked = dataclasses.replace(
        honest, name="masked", evaluation=dataclasses.replace(honest.evaluation, masking=("x",))
    )
    metrics = honest.evaluation.metrics
    weak = dataclasses.replace(metrics.worst_case, robust=Proportion(1, metrics.clean.count))
    weaker = dataclasses.replace(honest.evaluation, metrics=dataclasses.replace(metrics, worst_case=weak))
    third = dataclasses.replace(honest, name="third", evaluation=weaker)
    table = compare([masked, honest, third])
    worst = table.columns.index("Worst case")
    assert [row[worst].best for row in table.cells] == [False, True, False]
    assert "masked: upper bound; masking suspected." in words(render([masked, honest])).replace(" :", ":")


def test_the_budget_figure_follows_the_table(run):
    evidence = read_run(run)
    figure = accuracy_against_budget(evidence.evaluation, evidence.table)
    whole = figure.data[0]
    assert whole["y"][0] == pytest.approx(evidence.table.correct.mean())
    assert whole["y"][-1] == pytest.approx(evidence.evaluation.metrics.worst_case.robust.share)
    assert len(figure.data) == 6
    assert (np.diff(whole["y"]) <= 0).all()
    assert figure.table.header == (
        "Passes for each picture",
        "All attacks in their order",
        *figure.table.header[2:],
    )


def test_a_table_of_attacks_that_did_not_run_has_no_budget_figure(run):
    evidence = read_run(run)
    bare = dataclasses.replace(evidence.table, attacks={})
    assert accuracy_against_budget(evidence.evaluation, bare) is None
    idle = {name: AttackColumns.untried(200) for name in evidence.table.attacks}
    assert accuracy_against_budget(evidence.evaluation, dataclasses.replace(bare, attacks=idle)) is None


def test_a_suite_from_survivor_to_survivor_is_one_line(run):
    evidence = read_run(run)
    suite = dataclasses.replace(evidence.evaluation.suite, mode="worst_case")
    evaluation = dataclasses.replace(evidence.evaluation, suite=suite)
    assert len(accuracy_against_budget(evaluation, evidence.table).data) == 1


def test_markup_in_findings_and_analysis_stays_text(analysed):
    evil = "<img src=x onerror=alert(1)>"
    change(analysed, lambda content: content["landscapes"]["inputs"][0].update(label=evil))

    def edit(summary):
        summary["masking"] = [evil]
        summary["findings"][0].update(id=evil, title=evil, words=evil, threshold=evil)

    change(analysed, edit, "evaluation/summary.json")
    page = render([read_run(analysed)])
    assert evil not in page
    assert not [attrs for _, attrs in Tags(page).found if any(name.startswith("on") for name in attrs)]
