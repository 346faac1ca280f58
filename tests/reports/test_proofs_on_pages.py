"""Certificates on pages: the interval everywhere, the band, one line for each image, stages and open examples."""

import html
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from synthetic_run import Synthetic, write_synthetic_run

from robustly.api.gate import Limits, gate
from robustly.cli.evaluate_tables import summary_table
from robustly.cli.proofs import interval_words, print_certificates
from robustly.reports import read_run, render
from robustly.reports.comparison_verdict import comparison_verdict
from robustly.reports.dossier.content import dossier
from robustly.reports.dossier.document import markdown
from robustly.reports.dossier.limits import limit_sentences
from robustly.reports.figures.certificate_figures import (
    MOST_LINES,
    band_of_sizes,
    certificate_figures,
    intervals,
    intervals_of_runs,
    line_of_each,
    stages,
)
from robustly.reports.formats import percent
from robustly.reports.pages.certificate_rows import certificate_rows, open_rows
from robustly.reports.pages.run_view import view
from robustly.reports.verdict import verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    options = Synthetic(count=500, epochs=2, proofs=True, training=False)
    return write_synthetic_run(tmp_path_factory.mktemp("runs"), options)


@pytest.fixture(scope="module")
def run(folder):
    return read_run(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    options = Synthetic(name="plain", count=500, robust=0.3, epochs=2, training=False)
    return read_run(write_synthetic_run(tmp_path_factory.mktemp("plain"), options))


def text_of(page):
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def ends(run):
    interval = run.evaluation.metrics.interval
    return percent(interval.certified.share), percent(interval.attacked.share), interval.undecided


def test_the_synthetic_run_has_all_kinds_of_rows(run):
    metrics = run.evaluation.metrics
    assert 0 < metrics.proved.hits < metrics.attacked.hits < metrics.worst_case.robust.hits < metrics.clean.hits
    assert metrics.undecided == metrics.attacked.hits - metrics.proved.hits > 50


def test_the_interval_stands_wherever_a_headline_stands(run, plain):
    low, high, undecided = ends(run)
    low_text, high_text = low.replace("\u202f", " "), high.replace("\u202f", " ")
    sentence = verdict(run).sentence
    assert f"is proved robust on {low} and holds {high} of 500" in sentence
    assert (
        f"against five attacks and a certificate's counterexamples under linf:0.3; {undecided} are undecided"
        in sentence
    )
    page = text_of(render([run]))
    assert f"{low} to {high}" in page.replace(" %", "\u202f%")
    assert f": {undecided} are undecided." in page
    assert f"{low_text} certified to {high_text} attacked, {undecided} undecided" in _repr(run)
    assert f"({low} proved); plain" in comparison_verdict([run, plain]).sentence
    document = markdown(dossier(run, ())).replace("\u202f", " ")
    assert f"{low_text} to {high_text}; {undecided} undecided" in document
    assert f"{undecided} examples are neither broken nor certified" in " ".join(limit_sentences(run))
    table = summary_table(run.evaluation)
    cells = [list(column.cells) for column in table.columns]
    assert (cells[0][-1], cells[1][-1]) == ("certified", low_text)
    words = interval_words(run.evaluation)
    assert words.startswith(f"robust accuracy at linf:0.3: at least {low_text} (")
    assert f", at most {high_text} (" in words
    assert words.endswith(f"; {undecided} open")


def test_evaluations_beside_the_compared_runs_are_shown_and_not_ranked(run, plain):
    others = [plain, replace(plain, name="other")]
    page, alone = text_of(render(others, [run])), text_of(render(others))
    proofs, ranked = (" ".join(one.sentence.split()) for one in (verdict(run), comparison_verdict(others)))
    assert proofs in page
    assert proofs not in alone
    assert ranked in page
    assert "Comparison of 2 runs" in page


def _repr(run):
    from robustly.evidence.display import evidence_text

    return evidence_text("Evidence", run.evaluation)


def test_terminal_lines_name_stages_and_reasons(run):
    console = Console(file=io.StringIO(), width=100)
    print_certificates(console, run.evaluation)
    lines = console.file.getvalue().splitlines()
    numbers = run.evaluation.metrics.certificates[0]
    words = numbers.verdicts
    open_ = words["unknown"] + words["timeout"] + words["error"]
    shown = f"certificate bounds: {words['falsified']} falsified, {words['verified']} verified, {open_} open"
    assert lines[0].startswith(shown)
    (intervals_row,) = [line for line in lines if line.strip().startswith("ibp: intervals")]
    assert str(numbers.stages["ibp"].verified) in intervals_row.split()
    for reason, number in numbers.reasons.items():
        assert f"open, {number} of 500: {reason}" in lines


def test_the_gate_decides_on_the_ends_of_the_interval(folder, run):
    metrics = run.evaluation.metrics
    between = (metrics.attacked.share + metrics.worst_case.robust.share) / 2
    found = {
        one.name: one
        for one in gate(folder / "evaluation", Limits(robust=between, certified=0.5, suite="any")).conditions
    }
    assert not found["robust accuracy"].passed, "a certificate's counterexamples count"
    assert found["certified accuracy"].passed
    found = gate(folder / "evaluation", Limits(certified=metrics.proved.share + 0.01, suite="any")).conditions
    assert not next(one for one in found if one.name == "certified accuracy").passed


def test_the_bounds_of_each_image_agree_with_the_interval(run):
    found, interval = intervals(run.evaluation, run.table), run.evaluation.metrics.interval
    assert found.at(found.limit) == (interval.certified.share, interval.attacked.share)
    assert found.at(0.0) == (run.evaluation.metrics.clean.share,) * 2
    assert (found.low <= found.high).all()
    sizes = np.linspace(0, found.top, 50)
    shares = np.array([found.at(size) for size in sizes])
    assert (np.diff(shares, axis=0) <= 0).all()
    assert (shares[:, 0] <= shares[:, 1]).all()


def test_a_certificate_of_another_classifier_bounds_nothing(run, plain):
    certificates = run.evaluation.metrics.certificates
    smoothed = replace(certificates[0], terms=replace(certificates[0].terms, certifies="smoothed"))
    metrics = replace(run.evaluation.metrics, certificates=(smoothed,), certified=None, interval=None)
    other = replace(run.evaluation, metrics=metrics)
    assert intervals(other, run.table) is None
    assert [one.words.key for one in certificate_figures(other, run.table)] == ["stages"]
    assert certificate_figures(plain.evaluation, plain.table) == ()
    assert "Open examples" not in render([plain])


def test_the_band_has_the_evaluated_size_and_ends_where_nothing_was_searched(run):
    found = intervals(run.evaluation, run.table)
    drawn = band_of_sizes(run.evaluation, found)
    _, attacked, proved = drawn.data
    assert attacked["x"][-1] == pytest.approx(found.searched, rel=1e-5) == pytest.approx(0.3)
    assert attacked["y"][-1] == pytest.approx(run.evaluation.metrics.attacked.share, rel=1e-5)
    assert proved["x"][-1] > 0.5
    at = proved["y"][max(i for i, size in enumerate(proved["x"]) if size <= 0.3)]
    assert at == pytest.approx(run.evaluation.metrics.proved.share, rel=1e-5)
    assert len(proved["x"]) < 1000
    assert any(row[2] == "\u2013" for row in drawn.table.rows), "beyond the searched size nothing is stated"
    json.dumps(drawn.data, allow_nan=False)


def test_each_image_has_a_line_or_an_even_choice_of_them(run):
    found = intervals(run.evaluation, run.table)
    drawn = line_of_each(run.evaluation, found)
    assert len(drawn.table.rows) == MOST_LINES
    assert "400 of 500 are drawn" in drawn.words.caption
    radii = [float(row[1]) for row in drawn.table.rows]
    assert radii == sorted(radii, reverse=True)
    decided = run.evaluation.data.count - run.evaluation.metrics.undecided
    assert f"{decided} of 500 are decided" in drawn.words.caption
    few = replace(found, low=found.low[:30], high=found.high[:30])
    assert len(line_of_each(run.evaluation, few).table.rows) == 30


def test_stages_stack_their_outcomes(run):
    certificates = run.evaluation.metrics.certificates
    drawn = stages(certificates)
    numbers = certificates[0].stages
    assert [row[0] for row in drawn.table.rows] == ["attack", "ibp", "crown", "alpha", "branch"]
    assert {trace["name"]: sum(trace["x"]) for trace in drawn.data} == {
        "Verified": sum(one.verified for one in numbers.values()),
        "Counterexample": sum(one.falsified for one in numbers.values()),
        "Open": certificates[0].verdicts["unknown"] + certificates[0].verdicts["timeout"],
    }
    assert stages([replace(certificates[0], stages={})]) is None


def test_open_examples_are_counted_by_reason(run):
    columns = run.table.certificates["bounds"]
    rows = open_rows(run.evaluation, run.table)
    assert sum(row.count for row in rows) == int(columns.open.sum())
    assert sum(row.unbroken for row in rows) == run.evaluation.metrics.undecided
    assert {row.reason: row.count for row in rows} == run.evaluation.metrics.certificates[0].reasons
    without = open_rows(run.evaluation, None)
    assert [(row.count, row.unbroken) for row in without] == [(row.count, None) for row in rows]
    (row,) = certificate_rows(run.evaluation)
    assert (row.title, row.of, row.open) == ("Bounds", "the model itself", int(columns.open.sum()))
    assert row.seconds == pytest.approx(columns.seconds.sum())
    page = text_of(render([run]))
    assert "the budget of domains is spent" in page
    assert "Deciding methods" in page
    columns.reason[:] = ""
    assert {row.reason for row in open_rows(run.evaluation, run.table)} == {"not recorded"}


def test_outcomes_of_all_examples_add_up(run, plain):
    segments = view(run, "run1").segments
    assert sum(part.count for part in segments) == 500
    kinds = {part.kind: part.count for part in segments}
    metrics = run.evaluation.metrics
    assert kinds["proved"] == metrics.proved.hits
    assert kinds["held"] == metrics.undecided
    assert kinds["refuted"] == metrics.worst_case.robust.hits - metrics.attacked.hits > 0
    assert "refuted" not in {part.kind for part in view(plain, "run1").segments}


def test_runs_are_compared_with_their_intervals(run, plain):
    drawn = intervals_of_runs([run, plain])
    shares = {trace["name"]: trace["x"] for trace in drawn.data}
    assert shares["Proved"] == [pytest.approx(run.evaluation.metrics.proved.share), 0.0]
    for i in range(2):
        assert sum(parts[i] for parts in shares.values()) == pytest.approx(1.0, abs=1e-4)
    assert intervals_of_runs([plain, plain]) is None
    assert "From proved to attacked" in text_of(render([run, plain]))


def test_a_failure_probability_is_stated(run):
    interval = replace(run.evaluation.metrics.interval, failure_probability=0.001)
    risky = replace(run.evaluation, metrics=replace(run.evaluation.metrics, interval=interval))
    risky = replace(run, evaluation=risky)
    assert "Each proof is wrong with a probability of at most 0.001." in text_of(render([risky]))
    assert "wrong with a probability of at most 0.001" in " ".join(limit_sentences(risky))
