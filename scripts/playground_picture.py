"""Take the picture of docs/playground.md: `maejax serve RUN` runs, and `make browser` has installed playwright.

python scripts/playground_picture.py http://127.0.0.1:6230 docs/playground.png
"""

import io
import shutil
import sys

from PIL import Image
from playwright.sync_api import sync_playwright

address, path = sys.argv[1:]
with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1240, "height": 1100})
    page.goto(address)
    page.wait_for_selector("#near li")
    page.wait_for_selector("body[data-filled]")
    page.wait_for_timeout(2000)  # thumbnails
    picture = Image.open(io.BytesIO(page.screenshot()))
    browser.close()
picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)  # a quarter of the bytes
