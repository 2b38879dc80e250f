"""The playground in a real browser: `make browser` runs these."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow
PATIENCE = 300  # seconds; in milliseconds to the browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="make browser installs playwright")
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if system is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # A name that a stranger owns and that leads here.
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"]
        opened = driver.chromium.launch(executable_path=system, args=arguments)
        yield opened
        opened.close()


@contextmanager
def serving(*args):
    """Start `maejax serve`; yields its address, and expects that Ctrl-C ends it well."""
    command = [sys.executable, "-m", "maejax", "serve", *map(str, args), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    break
            else:
                pytest.fail("".join(lines))
            yield found[0]
            server.send_signal(signal.SIGINT)
            assert server.wait(PATIENCE) == 0
            assert "Traceback" not in server.stderr.read()
        finally:
            server.kill()


@pytest.fixture(scope="module")
def address(trained_once, images):
    with serving(trained_once, "--images", images) as found:
        yield found


@pytest.fixture
def visit(browser, address):
    """Open the page as a new visitor, and wait for the first answer."""
    contexts = []

    def opened():
        contexts.append(browser.new_context())
        page = contexts[-1].new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        page.wait_for_selector("body[data-filled]")
        return page

    yield opened
    for context in contexts:
        context.close()


@contextmanager
def another_answer(page):
    """Wait until what is done inside has been answered."""
    before = int(page.get_attribute("body", "data-filled"))
    yield
    page.wait_for_selector(f"body:not([data-filled='{before}'])")


def shown(page, canvas):
    """Return a hash of what a canvas shows."""
    return hash(page.locator(canvas).screenshot())


def test_hiding_by_mouse_keyboard_and_slider(visit):
    page = visit()
    assert page.text_content("#hidden") == "75 %, 12 of 16"
    page.click("#none")
    assert page.text_content("#hidden") == "0 %, 0 of 16"
    box = page.locator("#paint").bounding_box()
    seen = shown(page, "#filled")
    with another_answer(page):
        page.mouse.move(box["x"] + 5, box["y"] + 5)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 5)
        page.mouse.up()
        page.wait_for_selector("text=19 %, 3 of 16")
    assert shown(page, "#filled") != seen
    page.focus("#paint")
    for key in ("ArrowDown", "Space"):
        page.keyboard.press(key)
    assert page.text_content("#hidden") == "25 %, 4 of 16"
    with another_answer(page):
        page.locator("#count").fill("15")
    assert page.text_content("#hidden") == "94 %, 15 of 16"
    with another_answer(page):
        page.click("text=Grid")


def test_training_attention_and_neighbours(visit):
    page = visit()
    page.wait_for_selector("#near li")
    assert page.locator("#near li").count() == 12
    loss = page.text_content("#loss")
    with another_answer(page):
        page.locator("#step").fill("0")
    assert page.text_content("#at") == "untrained" and page.text_content("#loss") != loss
    seen = shown(page, "#attention")
    page.locator("#attention").click(position={"x": 5, "y": 5})
    assert "row 1, column 1" in page.text_content("#query") and shown(page, "#attention") != seen
    with another_answer(page):
        page.locator("#near button").first.click()


def test_uploads_good_broken_and_huge(visit, tmp_path, address):
    page, asked = visit(), []
    page.on("request", lambda request: asked.append(request.url))
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "mine.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(65 * 2**20)
    before = everything()
    with another_answer(page):
        page.set_input_files("#file", tmp_path / "mine.png")
    assert page.text_content("#name") == "mine.png"
    for name, sentence in (("broken.png", "cannot be read: no image format"), ("huge.png", "has 65 MiB, more than 64")):
        page.set_input_files("#file", tmp_path / name)
        page.wait_for_selector(f"#status.wrong:has-text('{sentence}')")
        assert name in page.text_content("#status") and page.text_content("#name") == "mine.png"
    assert everything() == before
    assert asked and all(url.startswith((address, "data:")) for url in asked)


def everything():
    """List all files where a server could keep something, but those of the browser."""
    places = Path.cwd(), Path(os.environ["TMPDIR"]), Path.home() / ".cache"
    found = (path for place in places for path in place.rglob("*") if path.is_file())
    return {path for path in found if not re.search("chromium|playwright|mesa|fontconfig|compiled", str(path))}


def test_two_people_at_once(visit, tmp_path):
    people = [visit(), visit()]
    for i, page in enumerate(people):
        Image.fromarray(np.full((16, 16, 3), 230 * i, np.uint8)).save(tmp_path / f"{i}.png")
        page.set_input_files("#file", tmp_path / f"{i}.png")
        page.wait_for_selector(f"#name:has-text('{i}.png')")
    for count in range(1, 9):
        for page in people:
            page.locator("#count").fill(str(count))
    for i, page in enumerate(people):
        with another_answer(page):
            page.locator("#count").fill("12")
        assert page.text_content("#name") == f"{i}.png"
        page.wait_for_timeout(1000)
        bright = np.asarray(Image.open(io.BytesIO(page.locator("#filled").screenshot())).convert("L")).mean()
        assert (bright > 128) == bool(i)


def test_pages_of_others_get_nothing(browser, address):
    text = f"""<img id=i src="{address}/thumbnail/0"><p id=p></p><script>
        Promise.allSettled(["about", "upload"].map(path => fetch("{address}/" + path, {{method: path == "about" ?
        "GET" : "POST", body: path == "about" ? undefined : "x"}}))).then(all => p.textContent =
        all.map(each => each.status).join() + " " + i.naturalWidth)</script>"""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    other = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{other.server_port}/")
    page.wait_for_selector("#p:has-text('rejected')")
    assert page.text_content("#p") == "rejected,rejected 0"
    answer = page.goto(address.replace("127.0.0.1", "evil.example"))
    assert answer.status == 403 and "does not answer as evil.example" in answer.text()
    page.close()
    other.shutdown()
    other.server_close()
