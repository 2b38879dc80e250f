"""The fenced blocks of the pages, and the commands in them."""

import re
import shlex
from collections.abc import Iterator

from .conftest import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(text: str, *languages: str) -> list[str]:
    """List the fenced blocks of a page in one of the languages, or all."""
    return [block for language, block in FENCED.findall(text) if not languages or language in languages]


def transcripts(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a page's console blocks with the lines that it prints."""
    for block in blocks(text, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *printed = part.splitlines()
            yield command, printed


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words that `maejax` gets in fenced code: continued lines joined, comments and `...` left out.

    Variables have the value that the block gives them, or 0.
    """
    for block in blocks(text, "", "bash"):
        given = dict(re.findall(r"\b(\w+)=(\S+)", block) + re.findall(r"\bfor (\w+) in (\S+)", block))
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").replace('--part slurm "$@"', "CKPT IMAGES --out FILE.npy --part slurm")
            words = shlex.split(with_values(line.replace('"$@"', ""), given), comments=True) if "maejax" in line else []
            at = next((i for i, word in enumerate(words) if word in ("maejax", ".venv/bin/maejax")), len(words))
            ends = [i for i, word in enumerate(words) if word in ("|", ">", "&&", ";") and i > at]
            if found := [word for word in words[at + 1 : min([*ends, len(words)])] if word != "..."]:
                yield found


def with_values(line: str, given: dict[str, str]) -> str:
    """Put the values of variables into a line; a value may be another variable."""
    for _ in range(2):
        line = re.sub(r"\$\{?(\w+)\}?", lambda name: given.get(name[1], "0"), line)
    return line
