import dataclasses
import html
import json
import re
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from synthetic_run import Synthetic, write_synthetic_run

from robustly.evidence.provenance import LAST_CHECKPOINT, Plan, SuiteAttack
from robustly.evidence.storage import Pictures
from robustly.evidence.summary import AttackSummary
from robustly.reports import ReportError, read_run, render, write_report
from robustly.reports.figures.charts import json_safe
from robustly.reports.figures.evaluation_figures import by_class, distances
from robustly.reports.formats import count, decimal, duration, percent, proportion
from robustly.reports.pages import gallery as pages_gallery
from robustly.reports.pages.gallery import MOST_BROKEN, MOST_BYTES, PER_RUN, gallery, share_of_bytes
from robustly.reports.pages.run_view import embedded_json, view
from robustly.reports.tables.comparison import compare
from robustly.statistics import Proportion

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def words(page):
    """The text of a page without scripts, styles and tags, its white space made plain."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def with_attacks(evaluation, count):
    """The evaluation with only the first attacks of its suite."""
    suite = dataclasses.replace(evaluation.suite, attacks=evaluation.suite.attacks[:count])
    attacks = {name: evaluation.metrics.attacks[name] for name in suite.names}
    metrics = dataclasses.replace(evaluation.metrics, attacks=attacks)
    return dataclasses.replace(evaluation, suite=suite, metrics=metrics)


class Tags(HTMLParser):
    """Collect every start tag with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_numbers_read_well():
    assert proportion(Proportion(978, 1000)) == "97.8\u202f% [96.7, 98.5]"
    assert percent(None) == "\u2013"
    assert count(312202) == "312\u202f202"
    assert [decimal(0.123456), decimal(12.34), decimal(5), decimal(None)] == ["0.1235", "12.3", "5", "\u2013"]
    assert [duration(3.21), duration(80), duration(7300), duration(400 * 3600)] == [
        "3.2\u202fs",
        "1\u202fmin 20\u202fs",
        "2\u202fh 1\u202fmin",
        "17\u202fdays",
    ]


def test_the_headline_without_certificate_is_an_upper_bound(run):
    page = words(render([read_run(run)]))
    worst = read_run(run).evaluation.metrics.worst_case.robust
    assert f"at most {percent(worst.share)}" in " ".join(page.split()).replace(" %", "\u202f%")
    assert "no certificate" in page
    assert "upper bound" in page


@pytest.mark.parametrize(
    ("accuracy", "warm_up", "warned"), [(0.5, 0, True), (0.5, 5, True), (0.5, 6, False), (0.6, 0, False)]
)
def test_a_guide_that_is_often_wrong_is_named(run, accuracy, warm_up, warned):
    evidence = read_run(run)
    columns = dict(evidence.training.columns)
    del columns["label_agreement"]
    columns["guide_accuracy"] = np.full(6, accuracy)
    method = {"labels": {"name": "guide", "warm_up": warm_up}}
    training = dataclasses.replace(evidence.training, columns=columns)
    changed = dataclasses.replace(evidence, training=training, config={"method": method})
    page = words(render([changed])).replace("\u202f", " ")
    assert ("In the last epoch the guide classified only 50.0 % of the training images" in page) == warned
    assert "Guide accuracy: share of the training images" in page


def test_training_images_in_evaluation_mode_are_a_line_of_the_accuracies(run):
    evidence = read_run(run)
    columns = dict(evidence.training.columns) | {"train_subset_clean_accuracy": np.full(6, 0.625)}
    changed = dataclasses.replace(evidence, training=dataclasses.replace(evidence.training, columns=columns))
    page = render([changed]).replace("\u202f", " ")
    assert "Clean, first training images, evaluation mode: 62.5 %" in page
    assert "Train subset clean accuracy" not in page.split("metrics")[0]


def test_the_headline_with_certificate_is_an_interval(tmp_path):
    run = write_synthetic_run(tmp_path, Synthetic(count=200, epochs=2, certified=0.4))
    page = words(render([read_run(run)]))
    assert re.search(r"40\.0 % to 8\d\.\d %", page.replace("\u202f", " "))
    assert "proved by a certificate (CROWN bounds)" in page


def test_every_attack_its_settings_and_the_provenance_appear(run):
    page = words(render([read_run(run)]))
    for text in [
        "PGD-10",
        "AutoAttack",
        "step size",
        "robustly audit",
        "9f2c" * 16,
        "trades_mnist5k",
        "2.13.0",
    ]:
        assert text in page
    assert "Each pixel may change by at most 0.3" in page


def test_the_parts_of_the_outcome_add_up(run):
    segments = view(read_run(run), "a").segments
    assert sum(part.count for part in segments) == 200
    assert sum(part.share for part in segments) == pytest.approx(1)


def test_text_from_outside_cannot_become_markup(tmp_path):
    options = Synthetic(
        name="evil", count=80, epochs=2, classes=(EVIL, *map(str, range(1, 10))), warnings=(EVIL,), note=EVIL
    )
    run = write_synthetic_run(tmp_path, options)
    (run / "config.yaml").write_text(json.dumps({"recipe": EVIL}))
    file = run / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    summary["run"] = summary["suite"]["attacks"][0]["title"] = summary["suite"]["attacks"][1]["title"] = EVIL
    summary["security_curve"]["epsilon_text"][0] = summary["threat"]["limit_text"] = EVIL
    file.write_text(json.dumps(summary))
    page = render([read_run(run), read_run(run)])
    assert EVIL not in page
    scripts = [attrs for tag, attrs in Tags(page).found if tag == "script"]
    assert len(scripts) == 5
    assert not [attrs for tag, attrs in Tags(page).found if any(name.startswith("on") for name in attrs)]


def test_plotly_gets_no_tags_from_outside(tmp_path):
    options = Synthetic(count=80, epochs=2, classes=("<b>bold</b>", *map(str, range(1, 10))))
    evaluation = read_run(write_synthetic_run(tmp_path, options)).evaluation
    drawn = json.dumps(by_class(evaluation.metrics.per_class).data)
    assert "<b>" not in drawn
    assert "&lt;b&gt;" in drawn


def test_the_page_loads_nothing(run):
    page = render([read_run(run)])
    for tag, attrs in Tags(page).found:
        for name in ("src", "href", "action", "poster", "srcset"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert page.count("plotly.js v") == 1
    assert "default-src 'none'" in page


def test_the_page_carries_what_draws_its_charts_and_little_more(run, tmp_path):
    page = render([read_run(run)])
    assert len(page) < 2_000_000
    folder = resources.files("robustly.reports.pages").joinpath("templates")
    assert "Licensed under the MIT license" in folder.joinpath("plotly.js").read_text(encoding="utf-8")[:300]
    assert "plotly.js 4.1.1" in folder.joinpath("plotly.txt").read_text(encoding="utf-8")
    analysed = render([read_run(write_synthetic_run(tmp_path, Synthetic(count=80, epochs=3, analysis=True)))])
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', analysed, re.DOTALL).group(1))
    kinds = {trace["type"] for figure in figures.values() for trace in figure["data"]}
    assert kinds == {"scatter", "bar", "heatmap", "contour"}, "what plotly.js is built for, see plotly.txt"


def test_every_place_for_a_chart_has_its_figure_and_its_table(run):
    page = render([read_run(run)])
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL).group(1))
    places = [attrs for _, attrs in Tags(page).found if "data-figure" in attrs]
    assert {attrs["data-figure"] for attrs in places} == set(figures)
    assert len(figures) >= 6
    assert all(attrs["aria-label"] for attrs in places)
    assert page.count("<summary>Data table</summary>") == len(places)


def test_json_of_the_page_is_strict():
    assert json_safe({"a": [float("nan"), float("inf"), 1.5]}) == {"a": [None, None, 1.5]}
    assert "<" not in embedded_json({"a": "</script><!--"})
    with pytest.raises(ValueError, match="JSON"):
        embedded_json(float("nan"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        Synthetic(evaluation=False, epochs=2),
        Synthetic(training=False, count=60),
        Synthetic(epochs=1, count=60),
        Synthetic(colour=True, count=80, epochs=2),
        Synthetic(count=60, robust=0.0001, epochs=2),
        Synthetic(count=60, robust=1.0, clean=1.0, epochs=2),
    ],
)
def test_unusual_runs_get_a_page(tmp_path, options):
    page = render([read_run(write_synthetic_run(tmp_path, options))])
    assert "</html>" in page
    assert ("Not evaluated yet" in page) == (not options.evaluation)


def test_warnings_and_a_stopped_training_are_shown(tmp_path):
    options = Synthetic(count=60, epochs=2, warnings=("Gradients are zero.",), state="diverged")
    page = words(render([read_run(write_synthetic_run(tmp_path, options))]))
    assert "Warning: Gradients are zero." in page
    assert "Warning: The training diverged." in page


def test_the_weakest_of_many_classes_are_drawn_and_all_are_tabulated(run):
    one = read_run(run).evaluation.metrics.per_class[0]
    many = [dataclasses.replace(one, name=f"class {i}", robust=Proportion(i, 100)) for i in range(100)]
    drawn = by_class(many)
    assert len(drawn.data[0]["y"]) == 30
    assert len(drawn.table.rows) == 100
    assert "30 weakest of 100" in drawn.words.caption


def test_distances_that_all_lie_at_epsilon_are_not_drawn(run):
    evidence = read_run(run)
    assert distances(evidence.evaluation, evidence.table) is not None
    flat = {
        name: dataclasses.replace(columns, distance=np.where(np.isfinite(columns.distance), 0.3, np.nan))
        for name, columns in evidence.table.attacks.items()
    }
    assert distances(evidence.evaluation, dataclasses.replace(evidence.table, attacks=flat)) is None


def test_the_gallery_states_its_factor_and_leaves_no_difference_clipped(run):
    evidence = read_run(run)
    grid = gallery(evidence.evaluation, evidence.table, evidence.pictures)
    assert grid.factor == 1.5
    assert grid.shelves[0].title == "PGD-10"
    for shelf in grid.shelves:
        broken = [shot for shot in shelf.shots if shot.adversarial]
        assert 0 < len(broken) <= MOST_BROKEN
        assert all(shot.prediction not in (None, shot.label) for shot in broken)
        assert any(shot.adversarial is None for shot in shelf.shots)


def test_large_pictures_are_shown_smaller(run):
    evidence = read_run(run)
    large = np.zeros((1, 3, 400, 200), np.float32)
    pictures = Pictures(np.array([3]), large, {"pgd_10": {3: large[0] + 0.01}})
    grid = gallery(evidence.evaluation, None, pictures)
    assert grid.shrunk
    assert len(grid.shelves[0].shots[0].original) < 2000


def test_no_picture_is_encoded_twice(run, monkeypatch):
    evidence, calls = read_run(run), []
    monkeypatch.setattr(pages_gallery, "_png", lambda pixels, side: calls.append(side) or "x" * 100_000)
    assert gallery(evidence.evaluation, evidence.table, evidence.pictures) is None
    tried, calls[:] = calls.copy(), []
    grid = gallery(evidence.evaluation, evidence.table, evidence.pictures, most=10**9)
    shots = [shot for shelf in grid.shelves for shot in shelf.shots]
    pairs = sum(shot.adversarial is not None for shot in shots)
    assert len(tried) == len(calls) == len({shot.example for shot in shots}) + 2 * pairs
    assert set(tried) == {28}, "small pictures have one size, so that smaller sides need no new ones"


def test_a_comparison_marks_only_what_is_clear(tmp_path):
    runs = [
        read_run(write_synthetic_run(tmp_path, Synthetic(name=name, count=400, robust=robust, epochs=2)))
        for name, robust in [("strong", 0.91), ("near", 0.90), ("weak", 0.2)]
    ]
    table = compare(runs)
    worst = table.columns.index("Worst case")
    marks = [(row[worst].best, row[worst].clearly) for row in table.cells]
    assert marks == [(True, False), (False, False), (False, False)]
    two = compare([runs[0], runs[2]])
    assert two.cells[0][worst].clearly
    page = words(render(runs))
    assert "clearly best" in page.lower()
    assert "3 runs compared" in page


def test_runs_tested_differently_are_not_ranked(tmp_path):
    runs = [
        read_run(write_synthetic_run(tmp_path, Synthetic(name="grey", count=60, epochs=2))),
        read_run(write_synthetic_run(tmp_path, Synthetic(name="colour", colour=True, count=80, epochs=2))),
        read_run(write_synthetic_run(tmp_path, Synthetic(name="raw", evaluation=False, epochs=2))),
    ]
    table = compare(runs)
    assert len(table.differences) == 3
    assert not any(cell.best for row in table.cells for cell in row)
    assert "Not comparable:" in words(render(runs))


def test_an_attack_that_one_run_lacks_leaves_a_gap(run):
    whole = read_run(run)
    fewer = dataclasses.replace(whole, name="fewer", evaluation=with_attacks(whole.evaluation, 2))
    table = compare([whole, fewer])
    assert table.cells[1][table.columns.index("AutoAttack")].value is None


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [
        read_run(write_synthetic_run(tmp_path / place, Synthetic(count=60, epochs=2))) for place in ("a", "b", "b")
    ]
    page = words(render(runs)).replace("_ ", "_").replace("/ ", "/").replace("- ", "-")
    assert "a/mnist5k_trades" in page
    assert "b/mnist5k_trades (3)" in page


def test_the_report_is_written_whole_or_not_at_all(run, tmp_path, monkeypatch):
    output = tmp_path / "new" / "report.html"
    assert write_report([run], output) == output
    before = output.read_text(encoding="utf-8")
    assert before.startswith("<!doctype html>")
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report([run], output)
    assert output.read_text(encoding="utf-8") == before
    assert [file.name for file in output.parent.iterdir()] == ["report.html"]


def test_no_runs_and_bad_runs_write_nothing(tmp_path):
    with pytest.raises(ReportError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ReportError):
        write_report([tmp_path], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_an_attack_without_settings_or_costs_is_shown(run):
    evidence = read_run(run)
    suite, metrics = evidence.evaluation.suite, evidence.evaluation.metrics
    numbers = AttackSummary(Proportion(150, 200), Proportion(160, 200), 0.0, 0.0, 0.0, 0)
    evaluation = dataclasses.replace(
        evidence.evaluation,
        suite=dataclasses.replace(suite, attacks=(SuiteAttack("mine", "Mine", {}, Plan()),)),
        metrics=dataclasses.replace(metrics, attacks={"mine": numbers}),
        seconds={},
    )
    page = words(render([dataclasses.replace(evidence, evaluation=evaluation)]))
    assert "Mine 75.0" in page


def test_a_threat_that_is_not_a_ball_is_reported_in_its_own_unit(run):
    file = run / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    turned = {"text": "rotation:0.3", "kind": "rotation", "unit": "degrees", "norm": None, "limit_text": "0.3"}
    file.write_text(json.dumps(summary | {"threat": summary["threat"] | turned}))
    evidence = read_run(run)
    figures = {figure.words.key: figure for figure in view(evidence, "a").charts}
    assert figures["security-curve"].layout["xaxis"]["title"]["text"] == "rotation (degrees)"
    assert figures["distances"].layout["xaxis"]["title"]["text"] == "size (rotation, degrees)"
    assert "tested on 200 test examples of mnist5k under rotation:0.3" in words(render([evidence]))


@pytest.mark.slow
def test_large_and_many_pictures_become_fewer_and_smaller(run):
    evidence = read_run(run)
    noise = np.random.default_rng(0).uniform(size=(6, 3, 160, 160)).astype(np.float32)
    ids = np.arange(6)
    found = {name: dict(enumerate(noise[::-1])) for name in evidence.evaluation.suite.names[:2]}
    pictures = Pictures(ids, noise, found)
    grid = gallery(evidence.evaluation, evidence.table, pictures)
    assert grid.size <= MOST_BYTES
    assert grid.side < 160
    assert grid.shrunk
    written = render([dataclasses.replace(evidence, pictures=pictures)])
    assert len(written) < 2_000_000
    assert gallery(evidence.evaluation, evidence.table, pictures, most=1000) is None


def test_the_bytes_for_pictures_shrink_with_the_number_of_runs(tmp_path):
    shares = [share_of_bytes(runs) for runs in (1, 2, 5, 50)]
    assert shares == [MOST_BYTES, (MOST_BYTES - PER_RUN) // 2, (MOST_BYTES - 4 * PER_RUN) // 5, 0]
    left = dataclasses.replace(Synthetic(count=60, epochs=2), name="small")
    evidence = read_run(write_synthetic_run(tmp_path, left))
    assert view(evidence, "a", 0).pictures_left_out
    assert not view(evidence, "a").pictures_left_out


def test_attacks_that_did_not_run_have_no_pictures_and_one_row(run):
    evidence = read_run(run)
    suite, metrics = evidence.evaluation.suite, evidence.evaluation.metrics
    last = suite.attacks[-1]
    idle = dataclasses.replace(last, plan=Plan(on_suspicion=True))
    numbers = dataclasses.replace(metrics.attacks[last.name], tried=0)
    evaluation = dataclasses.replace(
        evidence.evaluation,
        suite=dataclasses.replace(suite, attacks=(*suite.attacks[:-1], idle)),
        metrics=dataclasses.replace(metrics, attacks={**metrics.attacks, last.name: numbers}),
    )
    grid = gallery(evaluation, evidence.table, evidence.pictures)
    assert [shelf.title for shelf in grid.shelves] == [one.title for one in suite.attacks[:-1]]
    page = words(render([dataclasses.replace(evidence, evaluation=evaluation)]))
    assert f"Not needed {last.title}" in page
    assert "by suite dynat of 5 attacks (1 not needed)." in page
    assert "against four attacks" in page


def test_a_collapse_in_the_best_epoch_is_not_stated_of_the_weights_after_the_last(run):
    evidence = read_run(run)
    best = evidence.training.status.best_epoch
    column = np.full(len(evidence.training.columns["epoch"]), np.nan)
    column[best - 1] = 3
    training = dataclasses.replace(
        evidence.training, columns={**evidence.training.columns, "validation_collapsed_class": column}
    )
    evidence = dataclasses.replace(evidence, training=training)
    model = dataclasses.replace(evidence.evaluation.model, checkpoint=LAST_CHECKPOINT)
    last = dataclasses.replace(evidence, evaluation=dataclasses.replace(evidence.evaluation, model=model))
    said = [any("In the best epoch" in line for line in view(one, "a").warnings) for one in (evidence, last)]
    assert said == [True, False]


def test_numbers_of_figures_have_six_digits():
    assert json_safe([1 / 3, 1e-9 / 3, 123456.789]) == [0.333333, 3.33333e-10, 123457.0]
