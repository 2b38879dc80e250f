"""The samples of a tar shard or an image folder, and their labels."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maejax.data.tar import Member, members
from maejax.errors import FormatError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class ByteRange(NamedTuple):
    """Where an encoded image lies: `size` bytes from `offset` of a file; size -1 is to the end."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes; raises OSError if the file is gone, or shorter than it was when it was listed."""
        # Opening anew costs 6 us and keeps nothing open: a thousand shards would pass the usual limit on open files.
        with open(self.path, "rb", buffering=0) as file:
            if self.offset:
                file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError(f"{self.path} ends before byte {self.offset + self.size}: it was cut after it was opened")
        return data


class Sample(NamedTuple):
    """One image of a source: its name in messages, its bytes or pixels, its label (-1: none), its class folder."""

    key: str
    image: ByteRange | np.ndarray
    label: int = -1
    folder: str | None = None


@dataclass
class Listing:
    """The result of listing a place: samples, problems in words, damaged tars with the reason, suffixes, classes."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    suffixes: Counter[str] = field(default_factory=Counter)
    classes: tuple[str, ...] = ()

    def extend(self, other: "Listing") -> None:
        """Append another listing."""
        self.samples += other.samples
        self.problems += other.problems
        self.lost |= other.lost
        self.suffixes += other.suffixes
        if self.classes and other.classes and self.classes != other.classes:
            place = other.samples[0].key.partition(":")[0] if other.samples else "a file without images"
            self.problems.append(f"{place}: names other classes than the files before it; their labels do not fit")
        self.classes = self.classes or other.classes


def in_tar(path: Path, title: str) -> Listing:
    """List the samples of a tar shard in webdataset form, or of a tar of class folders.

    Members that share their name up to the first dot of the file name form a sample; its images are the members with
    an image suffix in any case. If one of them has that suffix alone (`1.jpg`), those with a longer one (`1.seg.png`)
    describe it and are not images of their own. The label is the whole number in `.cls`, or under "label" or "cls" in
    `.json`. Keys read `title:member`. Damage ends the listing and is described in `problems`.
    """
    listing, group = Listing(), _Group(path)
    try:
        for member in members(path):
            if (key := _key(member)) is not None:
                listing.suffixes[group.add(key, member)] += 1
    except (FormatError, OSError) as error:
        listing.problems.append(f"{path}: {error}")
        listing.lost[str(path)] = str(error)
    listing.samples = list(group.samples(title))
    if bad := group.bad_labels:
        listing.problems.append(f"{path}: {len(bad)} labels are no class numbers, the first is {bad[0]}")
    if not listing.samples and not listing.problems:
        listing.problems.append(f"{path}: holds no image")
    return listing


def along_tar(path: Path, title: str, grow: Callable[[int], int]) -> Iterator[Sample]:
    """Yield the samples of a tar shard as they arrive, see `members` for `grow`; the rules are those of `in_tar`.

    Members of a sample must lie side by side, as webdataset wants it. Raises FormatError and OSError at the first
    damage, after all samples before it.
    """
    group, last = _Group(path), None
    try:
        for member in members(path, grow):
            key = _key(member)
            if key is None:
                continue
            if key != last:
                yield from group.samples(title)
                group, last = _Group(path), key
            group.add(key, member)
    except (FormatError, OSError):
        yield from group.samples(title)
        raise
    yield from group.samples(title)


class _Group:
    """Members of a tar on their way to samples."""

    def __init__(self, path: Path):
        self._path = str(path)
        self._images: dict[str, list[Member]] = {}
        self._labels: dict[str, int] = {}
        self.bad_labels: list[str] = []

    def add(self, key: str, member: Member) -> str:
        """Add a member and return its suffix."""
        suffix, extension = _suffix(member.name.rpartition("/")[2]), member.name[len(key) + 1 :]
        if suffix in IMAGE_SUFFIXES:
            self._images.setdefault(key, []).append(member)
        elif extension == "cls" or (extension == "json" and key not in self._labels):
            whole = member.size <= len(member.head)
            content = member.head if whole else ByteRange(self._path, member.offset, member.size).read()
            try:
                self._labels[key] = _label(extension, content)
            except ValueError:
                self.bad_labels.append(member.name)
        return suffix

    def samples(self, title: str) -> Iterator[Sample]:
        """Yield a sample for each image among the members."""
        for key, candidates in self._images.items():
            plain = [member for member in candidates if member.name.count(".", len(key)) == 1]
            folder = key.rpartition("/")[0].rpartition("/")[2].removeprefix(".") or None  # "./1.jpg" lies in no folder
            label = self._labels.get(key, -1)
            for name, offset, size, _ in plain or candidates:
                yield Sample(f"{title}:{name}", ByteRange(self._path, offset, size), label, folder)


def _key(member: Member) -> str | None:
    """Return the path of a member up to the first dot of its file name, None for a member to skip."""
    # Plain strings: a million members pass here, and paths would take most of the time. Hidden files are no pictures:
    # archives made on a Mac carry a "._x.jpg" beside every x.jpg.
    folder, slash, name = member.name.rpartition("/")
    return None if name.startswith(".") or "__MACOSX" in folder else folder + slash + name.partition(".")[0]


def in_folder(root: Path) -> Listing:
    """List the images under a folder, by path: the first sub-folder is the class, images beside it have none."""
    listing = Listing()
    for directory, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        below = Path(directory).relative_to(root).parts
        for name in sorted(name for name in names if not name.startswith(".")):
            listing.suffixes[_suffix(name)] += 1
            if _suffix(name) in IMAGE_SUFFIXES:
                path = str(Path(directory, name))
                listing.samples.append(Sample(path, ByteRange(path, 0, -1), folder=below[0] if below else None))
    if not listing.samples:
        listing.problems.append(f"{root}: holds no image")
    return listing


def _suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem else ""


def _label(extension: str, content: bytes) -> int:
    """Read a label, -1 if a .json has none; raises ValueError if it is no class number."""
    if extension == "cls":
        label = int(content)
    else:
        fields = json.loads(content)
        label = fields.get("label", fields.get("cls")) if isinstance(fields, dict) else None
        if label is None:
            return -1
    if type(label) is int and 0 <= label < 2**31:
        return label
    raise ValueError(label)
