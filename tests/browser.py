"""Pages in headless Chromium, for tests: what they ask for, what goes wrong, and what axe-core finds.

Chromium is the system's; Playwright drives it. axe-core is a file of npm's package of that name: `npm install --no-save
axe-core` in the repository's root, or a folder named by CLIPTEX_AXE. Where one is missing the tests are skipped, but
under CI they fail.
"""

import importlib.util
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(os.environ.get("CLIPTEX_AXE", Path(__file__).parents[1] / "node_modules/axe-core")) / "axe.min.js"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
DESK = {"viewport": {"width": 1280, "height": 900}}
SIZES = pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])


def unavailable(missing: list[str]) -> None:
    """Skip the test if anything is missing, or under CI fail."""
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("; ".join(missing))


@contextmanager
def launched():
    """Chromium, driven by Playwright; a thread needs one of its own."""
    missing = [] if CHROMIUM else ["there is no chromium (apt install chromium)"]
    if importlib.util.find_spec("playwright") is None:
        missing.append("there is no playwright (pip install '.[test]')")
    unavailable(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


@pytest.fixture(scope="session")
def browser():
    """The browser of all tests in a process."""
    with launched() as started:
        yield started


class Visits:
    """Opens pages, each in a context of its own. wrong: errors and warnings of all pages. elsewhere: what they asked
    for beyond their own address."""

    def __init__(self, browser):
        self.browser = browser
        self.contexts, self.wrong, self.elsewhere = [], [], []

    def open(self, address, size=DESK, home=None, **options):
        """home: start of the addresses that the page may ask for; by default only its own."""
        context = self.browser.new_context(**size, **options)
        self.contexts.append(context)
        page = context.new_page()
        problem = ("error", "warning")
        page.on("console", lambda message: self.wrong.append(message.text) if message.type in problem else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self._requested(request.url, address, home))
        page.goto(address)
        return page

    def _requested(self, url, address, home):
        own = url.startswith(home) if home else re.split("[?#]", url)[0] == re.split("[?#]", address)[0]
        if not own and not url.startswith(("data:", "blob:")):
            self.elsewhere.append(url)


@contextmanager
def visiting(browser):
    """`Visits`; at the end, that nothing went wrong or was asked for elsewhere."""
    opened = Visits(browser)
    yield opened
    for context in opened.contexts:
        context.close()
    assert opened.wrong == []
    assert opened.elsewhere == []


@pytest.fixture
def visits(browser):
    """`visits.open(address, size, **options)`."""
    with visiting(browser) as opened:
        yield opened


def emulate(page, session, size):
    """Change the screen of an open page, without loading it again. session: of the DevTools protocol."""
    screen, phone = size["viewport"], size is PHONE
    scale = size.get("device_scale_factor", 1)
    session.send("Emulation.setDeviceMetricsOverride", screen | {"deviceScaleFactor": scale, "mobile": phone})
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": phone})
    next_frame(page)


def next_frame(page):
    """Wait until what the page does on a change of its screen or colours is done."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def scrolling(page):
    """The elements that scroll sideways: class, tabIndex, role, and whether they have a name."""
    return page.evaluate(
        """() => [...document.querySelectorAll('*')].filter((one) => one.checkVisibility()
            && one.scrollWidth > one.clientWidth + 1 && ['auto', 'scroll'].includes(getComputedStyle(one).overflowX))
            .map((one) => [one.className, one.tabIndex, one.getAttribute('role'), one.ariaLabel !== ''])"""
    )


def violations(page):
    """What axe-core finds on a page with everything unfolded: `rule (impact): elements`, one a rule."""
    unavailable([] if AXE.is_file() else [f"there is no {AXE} (npm install --no-save axe-core)"])
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    if page.evaluate("window.axe === undefined"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    # preload would ask for the style sheets once more, which pages opened from disk may not
    run = "axe.run(document, {resultTypes: ['violations'], preload: false}).then((found) => found.violations)"
    return [
        f"{one['id']} ({one['impact']}): {', '.join(str(node['target']) for node in one['nodes'])}"
        for one in page.evaluate(run)
    ]
