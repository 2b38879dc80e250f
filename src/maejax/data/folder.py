"""Folders: whether one stands for its tar shards, its tables or the images under it, and these images."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from maejax.data.classes import TRAINING, VALIDATION, class_of_folders
from maejax.data.labels import LABEL_FILES
from maejax.data.listing import IMAGE_SUFFIXES, ByteRange, Group, Listing, suffix_of
from maejax.data.tables import TABLE_SUFFIXES, holds_images, table_files
from maejax.errors import InputError

_PACKED = r"t(?:gz|bz2?|xz|zst)|tar\.(?:gz|bz2|xz|zst)"
PACKED = re.compile(rf"\.({_PACKED})$", re.IGNORECASE)  # a shard that must be unpacked to be read
SHARD = re.compile(rf"\.(tar|{_PACKED})$", re.IGNORECASE)
_OURS = {"index.json", "pack.jsonl", "bands.txt", *LABEL_FILES}  # are read beside shards
_NO_IMAGES = (*TABLE_SUFFIXES, ".npz", ".zip", ".tar")


class _Folder(NamedTuple):
    """A folder, its path below the first one ("" or with a slash at its end), and the names of its files."""

    path: str
    below: str
    files: list[str]
    circle: bool = False  # is a link to a folder above it


def contents(folder: Path, notes: list[str]) -> list[Path]:
    """Return what a folder stands for: its tar shards, else its tables with images, else itself for images.

    What it holds besides goes to `notes`. Raises InputError if it holds shards and folders of images.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return table_files(folder)
    top = next(_walk(str(folder)))
    shards = [name for name in top.files if SHARD.search(name)]
    if shards:
        images = [name for name in top.files if suffix_of(name) in IMAGE_SUFFIXES]
        found = next((f.path for f in _walk(str(folder)) if f.below and _holds_image(f)), "")
        if found or len(images) > len(shards):
            raise InputError(
                f"{folder}: holds tar shards ({shards[0]}) and images ({found or images[0]}); to use the "
                f"shards give '{folder}/*{suffix_of(shards[0])}', to use the images move the shards elsewhere"
            )
        rest = [name for name in top.files if name not in {*shards, *_OURS}]
        if rest:
            notes.append(f"{folder}: {len(rest)} left out: files beside the tar shards; the first is {rest[0]}")
        return [folder / name for name in shards]
    tables = table_files(folder)
    if tables and (holds_images(tables[0]) or not any(map(_holds_image, _walk(str(folder))))):
        return tables
    return [folder]


def in_folder(root: Path) -> Listing:
    """List the images under a folder, by path, with their labels; `Group` says what belongs together.

    Raises InputError if a folder may not be read, or its folders are splits of a data set.
    """
    listing, prefix = Listing(), "" if root == Path() else f"{root}/"
    parts: set[str] = set()  # img2dataset numbers its folders and puts statistics beside each: they are no classes
    for folder in _walk(str(root)):
        group = Group(listing, prefix)
        if folder.circle:
            listing.leave_out("links that lead back to a folder above them", folder.path)
        for name in folder.files:
            path = prefix + folder.below + name
            group.add(folder.below + name, ByteRange(path, 0, -1), None)
            if suffix_of(name) in _NO_IMAGES or SHARD.search(name):
                listing.leave_out("archives or tables among images", path)
            if name.endswith("_stats.json") and not folder.below:
                parts.add(name.removesuffix("_stats.json"))
        group.done()
    folders = {sample.folder for sample in listing.samples}
    if splits := class_of_folders(folders)[2]:
        place = root / os.path.commonpath(folders)
        which = f"give one of them, as {place / splits[-1]}, or several as '{place}/{{{','.join(splits)}}}'"
        raise InputError(f"{root}: holds the splits {', '.join(splits)} of a data set; {which}")
    if parts:
        listing.samples = [s._replace(folder="" if s.folder in parts else s.folder) for s in listing.samples]
    if not listing.samples:
        listing.problems.append(f"{root}: holds no image")
    return listing


def find_parts(root: Path) -> tuple[Path, Path | None]:
    """Return the folders of training and validation that a folder holds, by their names; itself and None without them.

    They may lie in a single folder below it, as in an archive that was unpacked.
    """
    place = root
    for _ in range(4):
        below = {path.name.lower(): path for path in place.iterdir() if path.is_dir()} if place.is_dir() else {}
        train = [path for name, path in below.items() if name in TRAINING]
        if train and class_of_folders(below)[2]:
            return train[0], next((path for name, path in sorted(below.items()) if name in VALIDATION), None)
        if len(below) != 1:
            break
        (place,) = below.values()
    return root, None


def _walk(path: str, below: str = "", above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[_Folder]:
    """Yield a folder and all below it, sorted and without hidden ones; raises InputError if one cannot be read."""
    try:
        state = Path(path).stat()
        with os.scandir(path) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        remedy = "make it readable, or move it elsewhere"
        raise InputError(f"{path}: the folder cannot be read: {error.strerror}; {remedy}") from None
    identity = (state.st_dev, state.st_ino)
    if identity in above:
        yield _Folder(path, below, [], circle=True)
        return
    yield _Folder(path, below, [name for name, is_folder in found if not is_folder])
    for name, is_folder in found:
        if is_folder and name != "__MACOSX":
            yield from _walk(f"{path}/{name}", f"{below}{name}/", above | {identity})


def _holds_image(folder: _Folder) -> bool:
    return any(suffix_of(name) in IMAGE_SUFFIXES for name in folder.files)
