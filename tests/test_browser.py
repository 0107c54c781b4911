"""The report in headless Chromium: no errors, no requests; on a phone, on a desktop and in print."""

import csv
import io
import json
import re
from base64 import b64decode
from functools import partial
from urllib.parse import unquote

import pytest
from browser import DESK, PHONE, SCHEMES, SIZES, scrolling, violations
from test_report import ids_of, make_all, make_statistics
from test_studies import results, study

from cliptex.report import build_report
from cliptex.report.studies import study_config
from cliptex.report.studies.page import build_study

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("report")]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    config = make_all(root, [0, 1])
    path = root / "results/probes/voc.json"  # a second family of evaluators
    data = json.loads(path.read_text())
    rows = [row | {"head": "knn", "family": "no_head"} for row in data["results"] if row["head"] == "pspnet"]
    path.write_text(json.dumps(data | {"results": data["results"] + rows}))
    make_statistics(path.with_suffix(""), rows, ids_of("voc", root))
    build_report(config, root)
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
    page.evaluate("Promise.allSettled([...document.images].map(one => one.decode()))")
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
    for selector in (".badge", "h1", ".claim", ".run", ".headline"):
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
    assert page.locator("button:visible").count() == page.locator("select:visible").count() == 0


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


def test_paper_has_the_first_image_of_each_album_no_buttons_and_few_sheets(opened):
    page = opened(DESK, color_scheme="dark")
    assert shown(page, ".page") == 2
    page.get_by_role("button", name="Next").first.click()
    page.emulate_media(media="print")
    tone = "getComputedStyle(document.querySelector('.tone-good')).color"
    assert page.evaluate(tone) == "rgb(0, 102, 76)"  # as on a light page
    assert shown(page, ".page") == shown(page, ".album") == page.locator(".album").count()
    assert shown(page, ".pager, .tools, .choices, nav") == 0 and shown(page, ".on-paper") == 1
    sheets = page.pdf(format="A4").count(b"/Type /Page\n")
    assert 3 <= sheets <= 15


@pytest.mark.parametrize("width", [360, 390])
def test_on_a_phone_only_figures_scroll_sideways_and_these_can_be_focused(opened, width):
    page = opened(PHONE | {"viewport": {"width": width, "height": 800}})
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert scrolling(page) == [["drawing", 0, "region", True]] * 3
    cell = page.locator("#table-main td").first
    assert cell.evaluate("one => getComputedStyle(one, '::before').content") == '"CLIP"'


def rows_of(page, table, column):
    """What is shown in a column, without groups."""
    script = """([table, column]) => [...document.querySelectorAll(`#table-${table} tbody tr`)]
        .filter((row) => row.checkVisibility() && row.cells.length > 1).map((row) => row.cells[column].innerText)"""
    return page.evaluate(script, [table, column])


def test_columns_sort_over_all_benchmarks_by_click_and_keyboard(opened):
    page = opened(DESK)
    before = rows_of(page, "main", 2)
    head = page.locator("#table-main th[data-model=clip_ft]")
    assert head.get_attribute("aria-sort") == "none"
    head.get_by_role("button").click()
    values = [float(text.split()[0]) for text in rows_of(page, "main", 2)]
    assert head.get_attribute("aria-sort") == "descending" and values == sorted(values, reverse=True)
    assert rows_of(page, "main", 0)[0].endswith("ImageNet")  # its group is named in the row
    head.get_by_role("button").press("Enter")
    assert [float(text.split()[0]) for text in rows_of(page, "main", 2)] == sorted(values)
    assert page.locator("#table-main th[aria-sort=ascending]").count() == 1
    head.get_by_role("button").press("Space")
    assert rows_of(page, "main", 2) == before and page.locator("#table-main th[aria-sort=ascending]").count() == 0


def copied(page, table, form):
    """The text that a button copies, where pages have no clipboard and the older command must do."""
    page.evaluate(
        """() => { Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true });
            document.execCommand = () => { window.copied = document.activeElement.value; return true; }; }"""
    )
    bar = page.locator(f".scroll:has(#table-{table}) + .tools")
    bar.get_by_role("button", name=f"as {form}").click()
    bar.get_by_text(f"Copied as {form}").wait_for()
    return page.evaluate("window.copied")


def test_a_table_is_copied_as_it_is_shown_as_latex_markdown_and_csv(opened):
    page = opened(DESK)
    page.locator(".choices [value=position][type=checkbox]").uncheck()
    latex = copied(page, "main", "LaTeX")
    assert latex.count("{") == latex.count("}") and "\\toprule" in latex and "Position" not in latex
    assert "\\begin{tabular}{lrrrrr}" in latex and "\\multicolumn{6}{l}{\\textit{Pascal VOC" in latex
    line = next(line for line in latex.splitlines() if line.startswith("Semantic segmentation, PSPNet"))
    assert "mIoU (\\%) $\\uparrow$" in line and "$\\mathbf{15.2}_{\\pm 0.1}$" in line and "$10.2_{\\pm 0.1}$" in line
    depth = next(line for line in latex.splitlines() if line.startswith("Depth"))
    assert "_{\\pm 0.006}" in depth and "\\mathbf{0.860}" not in depth  # Random is as good
    markdown = copied(page, "main", "Markdown").splitlines()
    assert markdown[2] == "| Task, head, metric | CLIP | CLIP-FT | CLIPTeX | CLIPTeX over CLIP-FT | Random |"
    assert any("| **15.2** (± 0.1) |" in line for line in markdown)
    table = list(csv.DictReader(io.StringIO(copied(page, "main", "CSV"))))
    depth = next(row for row in table if row["Task, head, metric"].startswith("Depth, linear"))
    assert float(depth["CLIPTeX"]) == 0.86 and depth["group"].startswith("NYUv2") and "Position" not in depth
    assert page.locator(".tools:not(:has(button))").count() == 0


def test_the_reader_chooses_which_models_are_compared_and_which_families_are_shown(opened):
    page = opened(DESK)
    first = rows_of(page, "main", 4)
    subject, reference = (page.locator(f".choices [name={name}]") for name in ("subject", "reference"))
    reference.select_option("clip")
    assert page.locator("#table-main th").nth(4).inner_text() == "CLIPTeX over CLIP"
    assert page.locator("#table-main td[data-label='CLIPTeX over CLIP']").count() == len(first)
    assert rows_of(page, "main", 4)[0].startswith("+2.7 points") and rows_of(page, "evaluators", 1) != first
    assert page.locator("#table-zeroshot th").nth(6).inner_text() == "CLIPTeX − CLIP"
    reference.select_option("random")
    subject.select_option("clip_ft")
    assert page.locator("#table-main th").nth(4).inner_text() == "CLIP-FT over Random"
    assert reference.locator("option:disabled").all_inner_texts() == ["CLIP-FT"]
    page.get_by_role("button", name="Reset").click()
    page.locator("#table-main th", has_text="CLIPTeX over CLIP-FT").wait_for()
    assert rows_of(page, "main", 4) == first
    families = page.locator(".choices input[name=family]")
    assert families.count() == 2
    families.first.uncheck()
    assert (
        rows_of(page, "main", 0) == []
        and len(rows_of(page, "evaluators", 0)) == len(rows_of(page, "untrained", 0)) == 1
    )


def test_an_image_of_the_gallery_has_an_address_and_the_contents_name_the_section(opened, visits, address):
    page = opened(DESK)
    gallery = page.locator("#gallery .gallery")
    gallery.get_by_role("button", name="Next").click()
    gallery.get_by_role("button", name="Next").click()
    assert page.url == f"{address}#image-1-3"
    page.go_back()
    assert page.url == f"{address}#image-1-2" and gallery.locator(".count").inner_text().startswith("2 of")
    page.reload()
    assert gallery.locator(".count").inner_text().startswith("2 of")
    sent = visits.open(f"{address}#image-2-1")
    assert sent.locator("#image-2-1").is_visible() and not sent.locator("#image-1-1").is_visible()
    sent.locator(".contents [aria-current]", has_text="Gallery").wait_for()
    sent.keyboard.press("Home")
    while sent.evaluate("scrollY"):  # otherwise it still scrolls after the link was followed
        sent.wait_for_timeout(20)
    sent.locator(".skip").focus()
    assert sent.locator(".skip").bounding_box()["x"] == 0
    sent.keyboard.press("Enter")
    sent.locator(".contents [aria-current]", has_text="Results").wait_for()


def test_a_choice_has_an_address_next_to_that_of_the_gallery(opened, visits, address):
    page = opened(DESK)
    heading = page.locator("#table-main th").nth(4)
    reference, position, family = (
        page.locator(f".choices {one}")
        for one in ("[name=reference]", "[value=position][type=checkbox]", "[name=family]")
    )
    reference.select_option("clip")
    assert page.url == f"{address}?reference=clip"
    page.locator("#gallery").get_by_role("button", name="Next").click()
    page.locator("nav a", has_text="Results").click()
    position.uncheck()
    family.last.uncheck()
    full = f"{address}?reference=clip&hidden_model=position&hidden_family=No+trained+head"
    assert page.url == f"{full}#results" and not page.locator("#table-main").get_by_text("Position").is_visible()
    page.reload()
    assert page.url == f"{full}#results" and heading.inner_text() == "CLIPTeX over CLIP"
    assert not position.is_checked() and not family.last.is_checked()
    for _ in range(3):  # before the families, the columns, and the link to the results
        page.go_back()
    assert page.url == f"{address}?reference=clip#image-1-2" and position.is_checked() and family.last.is_checked()
    assert page.locator("#gallery .count").inner_text().startswith("2 of")
    page.go_back()
    assert page.locator("#gallery .count").inner_text().startswith("1 of")
    page.go_back()
    assert page.url == address and heading.inner_text() == "CLIPTeX over CLIP-FT"
    page.go_forward()
    assert heading.inner_text() == "CLIPTeX over CLIP"
    page.get_by_role("button", name="Reset").click()
    page.wait_for_url(address)
    sent = visits.open(f"{full}&subject=clip_ft#image-2-1")
    assert sent.locator("#table-main th").nth(4).inner_text() == "CLIP-FT over CLIP"
    assert sent.locator("#image-2-1").is_visible() and rows_of(sent, "untrained", 0) == []


@pytest.mark.parametrize(
    "query", ["subject=nobody&hidden_model=nobody&key=1", "subject=clip_ft&key=1", "subject=random&key=1"]
)
def test_what_is_not_on_the_page_is_ignored_in_its_address_and_another_key_is_kept(visits, address, query):
    page = visits.open(f"{address}?{query}")
    heading = page.locator("#table-main th").nth(4)
    assert heading.inner_text() == "CLIPTeX over CLIP-FT" and page.locator(".choices input:not(:checked)").count() == 0
    page.locator(".choices [name=reference]").select_option("clip")
    assert page.url == f"{address}?key=1&reference=clip" and heading.inner_text() == "CLIPTeX over CLIP"


def drawing(page):
    """The chart of gains as it is shown, as SVG."""
    data = page.locator("#figure-gains img").evaluate("one => one.currentSrc").partition(",")[2]
    return unquote(data) if "%3C" in data else b64decode(data).decode()


def test_the_chart_of_gains_compares_the_chosen_models(opened, visits, address):
    page = opened(DESK, color_scheme="dark")
    figure = page.locator("#figure-gains")
    image, note = figure.locator("img"), figure.get_by_text("All families of evaluators are shown here")
    before = drawing(page)
    assert "gain over CLIP-FT (%)" in before and note.is_hidden()
    for name, model in (("subject", "clip"), ("reference", "random")):
        page.locator(f".choices [name={name}]").select_option(model)
    caption = "Relative gain over Random, with CLIP’s 95 % interval over evaluation images and seeds (miniature)"
    figure.get_by_text(caption).wait_for()
    dark = drawing(page)
    assert "gain over Random (%)" in dark and "CLIP, one seed" in dark and "#1d2129" not in dark
    assert image.evaluate("one => one.decode().then(() => one.naturalWidth)") > 500
    assert "Random of CLIP with its interval, of CLIP-FT, of Position, in percent" in image.get_attribute("alt")
    page.locator(".choices [name=family]").first.uncheck()
    assert note.is_visible()
    sent = visits.open(page.url, color_scheme="light")
    sent.locator("#figure-gains").get_by_text(caption).wait_for()
    assert drawing(sent).replace("#1d2129", "#e8eaee").count("#e8eaee") == dark.count("#e8eaee")
    page.get_by_role("button", name="Reset").click()
    figure.get_by_text("Relative gain over CLIP-FT").wait_for()
    assert drawing(page) == before and note.is_hidden()


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


@SIZES
def test_a_studys_page_has_no_violation_and_its_table_can_be_copied(visits, tmp_path, size):
    config = study_config(study("heads"))
    results(tmp_path, config, {model: 0.3 + 0.05 * number for number, model in enumerate(config.study.compared)})
    build_study(config, tmp_path)
    page = visits.open((tmp_path / "results/studies/heads.html").as_uri(), size)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == size["viewport"]["width"]
    assert "\\toprule" in copied(page, "table", "LaTeX")
    assert page.locator(".tools a").get_attribute("href") == "heads/table.csv"
