import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from synthetic_run import Synthetic, write_synthetic_run

from robustly.reports import write_report

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
    first = write_synthetic_run(folder / "runs", Synthetic(count=300, certified=0.4, epochs=8))
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
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


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
        page.reload()
        page.wait_for_selector(".plot .main-svg", state="attached")
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


def test_markup_from_outside_does_not_run(browser, tmp_path):
    evil = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
    options = Synthetic(name="evil", count=80, epochs=3, classes=(evil, *map(str, range(1, 10))), warnings=(evil,))
    report = write_report([write_synthetic_run(tmp_path, options)], tmp_path / "evil.html")
    with opened(browser, report) as page:
        page.locator("[data-figure$=-by-class]").scroll_into_view_if_needed()
        assert page.title() == "evil · robustness report"
        assert page.locator("img[src=x]").count() == 0
