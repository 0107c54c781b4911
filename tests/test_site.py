"""The documentation as a site, opened from disk: what axe-core finds, what pages ask for, and the search."""

import os
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest
from browser import DESK, PHONE, emulate, launched, next_frame, violations, visiting
from small_run import ROOT

pytestmark = pytest.mark.site
THREADS = 4
"""Each has a browser. A page also waits, for its files and frames, so that they are more than two cores."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def scheme(page) -> str:
    return page.evaluate("document.body.dataset.mdColorScheme")


def other_scheme(page) -> None:
    page.locator("[data-md-component=palette] label:not([hidden])").evaluate("one => one.click()")
    next_frame(page)


def audit(home: str, addresses: deque[str]) -> dict[tuple[str, str, str], list[str]]:
    """What axe-core finds on pages until none is left: page, screen, scheme -> violations. A page is loaded
    once, on a desktop."""
    found = {}
    with launched() as browser, visiting(browser) as visits:
        page = visits.open(f"{home}/index.html", home=home, reduced_motion="reduce")
        session = page.context.new_cdp_session(page)
        while True:
            try:
                address = addresses.popleft()
            except IndexError:
                return found
            page.goto(address)
            for name, size in {"phone": PHONE, "desk": DESK}.items():
                emulate(page, session, size)
                assert page.evaluate("innerWidth") == size["viewport"]["width"]
                for _ in range(2):
                    found[address.removeprefix(home), name, scheme(page)] = violations(page)
                    other_scheme(page)


def test_axe_finds_nothing_on_any_page_and_screen_light_or_dark(site):
    pages = sorted(site.rglob("*.html"), key=lambda path: -path.stat().st_size)  # the longest first
    assert len(pages) > 40
    addresses = deque(path.as_uri() for path in pages)
    with ThreadPoolExecutor(THREADS) as pool:
        audits = [pool.submit(audit, site.as_uri(), addresses) for _ in range(THREADS)]
        found = {key: wrong for one in audits for key, wrong in one.result().items()}
    assert len(found) == 4 * len(pages) and {name for *_, name in found} == {"default", "slate"}
    assert {key: wrong for key, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("words", "found"),
    [("GradCache", "/training.html"), ("MIG device", "/troubleshooting.html?h=mig+device#gpus-processes-slurm")],
)
def test_the_search_finds_words_without_a_server(site, visits, words, found):
    page = visits.open((site / "howto/resume.html").as_uri(), DESK, home=site.as_uri())
    page.locator("[data-md-component=search-query]").press_sequentially(words)
    link = page.locator(f".md-search-result__link[href*='{found}']").first
    link.wait_for()
    link.click()
    page.wait_for_url(f"{site.as_uri()}{found.partition('?')[0]}*")


@pytest.mark.parametrize(("preferred", "shown"), [("light", "default"), ("dark", "slate")])
def test_the_site_has_the_colours_that_the_reader_prefers(site, visits, preferred, shown):
    page = visits.open((site / "index.html").as_uri(), DESK, home=site.as_uri(), color_scheme=preferred)
    assert scheme(page) == shown
    page.locator("[data-md-component=palette] label:visible").click()
    page.locator(f"body:not([data-md-color-scheme={shown}])").wait_for()
