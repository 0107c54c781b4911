"""The documentation as a site, opened from disk: what axe-core finds, what pages ask for, and the search."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import DESK, SIZES, violations
from small_run import ROOT

pytestmark = pytest.mark.site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def pages(site: Path) -> list[str]:
    return [path.as_uri() for path in sorted(site.rglob("*.html"))]


def scheme(page) -> str:
    return page.evaluate("document.body.dataset.mdColorScheme")


def other_scheme(page) -> None:
    page.locator("[data-md-component=palette] label:visible").click()


@SIZES
def test_axe_finds_nothing_on_any_page_light_or_dark(site, visits, size):
    addresses = pages(site)
    assert len(addresses) > 40
    page = visits.open(addresses[0], size, home=site.as_uri(), reduced_motion="reduce")
    found = {}
    for address in addresses:
        page.goto(address)
        seen = {scheme(page): violations(page)}
        other_scheme(page)
        seen[scheme(page)] = violations(page)
        assert set(seen) == {"default", "slate"}
        found |= {(address.removeprefix(site.as_uri()), name): wrong for name, wrong in seen.items() if wrong}
    assert found == {}


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
