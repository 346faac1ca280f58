"""Figures over several threats: every number is that of the evidence, and without several threats there is none."""

import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import Synthetic, write_synthetic_run
from synthetic_threats import FEW, LONG, several
from test_report_page import Tags, words

from robustly.api import plot_threats, read_result
from robustly.evidence import EvidenceError
from robustly.evidence.unions import MeanShare, ThreatUnion
from robustly.reports import read_run, render
from robustly.reports.figures.threat_curves import threat_curves
from robustly.reports.figures.threat_rows import ThreatRow, threat_rows, threat_title, wrapped
from robustly.reports.figures.threats_plot import threats_plot
from robustly.reports.pages.methods_page import methods_page
from robustly.reports.tables.evaluations import read_evaluated
from robustly.reports.tables.method_tables import method_tables
from robustly.reports.tables.threat_matrix import ThreatMatrix, matrix_of_methods, matrix_of_runs
from robustly.statistics import Proportion

pytestmark = pytest.mark.slow

SMALL = Synthetic(count=100, epochs=2)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return several(tmp_path_factory.mktemp("few"), SMALL)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return several(tmp_path_factory.mktemp("many"), SMALL, LONG)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same but for the seed."""
    return several(tmp_path_factory.mktemp("other"), replace(SMALL, name="other", seed=5))


def union_of(run: Path) -> ThreatUnion:
    union = read_run(run).union
    assert union is not None
    return union


def expected(union: ThreatUnion) -> list[tuple[str, float, float, float]]:
    """Name, share and ends of every row, from the evidence."""
    found = [("No attack (clean)", union.clean.share, *union.clean.interval)]
    threats = sorted(union.threats, key=lambda one: -one.robust.share)
    found += [(threat_title(one.text), one.robust.share, *one.robust.interval) for one in threats]
    found.append(("Mean of the threats", union.average.accuracy, *union.average.interval))
    return [*found, ("All at once", union.union.share, *union.union.interval)]


def shown(share: float) -> str:
    return f"{100 * share:.1f}\u202f%"


def test_rows_fall_from_clean_to_the_union(run: Path) -> None:
    union = union_of(run)
    rows = threat_rows(union, read_run(run).tests)
    assert [(row.name, row.share, row.low, row.high) for row in rows] == expected(union)
    assert len(rows) == len(FEW) + 4
    assert all(one.share >= other.share for one, other in pairwise(rows[1:-2]))
    assert rows[-1].share <= rows[-3].share <= rows[0].share
    assert {row.name: row.unit for row in rows if row.unit} == {"rotation 30": "degrees", "shift 3": "pixels"}


def test_the_page_draws_every_number_of_the_evidence(run: Path) -> None:
    page = render([read_run(run)])
    section = page.partition('id="union-run1"')[2].partition("</table>")[0]
    drawn = [attrs["style"] for tag, attrs in Tags(section).found if "dotted" in attrs.get("class", "")]
    places = [[float(number) for number in re.findall(r"[\d.]+", style)] for style in drawn]
    rows = expected(union_of(run))
    for (low, high, share), (_, accuracy, *interval) in zip(places, rows, strict=True):
        assert [low, high, share] == pytest.approx([*interval, accuracy], abs=1e-5)
    text = words(section)
    for name, accuracy, low, high in rows:
        assert name.replace(" ", "") in text.replace(" ", "")
        assert " ".join(f"{shown(accuracy)} [{100 * low:.1f}, {100 * high:.1f}]".split()) in text
    assert "Changes of kind rotation:30, by at most 30 degrees." in text


def test_the_plot_draws_every_number_of_the_evidence(run: Path, tmp_path: Path) -> None:
    plot = plot_threats(run)
    tree = ElementTree.fromstring(plot.save(tmp_path / "threats.svg").read_text())
    rows = [one for one in tree.iter(f"{SVG}g") if one.get("data-kind")]
    wanted = expected(union_of(run))
    centres = [float(row.find(f"{SVG}circle").get("cx")) for row in rows]  # type: ignore[union-attr, arg-type]
    left, width = 190.0, 460 - 190 - 62
    assert centres == pytest.approx([left + width * share for _, share, *_ in wanted], abs=0.051)
    for row, (name, share, low, high) in zip(rows, wanted, strict=True):
        said = row.findtext(f"{SVG}title")
        assert said == f"{name}: {shown(share)} [{100 * low:.1f}, {100 * high:.1f}]"
        *names, number = [one.text for one in row.iter(f"{SVG}text")]
        assert number == shown(share)
        assert "".join(filter(None, names)).replace(" ", "") == name.replace(" ", "")
        ends = [float(one.get(key)) for one in row.iter(f"{SVG}line") for key in ("x1", "x2")]  # type: ignore[arg-type]
        assert [min(ends), max(ends)] == pytest.approx([left + width * low, left + width * high], abs=0.051)
    assert [one.get("data-kind") for one in rows] == ["clean", *["threat"] * 4, "mean", "union"]
    assert len(plot.panels) == 1 + 4
    assert "rotation, degrees" in plot.svg
    assert "shift, pixels" in plot.svg


def test_the_plot_of_results_is_that_of_their_run(run: Path) -> None:
    labels = [None, *(one.name.removeprefix("evaluation_") for one in sorted(run.glob("evaluation_*")))]
    assert plot_threats([read_result(run, label) for label in labels]).svg == plot_threats(run).svg
    for too_few in ([], [read_result(run)], read_result(run)):
        with pytest.raises(EvidenceError, match="at least two"):
            plot_threats(too_few)


def test_twelve_long_names_do_not_overlap(many: Path) -> None:
    union = union_of(many)
    assert len(union.threats) == 12
    assert min(len(threat_title(one.text)) for one in union.threats[1:]) > 60
    tree = ElementTree.fromstring(plot_threats(many).svg)
    lines = [
        (float(one.get("y")), one.text or "")  # type: ignore[arg-type]
        for row in tree.iter(f"{SVG}g")
        if row.get("data-kind")
        for one in row.iter(f"{SVG}text")
        if one.get("text-anchor") == "end" and float(one.get("x")) < 190  # type: ignore[arg-type]
    ]
    assert max(len(text) for _, text in lines) <= 26
    heights = sorted(height for height, _ in lines)
    assert min(high - low for low, high in pairwise(heights)) > 12.5
    page = render([read_run(many)])
    assert page.count('class="ruler dotted') == 15


def test_without_several_threats_there_is_no_such_figure(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path, SMALL)
    evidence = read_run(run)
    assert (evidence.union, evidence.tests, threat_curves([evidence])) == (None, (), ())
    page = render([evidence])
    assert 'data-section="union"' not in page
    assert "threat-curve" not in page
    assert matrix_of_runs([evidence, evidence]) is None
    two = render([evidence, replace(evidence, name="other")])
    assert 'id="threats"' not in two
    with pytest.raises(EvidenceError, match="no evaluations under two threats"):
        plot_threats(run)


def test_every_threat_has_a_curve_in_its_own_unit(run: Path) -> None:
    evidence = read_run(run)
    figures = threat_curves([evidence])
    shares = {threat_title(one.text): one.robust.share for one in union_of(run).threats}
    assert [one.words.title for one in figures] == sorted(shares, key=lambda name: -shares[name])
    assert all(re.fullmatch(r"[a-z-]+", one.words.key) for one in figures)
    assert len({one.words.key for one in figures}) == 4
    tests = {threat_title(one.threat.text): one for one in evidence.tests}
    titles = {}
    for figure in figures:
        test = tests[figure.words.title]
        assert test.curve is not None
        band, line = figure.data
        assert line["x"] == pytest.approx(test.curve.epsilon, rel=1e-5)  # type: ignore[index]
        assert line["y"] == pytest.approx(test.curve.accuracy, rel=1e-5)  # type: ignore[index]
        assert band["y"] == pytest.approx([*test.curve.high, *test.curve.low[::-1]], rel=1e-5)  # type: ignore[index]
        assert figure.layout["shapes"][0]["x0"] == pytest.approx(test.threat.limit)  # type: ignore[index]
        assert len(figure.layout["xaxis"]["tickvals"]) <= 5  # type: ignore[index]
        titles[figure.words.title] = figure.layout["xaxis"]["title"]["text"]  # type: ignore[index]
        assert len(figure.table.rows) == len(test.curve.epsilon)
    assert titles == {
        "L∞ 0.3": "epsilon (L∞)",
        "rotation 30": "rotation (degrees)",
        "shift 3": "shift (pixels)",
        "hue 0.5 + L∞ 4/255": "chain (times each part's limit)",
    }


def test_one_curve_alone_is_not_drawn_twice(run: Path) -> None:
    evidence = read_run(run)
    first, *others = evidence.tests
    bare = replace(evidence, tests=(first, *(replace(one, curve=None) for one in others)))
    assert threat_curves([bare]) == ()
    assert len(threats_plot("run", union_of(run), bare.tests).panels) == 2


def test_an_evaluation_that_is_left_out_is_not_drawn(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    other = several(tmp_path / "fewer", replace(SMALL, count=50), ("rotation:30",))
    shutil.copytree(other / "evaluation_a", copy / "evaluation_turned_more")
    evidence = read_run(copy)
    assert [one.evaluation for one in evidence.left_out] == ["evaluation_turned_more"]
    assert all(one.curve is not None and one.curve.count == 100 for one in evidence.tests)
    assert [one.threat.text for one in evidence.tests] == [one.text for one in union_of(copy).threats]


def numbers(matrix: ThreatMatrix | None) -> dict[str, list[float | None]]:
    assert matrix is not None
    return {
        column: [None if (value := row.cells[i].number.value) is None else value.share for row in matrix.rows]
        for i, column in enumerate(matrix.columns)
    }


def test_the_matrix_has_the_numbers_of_every_run(run: Path, other: Path) -> None:
    unions = [union_of(one) for one in (run, other)]
    matrix = matrix_of_runs([read_run(run), read_run(other)])
    found = numbers(matrix)
    assert found.pop("Clean") == [one.clean.share for one in unions]
    assert found.pop("Mean") == [one.average.accuracy for one in unions]
    assert found.pop("All at once") == [one.union.share for one in unions]
    by_text = [{threat_title(share.text): share.robust.share for share in one.threats} for one in unions]
    assert found == {name: [one[name] for one in by_text] for name in found}
    means = [sum(filter(None, row)) for row in found.values()]
    assert means == sorted(means, reverse=True)
    assert len(found) == 4
    assert matrix is not None
    assert matrix.notes == ()
    page = render([read_run(run), read_run(other)])
    table = page.partition('class="compare heat matrix"')[2].partition("</table>")[0]
    errors = [float(one) for one in re.findall(r"--error: ([\d.]+)", table)]
    wanted = [1 - cell.number.value.share for row in matrix.rows for cell in row.cells if cell.number.value]
    assert errors == pytest.approx(wanted, abs=1e-5)
    assert len(errors) == 14
    assert page.count('data-figure="all-threat-curve-') == 4


def test_a_run_under_one_threat_has_neither_mean_nor_union(run: Path, tmp_path: Path) -> None:
    single = write_synthetic_run(tmp_path, replace(SMALL, name="single", seed=3))
    matrix = matrix_of_runs([read_run(run), read_run(single)])
    found = numbers(matrix)
    assert [found[name][1] is None for name in ("Clean", "L∞ 0.3", "rotation 30", "Mean", "All at once")] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert matrix is not None
    assert matrix.notes == (
        "Not every run was tested under every threat: means and unions are over different threats.",
    )
    assert not any(row.cells[-1].number.best for row in matrix.rows)
    unknown = replace(read_run(single), evaluation=None)
    skipped = matrix_of_runs([unknown, read_run(run)])
    assert skipped is not None
    assert [row.index for row in skipped.rows] == [1], "a row has the colour of its run"


def test_other_images_suites_and_masking_are_not_ranked(run: Path, other: Path) -> None:
    first, second = read_run(run), read_run(other)
    assert second.union is not None
    elsewhere = replace(second, tests=tuple(replace(one, images="other") for one in second.tests))
    matrix = matrix_of_runs([first, elsewhere])
    assert matrix is not None
    assert matrix.notes == ("The runs were tested on different images: no best value is marked.",)
    assert not any(cell.number.best for row in matrix.rows for cell in row.cells)

    def changed(**values: object) -> ThreatMatrix:
        assert second.union is not None
        threats = tuple(
            replace(one, **values) if one.text == "rotation:30" else one  # type: ignore[arg-type]
            for one in second.union.threats
        )
        found = matrix_of_runs([first, replace(second, union=replace(second.union, threats=threats))])
        assert found is not None
        return found

    better = Proportion(99, 100)
    ranked = changed(robust=better)
    place = ranked.columns.index("rotation 30")
    assert [row.cells[place].number.best for row in ranked.rows] == [False, True]
    suites = changed(robust=better, suite="quick")
    assert not any(row.cells[i].number.best for row in suites.rows for i in (place, -1, -2))
    assert suites.notes == (
        "Different suites attacked under one threat, where no best value is marked: rotation 30 by dynat and "
        "quick.",
    )
    masked = changed(robust=better, masking=("gradients vanish",))
    assert [row.cells[place].number.best for row in masked.rows] == [False, False]
    assert [row.cells[place].suspected for row in masked.rows] == [False, True]
    assert [row.cells[0].suspected for row in masked.rows] == [False, False]
    assert masked.rows[1].cells[-1].suspected


def test_seeds_are_one_row_of_the_matrix_of_methods(run: Path, other: Path) -> None:
    runs = [read_evaluated(path) for path in (run, other)]
    matrix = matrix_of_methods([*runs, runs[0]], "method")  # a run that is named twice counts once
    assert matrix is not None
    assert [row.seeds for row in matrix.rows] == [2]
    unions = [union_of(path).union.share for path in (run, other)]
    value = matrix.rows[0].cells[-1].number.value
    assert value is not None
    assert value.share == pytest.approx(sum(unions) / 2)
    assert value.worst == min(unions)
    single = matrix_of_methods(runs, "run")
    assert single is not None
    assert [row.name for row in single.rows] == [run.name, other.name]
    page = words(methods_page(method_tables(runs), matrix))
    assert "Several threats" in page
    assert f"worst {shown(min(unions))}".replace("\u202f", " ") in page


def test_markup_in_the_text_of_a_threat_stays_text(run: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    evidence = read_run(run)
    assert evidence.union is not None
    threats = tuple(
        replace(one, text=evil, words=evil, suite=evil, masking=(evil,)) for one in evidence.union.threats
    )
    union = replace(evidence.union, threats=threats)
    tests = tuple(replace(one, threat=replace(one.threat, text=evil, unit=evil)) for one in evidence.tests)
    bad = replace(evidence, union=union, tests=tests)
    page = render([bad, replace(bad, name=evil)]) + threats_plot(evil, union, tests).svg
    assert evil not in page


@given(st.text(st.sampled_from("ab:=,+& @0.5/"), min_size=1, max_size=120), st.integers(2, 30), st.integers(1, 3))
def test_a_wrapped_name_is_the_name(name: str, most: int, lines: int) -> None:
    found = wrapped(name, most, lines)
    assert 1 <= len(found) <= lines
    assert all(len(one) <= most for one in found)
    joined = "".join(found).replace(" ", "")
    assert joined == name.replace(" ", "") or (
        joined.endswith("\u2026") and name.replace(" ", "").startswith(joined[:-1])
    )


def test_titles_of_threats() -> None:
    assert threat_title("linf:8/255") == "L∞ 8/255"
    assert threat_title("hsv_curve:16") == "hsv curve 16"
    assert threat_title("rotation:30+linf:8/255") == "rotation 30 + L∞ 8/255"
    assert threat_title("hue:1&l2:0.5") == "hue 1 & L2 0.5"
    assert threat_title("linf:8/255@3f2a9c81d0e4") == "L∞ 8/255@3f2a9c81d0e4"
    assert threat_title("affine:rotation=30,shift=3") == "affine rotation=30,shift=3"


def test_extremes_have_finite_places() -> None:
    """Nothing and everything robust, one example, a mean of 0."""
    nothing = Proportion(0, 1)
    union = ThreatUnion(Proportion(1, 1), (), nothing, MeanShare(0.0, nothing.interval))
    rows = threat_rows(union)
    assert rows[-1] == ThreatRow("union", "All at once", 0.0, *nothing.interval)
    assert "nan" not in threats_plot("run", union).svg
