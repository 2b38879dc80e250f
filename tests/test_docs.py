"""README, CONTRIBUTING and docs name only links, files, commands and flags that exist."""

import pkgutil
import re
import shlex

import pytest

from maejax.commands.launch import split

from .conftest import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def anchors(text):
    """List the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text):
    """Yield the words of every `maejax` command in fenced code: comments left out, continued lines joined."""
    for block in FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if "maejax" in line else []
            for i, word in enumerate(words[:-1]):
                if word in ("maejax", ".venv/bin/maejax"):
                    launched = split(words[i + 2 :])[1] if words[i + 1] == "launch" else []
                    yield words[i + 1 : len(words) - len(launched)]
                    yield from [launched] if launched else []


@pytest.mark.parametrize("page", PAGES)
def test_links_point_at_files_and_headings(page):
    for target in re.findall(r"""(?:\]\(|src=")([^)"\s]+)""", FENCED.sub("", PAGES[page])):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path.read_text()), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_named_paths_exist(page):
    for name in re.findall(
        r"(?<![\w./-])(?:src|tests|benchmarks|scripts|config|constraints|examples)/[\w./-]*\w", PAGES[page]
    ):
        assert (ROOT / name).exists(), f"{page}: {name}"
    for name in re.findall(r"\b(test_\w+)\b(?!\.py)", PAGES[page]):
        found = [path for path in (ROOT / "tests").rglob("test_*.py") if path.stem == name or name in path.read_text()]
        assert found, f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_exist(page):
    for name in re.findall(r"(?<![\w./-])maejax(?:\.[a-z_]\w*)+", PAGES[page]):
        pkgutil.resolve_name(name)  # raises if there is none


def test_pages_that_code_names_exist():
    files = [
        path for room in ("src", "scripts", "benchmarks", "examples", "tests") for path in (ROOT / room).rglob("*")
    ]
    for path in [ROOT / "Makefile", *(path for path in files if path.suffix in (".py", "") and path.is_file())]:
        for name in re.findall(r"\bdocs/[\w/]+\.md", path.read_text()):
            assert (ROOT / name).exists(), f"{path}: {name}"


def test_commands_have_the_flags_that_the_pages_give(maejax):
    known = {}
    for page, text in PAGES.items():
        for command, *words in commands(text):
            if command not in known:
                code, printed = maejax(command, "--help")
                assert code == 0, f"{page}: maejax {command}"
                known[command] = set(re.findall(r"--[a-z][\w-]*", printed))
            flags = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert flags <= known[command], f"{page}: maejax {command} {flags - known[command]}"
    assert known.keys() > {"train", "plan", "evaluate"}  # else nothing was found
