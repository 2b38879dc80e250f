"""The tar format, as far as reading needs it: where each member of a local file lies."""

import itertools
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from maejax.errors import FormatError
from maejax.storage.pointer import pointer

BLOCK = 512
LINK_TO_NOTHING = -2  # the size of a link whose target is not in the tar
_NO_DATA = b"123456"  # hard link, symbolic link, devices, directory, fifo: their size says nothing about what follows


class Member(NamedTuple):
    """A regular file in a tar, or a link to one: its name, where its bytes lie, and the first of them.

    `part` tells the tars of a file apart that are joined, one after the other.
    """

    name: str
    offset: int
    size: int
    head: bytes
    part: int

    def under(self, link: "Member") -> "Member":
        """Return this file under the name of a link to it."""
        return self._replace(name=link.name, part=link.part)


def members(path: Path, grow: Callable[[int], int] | None = None, stop: int = -1) -> Iterator[Member]:
    """Walk the headers of a tar file from front to back, to its end or byte `stop`, skipping over the contents.

    Of a file that still grows, `grow(n)` waits until n bytes are there, or no more will come, and returns how many
    there are; a member is yielded when all of it is there. Reads ustar, GNU long names and pax (path, size). `offset`
    and `size` are in bytes; `head` is the first min(size, 512) bytes, so that a label needs no second read. A link has
    the bytes of its target; one to a later member comes last of all. What follows the end mark of a tar must be another
    tar. Raises FormatError at the first damage, after yielding every intact member before it, and OSError.
    """
    end = path.stat().st_size if grow is None else 0
    override: dict[str, str] = {}  # what a long name or pax header says about the member after it
    targets: dict[str, Member] | None = None  # all members, from the first link on: few tars have one
    waiting: dict[str, list[Member]] = {}  # links, by the name of a target that has not come
    offset, part, ended = 0, 0, False
    with path.open("rb", buffering=0) as file:
        while offset != stop:
            if grow is not None and offset + 2 * BLOCK > end:
                end = grow(offset + 2 * BLOCK)
            file.seek(offset)
            block = file.read(2 * BLOCK)
            header = block[:BLOCK]
            if ended and not header:
                break
            if header == bytes(BLOCK):
                yield from _late(targets or {}, waiting)
                targets = None if targets is None else {}  # links do not lead to another tar
                offset, part, ended = offset + BLOCK, part + (not ended), True
                continue
            ended = False
            if offset and len(header) < BLOCK:
                raise FormatError(f"ends at byte {end} without the end mark of a tar: it may have been cut")
            if not _is_header(header):
                what = pointer(header) or f"not a tar (starts with {header[:12]!r})"
                raise FormatError(f"no tar header at byte {offset}" if offset else what)
            kind, start = header[156:157], offset
            if kind == b"S":
                raise FormatError(f"{_name(header, override)!r} is stored with holes; make the tar without --sparse")
            size = 0 if kind in _NO_DATA else int(override.get("size") or _number(header[124:136]))
            data = offset + BLOCK
            if grow is not None and data + size > end:
                end = grow(data + size)
            if data + size > end:
                raise FormatError(f"ends at byte {end} in the middle of {_name(header, override)!r}: it was cut")
            offset = data + -(-size // BLOCK) * BLOCK
            if kind in b"LKx":
                file.seek(data)
                override |= _extension(kind, file.read(size))
            elif kind != b"g":  # a pax header for the whole archive names no member
                member = Member(_name(header, override), data, size, block[BLOCK : BLOCK + size], part)
                if kind in (b"1", b"2"):
                    if targets is None:
                        before = (each for each in members(path, grow, start) if each.part == part)
                        targets = {posixpath.normpath(each.name): each for each in before}
                    target = _target(header, override)
                    if target in targets:
                        member, kind = targets[target].under(member), b"0"
                    else:
                        waiting.setdefault(target, []).append(member)
                if kind in (b"0", b"\0", b"7"):
                    if targets is not None:
                        targets[posixpath.normpath(member.name)] = member
                    yield member
                override = {}


def _late(targets: dict[str, Member], waiting: dict[str, list[Member]]) -> Iterator[Member]:
    """Yield the links to members that came after them, then those that lead to nothing."""
    for name in [name for name in waiting if name in targets]:
        yield from _follow(name, targets, waiting)
    for link in itertools.chain(*waiting.values()):
        yield link._replace(size=LINK_TO_NOTHING)
    waiting.clear()


def _follow(name: str, targets: dict[str, Member], waiting: dict[str, list[Member]]) -> Iterator[Member]:
    """Yield the links that waited for a member, and those that waited for them."""
    for link in waiting.pop(name, ()):
        targets[posixpath.normpath(link.name)] = member = targets[name].under(link)
        yield member
        yield from _follow(posixpath.normpath(link.name), targets, waiting)


def _target(header: bytes, override: dict[str, str]) -> str:
    """Return the name of the member that a link leads to."""
    target = override.get("linkpath") or header[157:257].split(b"\0", 1)[0].decode(errors="replace")
    if header[156:157] == b"2":  # a symbolic link starts in its own folder
        target = posixpath.join(posixpath.dirname(_name(header, override)), target)
    return posixpath.normpath(target)


def _is_header(header: bytes) -> bool:
    if len(header) < BLOCK:
        return False
    try:
        _number(header[124:136])
        # The sum is taken with its own field as spaces. The magic alone is enough: summing costs as much as the rest.
        return header[257:262] == b"ustar" or sum(header[:148]) + 8 * 32 + sum(header[156:]) == _number(header[148:156])
    except ValueError:
        return False


def _number(field: bytes) -> int:
    if field[:1] == b"\x80":  # base 256, for files of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    number = int(field.rstrip(b"\0 ") or b"0", 8)
    if number < 0:
        raise ValueError(number)
    return number


def _name(header: bytes, override: dict[str, str]) -> str:
    if "path" in override:
        return override["path"]
    name = header[:100].split(b"\0", 1)[0]
    # GNU's own magic is "ustar  " and uses the field of the prefix for other things.
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode(errors="replace")


def _extension(kind: bytes, data: bytes) -> dict[str, str]:
    if kind in b"KL":
        return {"path" if kind == b"L" else "linkpath": data.split(b"\0", 1)[0].decode(errors="replace")}
    records = {}
    while data and data[:1] != b"\0":  # "LENGTH KEY=VALUE\n", where LENGTH counts itself
        record = re.match(rb"(\d+) ([^=]+)=", data)
        if record is None or int(record[1]) <= record.end():
            raise FormatError("a pax header is damaged")
        value = data[record.end() : int(record[1]) - 1].decode(errors="replace")
        if record[2] in (b"path", b"linkpath") or (record[2] == b"size" and value.isdecimal()):
            records[record[2].decode()] = value
        data = data[int(record[1]) :]
    return records
