"""The samples of a tar shard, and how files that belong together become samples, in tars and folders."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maejax.data.arrays import is_array, read_page
from maejax.data.classes import NO_CLASS, label_in_file
from maejax.data.decode import AVIF, is_image
from maejax.data.dicom import HEAD
from maejax.data.tar import LINK_TO_NOTHING, members
from maejax.errors import FormatError

_PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
IMAGE_SUFFIXES = (*_PICTURES, ".npy", ".dcm")
_FOREIGN = (".heic", ".heif", ".jxl", ".jp2", ".j2k", ".psd", ".dng", ".cr2", ".nef", ".arw", ".svg")
UNREADABLE = _FOREIGN if AVIF else (".avif", *_FOREIGN)
LATE = "labels that come after their image, too late for a stream"


class ByteRange(NamedTuple):
    """Where an encoded image lies: `size` bytes from `offset` of a file; size -1 is to the end.

    `page` is the number of one of several images there, -1 for the whole.
    """

    path: str
    offset: int
    size: int
    page: int = -1

    def read(self) -> bytes | np.ndarray:
        """Return the bytes, or the pixels of a page; raises OSError if the file is gone, or was cut since."""
        # Opening anew costs 6 us and keeps nothing open: a thousand shards would pass the usual limit on open files.
        with open(self.path, "rb", buffering=0) as file:
            if self.offset:
                file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError(f"{self.path} ends before byte {self.offset + self.size}: it was cut after it was opened")
        return data if self.page < 0 else read_page(data, self.page)


class Sample(NamedTuple):
    """One image of a source: its name in messages, its bytes or pixels, its label, the path of its folder.

    A label is the number or the name of a class, -1 if there is none.
    """

    key: str
    image: ByteRange | np.ndarray
    label: int | str = -1
    folder: str = ""


@dataclass
class Listing:
    """The result of listing a place: samples, problems in words, damaged tars with the reason, suffixes, classes.

    `left_out` counts what was not used, by the words for it, and has the name of the first.
    """

    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    suffixes: Counter[str] = field(default_factory=Counter)
    classes: tuple[str, ...] = ()
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)

    def leave_out(self, what: str, name: str, count: int = 1) -> None:
        """Count what is not used, for one sentence about all of its kind."""
        before, first = self.left_out.get(what, (0, name))
        self.left_out[what] = (before + count, first)

    def sentences(self) -> list[str]:
        """Return the problems, and a sentence for each kind of thing that was left out."""
        return self.problems + [
            f"{n:,} left out: {what}; the first is {name}" for what, (n, name) in self.left_out.items()
        ]

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
        for what, (count, name) in other.left_out.items():
            self.leave_out(what, name, count)


def in_tar(path: Path, title: str, name: str = "") -> Listing:
    """List the samples of a tar shard in webdataset form, or of a tar of class folders; `Group` has the rules.

    Keys read `title:member`. Damage ends the listing and is described in `problems`, under `name` if it is given.
    """
    listing, part = Listing(), 0
    place, group = str(path), Group(listing, f"{title}:")
    name = name or place
    try:
        for member in members(path):
            if member.part != part:  # another tar joined to the one before: the same names may come again
                part, group = member.part, group.done()
            group.add(member.name, ByteRange(place, member.offset, member.size), member.head)
    except (FormatError, OSError) as error:
        listing.problems.append(f"{name}: {error}")
        listing.lost[name] = str(error)
    group.done()
    if not listing.samples and not listing.problems:
        listing.problems.append(f"{name}: holds no image")
    return listing


def along_tar(path: Path, title: str, grow: Callable[[int], int], found: Listing) -> Iterator[Sample]:
    """Yield the samples of a tar shard as they arrive, see `members` for `grow`; the rules are those of `in_tar`.

    Members of a sample must lie side by side, as webdataset wants it. What is left out is counted in `found`. Raises
    FormatError and OSError at the first damage, after all samples before it.
    """
    group, last = Group(found, f"{title}:"), (0, "")
    try:
        for member in members(path, grow):
            key = (member.part, group_of(member.name))
            if key != last:
                yield from group.flush()
                group = group if key[0] == last[0] else Group(found, f"{title}:")
                last = key
            group.add(member.name, ByteRange(str(path), member.offset, member.size), member.head)
    except (FormatError, OSError):
        yield from group.flush()
        raise
    yield from group.flush()


class Group:
    """Files of a tar or folder on their way to samples, which go to a listing; `prefix` and name make their keys.

    Images have an image suffix in any case, or none and the first bytes of one. Files that share their name up to the
    first dot belong together. If one of these images has that name and a suffix alone (`1.jpg`), those with a word in
    between (`1.seg.png`) describe it and are left out. The label of an image is that in the `.cls` or `.json` of its
    name without the suffix, or of a shorter one down to the first dot.
    """

    def __init__(self, listing: Listing, prefix: str):
        self._listing, self._prefix = listing, prefix
        self._images: dict[str, list[tuple[str, str, ByteRange]]] = {}  # by `group_of`: name, stem, bytes
        self._labels: dict[str, int | str | tuple[str, ByteRange]] = {}  # by stem: label, or name and bytes of its file
        self._unlabelled: set[str] = set()  # stems of samples that are gone already

    def add(self, name: str, image: ByteRange, head: bytes | None) -> None:
        """Add a file, of which `head` is the first bytes, None if they are not read yet.

        Hidden files are skipped: archives made on a Mac carry a `._x.jpg` beside every x.jpg.
        """
        folder, _, short = name.rpartition("/")
        if short.startswith(".") or "__MACOSX" in folder:
            return
        suffix = suffix_of(short)
        self._listing.suffixes[suffix] += 1
        stem = name[: len(name) - len(suffix)]
        if image.size == LINK_TO_NOTHING:
            self._listing.leave_out("links that lead to nothing", self._prefix + name)
        elif suffix in UNREADABLE:
            what = f"{suffix} files, which cannot be decoded here: convert them to JPEG or PNG"
            self._listing.leave_out(what, self._prefix + name)
        elif suffix in IMAGE_SUFFIXES or (not suffix and _is_image(_head(image.path) if head is None else head)):
            self._images.setdefault(group_of(name), []).append((name, stem, image))
        elif suffix in (".cls", ".json"):
            if suffix == ".cls" or stem not in self._labels:
                # What is not at hand is read later, if it has an image: other .json files may be large.
                at_hand = head is not None and len(head) == image.size
                self._labels[stem] = self._read(name, head or b"") if at_hand else (name, image)
            if stem in self._unlabelled and self._label(stem, stem) != -1:
                self._listing.leave_out(LATE, self._prefix + name)

    def done(self) -> "Group":
        """Add the samples to the listing, and return an empty group of the same listing."""
        self._listing.samples += self.flush()
        return Group(self._listing, self._prefix)

    def flush(self) -> Iterator[Sample]:
        """Yield a sample for each image among the files so far, and forget these; labels without an image stay."""
        for group, images in self._images.items():
            plain = any(stem == group for _, stem, _ in images)
            pictures = {stem for name, stem, _ in images if not name.endswith(".npy")}
            for name, stem, image in images:
                if name.endswith(".npy") and stem in pictures:
                    what = "arrays that lie beside a picture of their name (x.npy beside x.jpg)"
                    self._listing.leave_out(what, self._prefix + name)
                    continue
                if plain and re.match("[A-Za-z_]", stem[len(group) + 1 :]):
                    what = "images that describe others of the same name (x.seg.png beside x.jpg)"
                    self._listing.leave_out(what, self._prefix + name)
                    continue
                label = self._label(stem, group)
                if label == -1:
                    self._unlabelled.add(stem)
                yield Sample(self._prefix + name, image, label, group.rpartition("/")[0])
            for _, stem, _ in images:
                self._labels.pop(stem, None)
            self._labels.pop(group, None)
        self._images.clear()

    def _label(self, stem: str, group: str) -> int | str:
        while True:
            if (found := self._labels.get(stem)) is not None:
                return self._read(*found) if isinstance(found, tuple) else found
            if len(stem) <= len(group):
                return -1
            stem = stem.rpartition(".")[0]

    def _read(self, name: str, content: bytes | ByteRange) -> int | str:
        try:
            data = content.read() if isinstance(content, ByteRange) else content
            return label_in_file(suffix_of(name), data)  # type: ignore[arg-type]
        except (ValueError, OSError):
            self._listing.leave_out(NO_CLASS, self._prefix + name)
            return -1


def group_of(name: str) -> str:
    """Return the path of a file up to the first dot of its file name."""
    # Plain strings: a million members pass here, and paths would take most of the time.
    folder, slash, short = name.rpartition("/")
    return folder + slash + short.partition(".")[0]


def suffix_of(name: str) -> str:
    """Return the suffix of a file name, with its dot and in lower case; "" if it has none."""
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem else ""


def _head(path: str) -> bytes:
    with suppress(OSError), open(path, "rb", buffering=0) as file:
        return file.read(HEAD)
    return b""


def _is_image(head: bytes) -> bool:
    return is_image(head) or is_array(head)
