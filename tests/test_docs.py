"""README, CONTRIBUTING and docs name only links, files, commands, flags and messages that exist."""

import ast
import pkgutil
import re
import subprocess

import pytest

from maejax.cli import parse
from maejax.commands.plan import preset_flags

from .conftest import ROOT
from .snippets import FENCED, PAGES, commands

SOURCES = [path.read_text() for path in (ROOT / "src/maejax").rglob("*.py")]


def anchors(text):
    """List the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


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


def test_commands_are_read_by_the_parser(monkeypatch):
    monkeypatch.chdir(ROOT)  # where the recipes are
    monkeypatch.setenv("GCS_DATASET_DIR", "sets")
    read = set()
    for page, text in PAGES.items():
        for words in commands(text):
            if words != ["--version"]:
                try:
                    parse(["plan", *preset_flags(words[1:])] if words[0] == "plan" else words)
                except SystemExit:
                    pytest.fail(f"{page}: maejax {' '.join(words)}")
                read.add(words[0])
    assert read > {"train", "plan", "evaluate"}  # else nothing was found


def test_flags_beside_those_of_other_codes_exist():
    fields = "\n".join(SOURCES)
    for page in ("docs/from-timm.md", "docs/from-huggingface.md", "docs/from-mae.md"):
        ours = " ".join(row.split("|")[2] for row in re.findall(r"^\|.*\|$", PAGES[page], re.MULTILINE))
        names = set(re.findall(r"--([a-z][\w-]+)", re.sub(r"There is no `--lr`", "", ours)))
        assert len(names) > 5
        for name in names - {"to"}:
            assert re.search(rf"^    {name.replace('-', '_')}: ", fields, re.MULTILINE), f"{page}: --{name}"


def test_messages_of_troubleshooting_are_in_the_code():
    """What is formatted is `...` on the page."""
    texts = "\n".join(written(source) for source in SOURCES)
    rows = re.findall(r"^\| `(.+?)` \|", PAGES["docs/troubleshooting.md"], re.MULTILINE)
    assert len(rows) > 15
    for message in rows:
        for part in re.split(r"\s*\.\.\.\s*", message):
            assert part.strip(" '") in texts, f"{message}: {part}"


def written(source):
    """Join the texts of a module, each on a line, with \x00 for what is formatted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\x00" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\n".join(found)


def test_commits_that_contributing_names_are_in_the_history():
    named = re.findall(r"\b(?=[0-9a-f]*\d)[0-9a-f]{7}\b", PAGES["CONTRIBUTING.md"])
    assert len(named) > 3
    git = ["git", "-C", str(ROOT), "cat-file", "--batch-check"]
    shallow = subprocess.run([*git[:3], "rev-parse", "--is-shallow-repository"], capture_output=True, text=True)
    if shallow.stdout != "false\n":
        pytest.skip("there is no whole history")
    found = subprocess.run(git, input="\n".join(named), capture_output=True, text=True).stdout
    assert found.count(" commit ") == len(named), found


def test_the_site_has_every_page():
    listed = re.findall(r'"([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text())
    there = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert sorted(listed) == sorted(there | {"contributing.md", "changelog.md", "security.md"})
