"""Every page of the built site, opened in a browser in both themes at two widths."""

import pytest

from inferlab.publish import build_site
from tests.browser import THEMES, WIDTHS, inspect, opened, served
from tests.site_fixture import REPOSITORY, make_repository

pytestmark = pytest.mark.site

BUILT = REPOSITORY / "build" / "site" / "_build" / "html"
SCREENSHOTS = REPOSITORY / "build" / "screenshots"


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    root = make_repository(tmp_path_factory.mktemp("site") / "repository")
    return build_site(root, root / "build", lambda step: None)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_every_page_of_the_book_opens_without_fault(theme, width):
    assert BUILT.exists(), "The site is not built: run `make book` first."
    assert inspect(BUILT, theme, width, SCREENSHOTS) == []


def test_the_inspection_finds_what_it_looks_for(sample, tmp_path):
    page = sample / "notebooks" / "week04-sample.html"
    sound = page.read_text()
    faults = {
        "request to https://example.org/": '<img src="https://example.org/x.png" alt="">',
        "not drawn": '<div class="lab-plot"></div>',
        "px wider": '<div style="width: 2000px">wide</div>',
        "formulas": '<span class="math">unrendered</span>',
        "run into another": (
            '<div class="lab-plot"><svg class="main-svg infolayer">'
            '<g class="xtitle"><text y="9">one</text></g>'
            '<g class="x2title"><text x="9" y="9">other</text></g></svg></div>'
        ),
        "broken script": "<script>throw new Error('broken script')</script>",
    }
    assert inspect(sample, "light", 390, tmp_path) == []
    page.write_text(sound.replace("</article>", "".join(faults.values()) + "</article>"))
    found = inspect(sample, "light", 390, tmp_path)
    page.write_text(sound)
    for fault in faults:
        assert any(fault in line for line in found), (fault, found)


def test_the_controls_of_a_sweep_redraw_its_figure(sample):
    with served(sample) as address, opened("light", 1400) as page:
        page.goto(f"{address}/notebooks/week04-sample.html")
        page.wait_for_selector(".lab-scenarios + .lab-plot svg.main-svg")
        waste = "() => Math.max(...document.querySelector('.lab-scenarios + .lab-plot').data[0].y)"
        size, length, shape = page.locator(".lab-controls label").all()
        assert page.evaluate(waste) <= 7
        size.locator("input").fill("4")
        shape.locator("select").select_option("equal lengths")
        assert size.locator("output").inner_text() == "128"
        assert page.evaluate(waste) == -100 % 128
        length.locator("input").fill("1")
        assert page.evaluate(waste) == -230 % 128
        said = page.locator(".lab-words")
        assert said.inner_text() == f"At most {-230 % 128} of 128 slots are wasted."
        page.get_by_role("button", name="Reset").click()
        assert size.locator("output").inner_text() == "8"
        assert page.evaluate(waste) <= 7
        page.get_by_role("button", name="Long blocks").click()
        assert size.locator("output").inner_text() == "128"
        assert said.inner_text().endswith("of 128 slots are wasted.")


def test_a_slider_that_plays_stops_at_its_end_and_when_it_is_moved(sample):
    with served(sample) as address, opened("light", 1400) as page:
        page.goto(f"{address}/notebooks/week04-sample.html")
        page.wait_for_selector(".lab-scenarios + .lab-plot svg.main-svg")
        button, slider = page.locator(".lab-player button"), page.locator(".lab-player input")
        reached = "value => document.querySelector('.lab-player output').textContent === value"
        button.click()
        assert button.inner_text() == "Pause"
        assert page.locator(".lab-words").get_attribute("aria-live") == "off"
        page.wait_for_function(reached, arg="360")
        slider.fill("5")
        assert button.inner_text() == "Play"
        assert page.locator(".lab-words").get_attribute("aria-live") == "polite"
        button.click()
        page.wait_for_function(reached, arg="880")
        assert button.inner_text() == "Play", "it has stopped at the end"
        button.click()
        page.wait_for_function(reached, arg="100")
        page.get_by_role("button", name="Long blocks").click()
        assert button.inner_text() == "Play"


def test_figures_follow_a_change_of_theme(sample):
    with served(sample) as address, opened("light", 1400) as page:
        page.goto(f"{address}/notebooks/week04-sample.html")
        page.wait_for_selector(".lab-plot svg.main-svg")
        colour = "() => getComputedStyle(document.querySelector('.lab-plot .xtitle')).fill"
        light = page.evaluate(colour)
        page.evaluate("() => document.documentElement.dataset.theme = 'dark'")
        page.wait_for_function(f"before => ({colour})() !== before", arg=light)
        assert page.evaluate(colour) != light


def test_a_chapter_offers_its_bundle_and_the_bundle_is_there():
    page = (BUILT / "notebooks" / "week04-paged-attention.html").read_text()
    assert 'href="../bundles/week04.zip"' in page
    assert (BUILT / "bundles" / "week04.zip").exists()
    assert "bundles/" not in (BUILT / "book" / "index.html").read_text()
