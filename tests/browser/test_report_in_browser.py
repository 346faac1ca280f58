import csv
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image
from synthetic_run import Synthetic, write_synthetic_run

from robustly.reports import read_run, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
VIEWS = [(390, "light"), (390, "dark"), (1440, "light"), (1440, "dark")]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    first = write_synthetic_run(folder / "runs", Synthetic(count=300, proofs=True, epochs=8))
    second = write_synthetic_run(folder / "runs", Synthetic(name="mnist5k_plain", count=300, robust=0.2, epochs=8))
    colour = write_synthetic_run(
        folder / "runs",
        Synthetic(
            name="cifar10_with_quite_a_long_name_that_goes_on",
            colour=True,
            count=200,
            epochs=8,
            warnings=("W" * 90,),
            masking=("Square broke 3 images that gradients had left.", "M" * 90),
            analysis=True,
        ),
    )
    return {
        "single": write_report([first], folder / "single.html"),
        "colour": write_report([colour], folder / "colour.html"),
        "comparison": write_report([first, second], folder / "comparison.html"),
    }


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@contextmanager
def opened(browser, report, width=1440, scheme="light") -> Iterator:
    """The report in a page; fails afterwards on errors in the console or requests to a network."""
    complaints, requests = [], []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector(".plot .main-svg", state="attached")
    try:
        yield page
    finally:
        page.close()
    assert not complaints
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
@pytest.mark.parametrize("name", ["single", "colour", "comparison"])
def test_every_figure_is_drawn_and_nothing_overflows(browser, reports, name, width, scheme):
    with opened(browser, reports[name], width, scheme) as page:
        tabs = page.locator("[data-tabs=run] [role=tab]")
        for i in range(max(1, tabs.count())):
            if tabs.count():
                tabs.nth(i).click()
            plots = page.locator(".plot:visible")
            assert plots.count() >= 6
            for plot in plots.all():
                box = plot.locator(".main-svg").first.bounding_box()
                assert box["width"] > 200
                assert box["height"] > 200
                assert plot.locator(".trace, .bars, .point, .hm").count() > 0
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(
                "[...document.querySelectorAll('.plot .main-svg')].every(s => "
                "s.getBoundingClientRect().right <= innerWidth + 1)"
            )
        dark = re.match(r"rgb\((\d+)", background(page)).group(1)
        assert (int(dark) < 60) == (scheme == "dark")


@pytest.mark.parametrize("name", ["single", "colour", "comparison"])
def test_every_trace_and_layout_is_one_that_plotly_knows(browser, reports, name):
    with opened(browser, reports[name]) as page:
        check = (  # validate fails where a layout has settings for a legend that is not shown
            "plots => plots.flatMap(({data, layout}) => Plotly.validate(data, {...layout, showlegend: true}) || [])"
            ".filter(one => ['schema', 'value', 'object', 'array'].includes(one.code)).map(one => one.msg)"
        )
        drawn = "[...document.querySelectorAll('.plot[data-drawn]')].map(({data, layout}) => ({data, layout}))"
        assert page.evaluate(f"({check})({drawn})") == []
        wrong = "[{data: [{type: 'scatter', lien: {}}], layout: {}}, {data: [{type: 'pie'}], layout: {barmod: 1}}]"
        assert len(page.evaluate(f"({check})({wrong})")) >= 2, "the check finds what is wrong"


def test_the_attack_selector_shows_one_shelf(browser, reports):
    with opened(browser, reports["single"]) as page:
        tabs = page.locator("[data-tabs=attack] [role=tab]")
        assert tabs.count() == 5
        tabs.nth(3).click()
        shown = page.locator(".shelf:visible")
        assert shown.count() == 1
        assert "CW (PGD-30, margin) broke" in shown.inner_text()
        assert tabs.nth(3).get_attribute("aria-selected") == "true"
        tabs.nth(3).press("ArrowRight")
        assert "AutoAttack broke" in page.locator(".shelf:visible").inner_text()


def test_pictures_are_sharp_and_enlarge(browser, reports):
    with opened(browser, reports["colour"], 390) as page:
        shot = page.locator(".shot:visible").first
        image = shot.locator("img").first
        assert image.evaluate("i => getComputedStyle(i).imageRendering") == "pixelated"
        assert image.evaluate("i => i.naturalWidth") == 32
        shot.click()
        viewer = page.locator("#viewer")
        assert viewer.is_visible()
        assert viewer.locator("img").count() == 3
        first = viewer.locator(".viewer-words").inner_text()
        viewer.locator(".next").click()
        assert viewer.locator(".viewer-words").inner_text() != first
        page.keyboard.press("Escape")
        assert not viewer.is_visible()


def test_hovering_shows_a_value(browser, reports):
    with opened(browser, reports["single"]) as page:
        plot = page.locator("[data-figure$=-accuracies]")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector("[data-figure$=-accuracies] .hoverlayer text")
        text = plot.locator(".hoverlayer").text_content()
        assert re.search(r"\d+\.\d%", text)
        assert "Epoch" in text


def test_the_legend_switches_lines(browser, reports):
    with opened(browser, reports["single"]) as page:
        plot = page.locator("[data-figure$=-accuracies]")
        plot.scroll_into_view_if_needed()
        plot.locator(".legendtoggle").first.click()
        page.wait_for_function(
            "() => document.querySelector('[data-figure$=-accuracies]').data[0].visible === 'legendonly'"
        )


def test_the_theme_button_changes_page_and_charts(browser, reports):
    with opened(browser, reports["single"]) as page:

        def line():
            return page.evaluate("document.querySelector('[data-figure$=-losses]').data[0].line.color")

        page_before, chart_before = background(page), line()
        page.click("#theme")
        assert background(page) != page_before
        assert line() != chart_before
        for _ in range(5):  # the browser stores the choice a moment after the click, in another process
            page.reload()
            page.wait_for_selector(".plot .main-svg", state="attached")
            if background(page) != page_before:
                break
        assert background(page) != page_before
        page.click("#theme")
        assert (background(page), line()) == (page_before, chart_before)


def test_charts_follow_the_width_of_the_window(browser, reports):
    with opened(browser, reports["single"]) as page:
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_function(
            "() => [...document.querySelectorAll('.plot .main-svg')]"
            ".every(svg => svg.getBoundingClientRect().width < 390)"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_printing_shows_every_run(browser, reports, tmp_path):
    with opened(browser, reports["comparison"]) as page:
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.locator("[id^=panel-run]:visible").count() == 2
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.locator("[id^=panel-run]:visible").count() == 1


def test_paper_is_few_pages(browser, reports, tmp_path):
    with opened(browser, reports["comparison"]) as page:
        file = tmp_path / "comparison.pdf"
        page.pdf(path=file, format="A4", print_background=True)
        pages = len(re.findall(rb"/Type /Page\b(?!s)", file.read_bytes()))
        assert 2 <= pages <= 7
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 718, "height": 1000})
        assert page.evaluate("document.documentElement.scrollWidth") <= 718


def downloaded(page, button, folder):
    with page.expect_download() as waiting:
        button.click()
    file = folder / waiting.value.suggested_filename
    waiting.value.save_as(file)
    page.wait_for_timeout(200)  # Chromium drops downloads after ten in quick succession
    return file


def test_every_figure_is_saved_as_picture_and_numbers(browser, reports, tmp_path):
    with opened(browser, reports["colour"], 390) as page:
        cards = page.locator(".chart-card:visible").all()
        assert len(cards) >= 6
        for card in cards:
            picture = downloaded(page, card.locator("[data-get=png]"), tmp_path)
            with Image.open(picture) as image:
                assert image.format == "PNG"
                assert image.width >= 1000
                assert len(image.convert("L").resize((64, 64)).getcolors()) > 5, "not blank"
            numbers = downloaded(page, card.locator("[data-get=csv]"), tmp_path)
            assert picture.stem == numbers.stem
            rows = list(csv.reader(numbers.read_text(encoding="utf-8").splitlines()))
            assert len(rows) == card.locator(".data tr").count()
            assert len({len(row) for row in rows}) == 1
        tables = page.locator(".table-foot [data-get=csv]:visible").all()
        rows = [downloaded(page, button, tmp_path).read_text(encoding="utf-8").splitlines() for button in tables]
        assert all(len(one) >= 3 and "(%)" in one[0] for one in rows)
        assert rows


def test_numbers_of_a_figure_are_plain_numbers_and_no_formulas(browser, tmp_path):
    names = ("=1+1", 'say "a", b', *map(str, range(2, 10)))
    run = write_synthetic_run(tmp_path / "runs", Synthetic(count=300, epochs=3, classes=names))
    classes = read_run(run).evaluation.metrics.per_class
    with opened(browser, write_report([run], tmp_path / "report.html")) as page:
        file = downloaded(page, page.locator("[data-name$=-by-class] [data-get=csv]"), tmp_path)
        assert file.name == "mnist5k_trades-by-class.csv"
        table = downloaded(page, page.locator("[data-name$=-attacks] [data-get=csv]"), tmp_path)
    header, *rows = csv.reader(file.read_text(encoding="utf-8").splitlines())
    shares = ["", " low", " high"]
    assert header == [
        *("Class", "Examples"),
        *(f"Clean{end} (%)" for end in shares),
        *(f"Robust (worst case){end} (%)" for end in shares),
    ]
    for row, one in zip(rows, classes, strict=True):
        name = "'=1+1" if one.name == "=1+1" else one.name
        numbers = [
            f"{100 * end:.1f}" for part in (one.clean, one.robust) for end in (part.share, part.low, part.high)
        ]
        assert row == [name, str(one.clean.count), *numbers]
    attacks = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert [row["Attack"] for row in attacks][:2] == ["No attack (clean)", "PGD-10"]
    assert float(attacks[0]["Accuracy (%)"]) == pytest.approx(97.8, abs=0.5)
    assert attacks[0]["Broke"] == ""


def test_tables_on_a_phone_scroll_in_their_card_with_a_hint(browser, reports):
    with opened(browser, reports["comparison"], 390) as page:
        box = page.locator("#comparison .scroll")
        hint = page.locator("#comparison .hint")
        assert hint.is_visible()
        assert "more" in box.get_attribute("class").split()
        box.evaluate("box => box.scrollTo({left: box.scrollWidth})")
        page.wait_for_function("() => !document.querySelector('#comparison .scroll').classList.contains('more')")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.locator(".chart-card:visible .data summary").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.set_viewport_size({"width": 1440, "height": 900})
        page.wait_for_function(
            "() => getComputedStyle(document.querySelector('#comparison .hint')).display === 'none'"
        )


def test_whole_numbers_are_on_axes_of_counts_and_epochs(browser, tmp_path):
    run = write_synthetic_run(tmp_path / "runs", Synthetic(count=40, epochs=3, robust=0.8))
    with opened(browser, write_report([run], tmp_path / "report.html")) as page:
        for key, axis in (("distances", "y"), ("accuracies", "x"), ("losses", "x")):
            page.locator(f"[data-figure$=-{key}]").scroll_into_view_if_needed()
            ticks = page.locator(f"[data-figure$=-{key}] .{axis}tick text").all_text_contents()
            assert len(ticks) >= 2
            assert all(re.fullmatch(r"\d+", tick) for tick in ticks), (key, ticks)
            assert len(set(ticks)) == len(ticks)


def test_pages_stay_under_two_megabytes(reports):
    for report in reports.values():
        assert report.stat().st_size < 2_000_000


def test_markup_from_outside_does_not_run(browser, tmp_path):
    evil = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
    options = Synthetic(name="evil", count=80, epochs=3, classes=(evil, *map(str, range(1, 10))), warnings=(evil,))
    report = write_report([write_synthetic_run(tmp_path, options)], tmp_path / "evil.html")
    with opened(browser, report) as page:
        page.locator("[data-figure$=-by-class]").scroll_into_view_if_needed()
        assert page.title() == "evil · robustness report"
        assert page.locator("img[src=x]").count() == 0
