"""Build the documentation as a site, with warnings as errors, and check that its pages ask no other host for anything.

    python scripts/site.py site      # or `make site`; then: python -m http.server --directory site

The site holds docs/, CONTRIBUTING.md, CHANGELOG.md and SECURITY.md. Links to code keep their text alone, for it is not
there; links that are named after a file get the title of its page.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).parent.parent
OF_THE_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
LINK = re.compile(r"(?<!!)\[([^]\n]*)\]\(([^)\s]+)\)")
FETCHES = {
    "href": {"link"},
    "src": {"script", "img", "iframe", "source", "audio", "video", "embed"},
    "data": {"object"},
}


def main(site: Path) -> None:
    """Write the site into a folder, which is emptied before; ends with a sentence if a page is wrong."""
    with tempfile.TemporaryDirectory() as name:
        stage = Path(name)
        write_pages(stage / "docs")
        shutil.copy(ROOT / "zensical.toml", stage)
        (stage / "src").symlink_to(ROOT / "src")
        zensical = [sys.executable, "-m", "zensical", "build", "--strict"]
        if subprocess.run(zensical, cwd=stage, env=os.environ | {"NO_COLOR": "1"}).returncode:
            sys.exit("the site was not built: see the warnings above")
        if wrong := [sentence for page in (stage / "site").rglob("*") for sentence in faults(page, stage / "site")]:
            sys.exit("\n".join(wrong))
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(stage / "site", site)
    print(f"{len(list(site.rglob('index.html')))} pages in {site}")


def write_pages(folder: Path) -> None:
    """Copy the pages and their pictures to a folder, with links as they are on the site."""
    shutil.copytree(ROOT / "docs", folder)
    for name, page in OF_THE_ROOT.items():
        shutil.copy(ROOT / name, folder / page)
    places = {ROOT / "docs" / path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    places |= {ROOT / name: folder / page for name, page in OF_THE_ROOT.items()}
    for written, path in places.items():
        if path.suffix == ".md":
            path.write_text(LINK.sub(lambda link, of=(written, path): relink(link, *of, places), path.read_text()))


def relink(link: re.Match, written: Path, path: Path, places: dict[Path, Path]) -> str:
    """Return a link of the page `written` as it is in its copy `path`; its text alone if the site lacks the target."""
    text, (name, anchor, of_page) = link[1], link[2].partition("#")
    if "://" in name or not name:
        return link[0]
    source = Path(os.path.normpath(written.parent / name))
    if source not in places:
        return text
    if re.fullmatch(r"[\w/-]+\.md", text):
        text = source.read_text().partition("\n")[0].removeprefix("# ")
    return f"[{text}]({os.path.relpath(places[source], path.parent)}{anchor}{of_page})"


class Page(HTMLParser):
    """The addresses that a page of HTML asks for by itself, and those that it links to."""

    def __init__(self, text: str):
        super().__init__()
        self.fetched: list[str] = []
        self.linked: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the addresses of a tag."""
        for name, value in attrs:
            if tag in FETCHES.get(name, ()):
                self.fetched.append(value or "")
            elif tag == "a" and name == "href":
                self.linked.append(value or "")


def faults(path: Path, site: Path) -> list[str]:
    """Name what is wrong in a file of the site: addresses of other hosts that it asks for, and links to no file."""
    if path.suffix == ".css":
        asked = re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^)"']+)""", path.read_text())
        return [f"{path.relative_to(site)}: asks for {address}" for address in asked]
    if path.suffix != ".html" or path.name == "404.html":  # that one is served in any place
        return []
    page = Page(path.read_text())
    outside = [address for address in page.fetched if re.match(r"(https?:)?//", address)]
    links = [name for name in page.linked + page.fetched if not re.match(r"[a-z]+:|//|#", name)]
    there = {name: path.parent / name.partition("#")[0].partition("?")[0] for name in links}
    return [f"{path.relative_to(site)}: asks for {address}" for address in outside] + [
        f"{path.relative_to(site)}: {name} is not there" for name, target in there.items() if not target.exists()
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
