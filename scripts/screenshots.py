"""Take the pictures that the pages show anew: docs/demo.png, docs/playground.png.

    python scripts/screenshots.py                      # or one of them: demo playground
    python scripts/screenshots.py --photos PHOTOS.tar --budget 4m playground

The first is of `maejax demo`, the other of `maejax train PHOTOS`. `make browser` installs playwright and Chromium.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parent.parent
MAEJAX = [sys.executable, "-m", "maejax"]


def main() -> None:
    """Train what is shown in a folder that is removed after, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", default=[], metavar="demo|playground")
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared/data/clothing-by-sender.tar")
    parser.add_argument("--budget", default="4m", help="of the training on photos")
    given = parser.parse_args()
    wanted = set(given.pictures) or {"demo", "playground"}
    if unknown := wanted - {"demo", "playground"}:
        parser.error(f"{', '.join(unknown)}: there is no such picture")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "demo" in wanted:
            subprocess.run([*MAEJAX, "demo"], cwd=folder, check=True)
            save(Image.open(folder / "runs/demo/reconstructions.png"), "demo")
        if "playground" in wanted:
            subprocess.run(
                [*MAEJAX, "pack", given.photos.resolve(), "packed", "--image-size", "96"], cwd=folder, check=True
            )
            subprocess.run(
                [*MAEJAX, "train", "packed", "--name", "mine", "--budget", given.budget], cwd=folder, check=True
            )
            with browser() as page:
                save(playground(page, folder), "playground")


@contextmanager
def browser() -> Iterator[Page]:
    """Open Chromium with a page as wide as the pictures are."""
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 1240, "height": 1100})
        page.set_default_timeout(300_000)  # milliseconds
        yield page
        opened.close()


def playground(page: Page, folder: Path) -> Image.Image:
    """Take the playground of the run, once everything on it is drawn."""
    command = [*MAEJAX, "serve", "runs/mine", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = next(found for line in server.stderr or () if (found := re.search(r"http://[\d.]+:\d+", line)))
            page.goto(address[0])
            page.wait_for_selector("#near li")
            page.wait_for_selector("body[data-filled]")
            page.wait_for_timeout(2000)  # thumbnails
            return Image.open(io.BytesIO(page.screenshot()))
        finally:
            server.terminate()


def save(picture: Image.Image, name: str) -> None:
    """Write a picture of docs/ with 128 colours: a quarter of the bytes."""
    path = ROOT / "docs" / f"{name}.png"
    picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
