"""The built site in a real browser: `make site-check` runs this."""

import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from .conftest import ROOT

pytestmark = pytest.mark.slow
PATIENCE = 300_000  # milliseconds


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def address():
    if not (ROOT / "site/index.html").exists():
        pytest.skip("make site builds the site")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=ROOT / "site")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="make site-check installs playwright")
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if system is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=system, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address):
    """Open a page of a width and colour scheme that records what it asks of others, and errors."""
    contexts = []

    def opened(width=1280, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.wrong = []
        local = (address, "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(local) or page.wrong.append(request.url))
        page.on("console", lambda said: said.type == "error" and page.wrong.append(f"{page.url}: {said.text}"))
        page.on("pageerror", lambda error: page.wrong.append(f"{page.url}: {error}"))
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_and_asks_no_other_host(visit, address, width, scheme):
    page = visit(width, scheme)
    for path in sorted((ROOT / "site").rglob("index.html")):
        page.goto(address + str(path.parent.relative_to(ROOT / "site")).removeprefix("."))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 128")
        assert dark == (scheme == "dark"), path
        broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
        assert not broken, path
    assert not page.wrong


def test_search_finds_a_page(visit, address):
    page = visit()
    page.goto(address)
    page.keyboard.press("Control+k")
    page.keyboard.type("efficient probe")
    page.get_by_role("link", name="Probing and fine-tuning").last.wait_for()
    assert not page.wrong
