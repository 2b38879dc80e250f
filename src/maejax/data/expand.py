"""The places that a spec stands for: brace lists, globs, lists in a file, folders of shards."""

import fnmatch
import glob
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from maejax.data.folder import SHARD, contents
from maejax.data.listing import IMAGE_SUFFIXES
from maejax.data.tables import TABLE_SUFFIXES
from maejax.errors import FetchError, InputError
from maejax.storage.bucket import list_bucket
from maejax.storage.http import list_hf
from maejax.storage.read import read_address
from maejax.storage.redact import redact
from maejax.storage.retry import RetryPolicy

_FILES = (*IMAGE_SUFFIXES, *TABLE_SUFFIXES, ".npz")
LIST_LIMIT = 64 << 20  # bytes
_ASKING = RetryPolicy(connect=10, stall=20, total=20)  # a user waits for an answer
_RANGE = re.compile(r"(\d+|[a-zA-Z])\.\.(\d+|[a-zA-Z])(?:\.\.-?(\d+))?")
_REMOTE = re.compile(r"[a-zA-Z][\w+.-]*://")


def expand(spec: str, notes: list[str] | None = None) -> list[Path | str]:
    """List the places of a spec, local paths that exist or addresses to fetch; raises InputError if one is missing.

    What folders hold that is not read goes to `notes`, in sentences.
    """
    notes = [] if notes is None else notes
    if spec.startswith("@"):
        return [place for line in _lines(spec[1:]) for place in expand(line, notes)]
    if spec.startswith("pipe:"):
        return list(_braces(spec, lists=False))  # a {a,b} or $1,$2 in a command is the shell's
    if _REMOTE.match(spec):
        return [place for address in _braces(spec) for place in _remote(address)]
    return list(_local(spec, notes))


def _lines(name: str) -> list[str]:
    """Read a list of specs: one a line, without empty lines and those that start with #."""
    try:
        data, address = b"", name if _REMOTE.match(name) else str(Path(name).expanduser())
        for chunk in read_address(address, _ASKING):
            data += chunk
            if len(data) > LIST_LIMIT:
                raise FetchError("is too large to be a list")
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except (FetchError, UnicodeDecodeError) as error:
        raise InputError(f"@{redact(name)}: cannot be read as a list of shards: {error}") from None
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines or any(line.startswith("@") for line in lines):
        raise InputError(f"@{redact(name)}: holds no shards, or another list; write one path or address a line")
    return lines


def _remote(address: str) -> list[str]:
    if address.startswith(("http://", "https://")):
        if "*" in address:
            why = "a web server cannot list its files; write a brace list {0000..0127}"
            raise InputError(f"{redact(address)}: {why}")
        return [address]
    scheme, _, path = address.partition("://")
    if scheme == "hf" and not path.startswith("datasets/"):
        raise InputError(f"{address}: is no address of a data set; write hf://datasets/OWNER/NAME/PATH")
    try:
        if not re.search(r"[*?\[]", path):
            if SHARD.search(path):
                return [address]
            address = address.rstrip("/") + "/*"  # a folder of shards
        if scheme == "hf":
            found = [name for name in list_hf(address, _ASKING) if fnmatch.fnmatchcase(name, address)]
        else:
            found = list_bucket(address)
    except FetchError as error:
        raise InputError(f"{redact(address)}: {error}") from None
    if not (found := [name for name in found if SHARD.search(name)]):
        raise InputError(f"{redact(address)}: no tar shards there; correct the address")
    return found


def _local(spec: str, notes: list[str]) -> Iterator[Path]:
    paths: list[Path] = []
    missing: list[str] = []
    for name in [spec] if Path(spec).expanduser().exists() else _braces(spec):
        path = Path(name).expanduser()
        if path.exists():
            paths.append(path)
        elif matches := sorted(glob.glob(_pattern(path), recursive=True)):  # noqa: PTH207 (Path.glob takes hidden files)
            usable = [m for m in matches if m.lower().endswith(_FILES) or SHARD.search(m) or Path(m).is_dir()]
            if usable and (rest := sorted({*matches} - {*usable})):
                notes.append(f"{name}: {len(rest)} left out: neither shards nor images; the first is {rest[0]}")
            paths += map(Path, usable or matches)
        else:
            missing.append(name)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(f"{spec}: not found: {', '.join(missing[:3])}{more}; correct the path, or leave these out")
    for path in paths:
        yield from contents(path, notes) if path.is_dir() else [path]


def _pattern(path: Path) -> str:
    """Return a pattern in which brackets in the names of folders that exist stand for themselves."""
    there = next((folder for folder in path.parents if folder.exists()), Path())
    return str(Path(glob.escape(str(there))) / path.relative_to(there))


def _braces(text: str, lists: bool = True) -> Iterator[str]:
    """Expand braces as bash does: `a{1,2}` -> a1 a2, `{08..10}` -> 08 09 10, `{0..9..3}`, `{a..c}`.

    Without `lists` the first stands for itself.
    """
    for opening in re.finditer("{", text):
        depth, cuts = 0, [opening.start()]
        for i in range(opening.start(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0 or (depth == 1 and text[i] == ","):
                cuts.append(i)
            if depth == 0:
                break
        if depth:
            continue
        parts = [text[a + 1 : b] for a, b in pairwise(cuts)]
        if len(parts) == 1 and (numbers := _range(parts[0])):
            parts = numbers
        elif len(parts) == 1 or not lists:
            continue  # {x} stands for itself
        for part in parts:
            yield from _braces(text[: opening.start()] + part + text[cuts[-1] + 1 :], lists)
        return
    yield text


def _range(text: str) -> list[str]:
    """Expand FIRST..LAST or FIRST..LAST..STEP of numbers or letters; [] for other text."""
    found = _RANGE.fullmatch(text)
    if found is None or found[1].isdigit() != found[2].isdigit():
        return []
    ends, digits = found.groups()[:2], found[1].isdigit()
    first, last = (int(end) if digits else ord(end) for end in ends)
    padded = any(len(end) > 1 and end[0] == "0" for end in ends)
    width = max(map(len, ends)) if padded else 0
    sign = 1 if last >= first else -1
    numbers = range(first, last + sign, sign * max(1, int(found[3] or 1)))
    return [f"{i:0{width}d}" if digits else chr(i) for i in numbers]
