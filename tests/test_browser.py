"""The report in headless Chromium: no errors, no requests; on a phone, on a desktop and in print."""

import re
from functools import partial

import pytest
from browser import DESK, PHONE, SCHEMES, SIZES, violations
from test_report import make_all

from cliptex.report import build_report

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("report")]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    build_report(make_all(root, [0, 1]), root)
    return (root / "results/report.html").as_uri()


@pytest.fixture
def opened(visits, address):
    """`opened(size, **options)`: the report."""
    return partial(visits.open, address)


def shown(page, selector):
    """How many elements can be seen."""
    return page.evaluate(
        "selector => [...document.querySelectorAll(selector)].filter(one => one.checkVisibility()).length", selector
    )


@SIZES
def test_every_part_can_be_reached_and_nothing_is_wider_than_the_screen(opened, size):
    page = opened(size)
    # images load when scrolled near
    page.evaluate("document.querySelectorAll('img').forEach(one => one.loading = 'eager')")
    page.wait_for_function("[...document.images].every(one => one.complete)")
    assert page.evaluate("[...document.images].filter(one => !one.naturalWidth).length") == 0
    width = size["viewport"]["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for link in page.locator("nav a").all():
        target = page.locator(link.get_attribute("href"))
        assert target.locator("h2").first.is_visible()
    tall = page.evaluate("[...document.querySelectorAll('section')].map(one => one.getBoundingClientRect().right)")
    assert max(tall) <= width


@SIZES
def test_claim_verdict_uncertainty_and_source_are_on_the_first_screen(opened, size):
    page = opened(size)
    for selector in (".badge", "h1", ".claim", ".headline"):
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= size["viewport"]["height"], selector
    assert "MINIATURE" in page.locator(".badge").inner_text()
    assert "real gain in" in page.locator(".headline").inner_text()
    first = page.locator(".tiles li").first
    assert first.bounding_box()["y"] < size["viewport"]["height"]
    assert re.search(r"95\s%\sinterval\s[+−]?\d", page.locator("header").inner_text())


@SIZES
def test_gallery_is_paged_with_buttons_keys_and_choice(opened, size):
    page = opened(size)
    gallery = page.locator("#gallery .gallery")
    first = gallery.locator(".page").first
    count = gallery.locator(".count")
    pages = gallery.locator(".album").first.locator(".page").count()
    assert shown(page, "#gallery .page") == 1 and first.is_visible()
    assert count.inner_text() == f"1 of {pages}" and pages > 2
    gallery.get_by_role("button", name="Next").click()
    assert shown(page, "#gallery .page") == 1 and not first.is_visible()
    assert count.inner_text() == f"2 of {pages}"
    gallery.get_by_role("button", name="Previous").click()
    assert first.is_visible()
    gallery.focus()
    for _ in range(pages):  # past the last page comes the next album
        page.keyboard.press("ArrowRight")
    assert shown(page, "#gallery .page") == 1
    albums = gallery.locator("select option").all_inner_texts()
    assert gallery.locator("select").input_value() == "1"
    assert gallery.locator(".album").nth(1).locator("h3").inner_text().startswith(albums[1])
    page.keyboard.press("ArrowLeft")
    assert gallery.locator("select").input_value() == "0" and count.inner_text() == f"{pages} of {pages}"
    gallery.locator("select").select_option(label=albums[-1])
    assert gallery.locator(".album").last.locator(".page").first.is_visible()
    # the other gallery has not moved
    assert page.locator("#differences .page").first.is_visible()
    row = gallery.locator(".page:not(.away) .row")
    assert row.bounding_box()["x"] + row.bounding_box()["width"] <= size["viewport"]["width"]


def test_gallery_is_paged_by_swiping(opened):
    page = opened(PHONE)
    gallery = page.locator("#gallery .gallery")
    gallery.scroll_into_view_if_needed()
    box = gallery.locator(".page:not(.away) .row").bounding_box()
    touch = page.context.new_cdp_session(page)

    def swipe(across, down=0):
        x, y = box["x"] + box["width"] / 2, box["y"] + 40
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        end = {"x": x + across, "y": y + down}
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [end]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        return gallery.locator(".count").inner_text().split()[0]

    assert swipe(-90) == "2"
    assert swipe(-90) == "3"
    assert swipe(90) == "2"
    assert swipe(10) == "2"
    for _ in range(10):  # the browser does not take them for "back"
        swipe(90)
        page.wait_for_timeout(100)
    assert page.url.startswith("file:") and gallery.is_visible()


@SIZES
def test_without_scripts_the_gallery_is_a_plain_list(opened, size):
    page = opened(size, java_script_enabled=False)
    pages = page.locator(".page")
    assert pages.count() > 10
    assert all(one.is_visible() for one in pages.all())
    assert page.locator(".pager").count() == 0


@SIZES
def test_tables_scroll_in_themselves_and_fold_open(opened, size):
    page = opened(size)
    for region in page.locator(".scroll").all():
        if region.is_visible():
            box = region.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= size["viewport"]["width"]
    # no word runs into the next column
    narrow = "one => one.checkVisibility() && one.scrollWidth > one.clientWidth + 1"
    assert page.evaluate(f"[...document.querySelectorAll('th, td')].filter({narrow}).map(one => one.innerText)") == []
    main = page.locator("#table-main")
    assert main.locator("thead th").count() == 7 and main.locator("tbody tr").count() > 7
    details = page.locator("#details details").first
    table = details.locator("table")
    assert not table.is_visible()
    details.locator("summary").first.click()
    assert table.is_visible()
    note = page.locator("#results details.fine").first
    note.locator("summary").click()
    assert "heads trained on 600 of its images" in note.inner_text()


def test_paper_shows_all_pages_of_the_gallery_and_no_buttons(opened):
    page = opened(DESK)
    assert shown(page, ".page") == 2
    page.emulate_media(media="print")
    assert shown(page, ".page") == page.locator(".page").count()
    assert shown(page, ".pager") == 0 and shown(page, "nav") == 0
    sheets = page.pdf(format="A4").count(b"/Type /Page\n")
    assert 3 <= sheets <= 40


@SCHEMES
@SIZES
def test_axe_finds_no_violation(opened, size, scheme):
    assert violations(opened(size, color_scheme=scheme)) == []


def test_dark_readers_get_dark_pages(opened):
    light, dark = (
        opened(DESK, color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    )
    assert light == "rgb(255, 255, 255)" and dark != light
