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


def test_the_search_finds_a_page_without_a_server(site, visits):
    page = visits.open((site / "howto/resume.html").as_uri(), DESK, home=site.as_uri())
    page.locator("[data-md-component=search-query]").fill("GradCache")
    link = page.locator(".md-search-result__item a").first
    link.wait_for()
    link.click()
    page.wait_for_url("**/training.html*")


def test_an_error_is_found_by_its_words(site, visits):
    page = visits.open((site / "index.html").as_uri(), DESK, home=site.as_uri())
    page.locator("[data-md-component=search-query]").fill("CUDA lets a process use only one MIG device")
    link = page.locator(".md-search-result__item a").first
    link.wait_for()
    assert "troubleshooting.html#gpus-processes-slurm" in link.get_attribute("href")


@pytest.mark.parametrize(("preferred", "shown"), [("light", "default"), ("dark", "slate")])
def test_the_site_has_the_colours_that_the_reader_prefers(site, visits, preferred, shown):
    page = visits.open((site / "index.html").as_uri(), DESK, home=site.as_uri(), color_scheme=preferred)
    assert scheme(page) == shown
