"""Shards that are read from front to back while they arrive."""

import atexit
import itertools
import json
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maejax.data.fill import Place
from maejax.data.listing import along_tar
from maejax.errors import FetchError, FormatError, InputError
from maejax.storage.read import read_address
from maejax.storage.redact import redact
from maejax.storage.retry import RetryPolicy
from maejax.storage.spool import Spool, kept_file, remove_leftovers, stem_of

PARALLEL = 8  # shards fetched at a time where all are wanted
PROBED, PROBED_IMAGES = 8, 100  # shards, and images of each, that are tried before training
PROBING = RetryPolicy(connect=5, stall=10, total=10)


class Item(NamedTuple):
    """An image of a shard: where it lies or its pixels, its class (-1: none), its name in messages."""

    image: Place | np.ndarray
    label: int
    key: str


@dataclass(frozen=True)
class Remote:
    """A tar shard that must be fetched or unpacked. `title` begins the keys of its images, `stem` its local file."""

    address: str
    name: str
    title: str
    stem: str

    def open(self, folder: Path, keep: bool, patience: RetryPolicy) -> "Arriving":
        """Start to fetch it into `folder`, where it stays if `keep`."""
        return Arriving(self, Spool(self.address, folder, self.stem, keep=keep, policy=patience))

    def fetch(self, folder: Path, patience: RetryPolicy) -> Path:
        """Fetch all of it and return the local file; raises FetchError."""
        spool = Spool(self.address, folder, self.stem, keep=True, policy=patience)
        try:
            spool.wait(1 << 62)
        finally:
            spool.close()
        path = kept_file(folder, self.stem)
        if path is None:
            raise FetchError(f"{folder}: the fetched file is gone")
        return path


class Arriving:
    """A shard that is being fetched."""

    def __init__(self, shard: Remote, spool: Spool):
        self._shard, self._spool = shard, spool

    @property
    def done(self) -> bool:
        """Whether no more of it will come."""
        return self._spool.done

    def windows(self, sizes: Iterator[int]) -> Iterator[list[Item]]:
        """Yield its images in groups of these sizes as they arrive; raises FormatError and FetchError at its damage."""
        path, window, size = str(self._spool.path), [], next(sizes)
        failure: Exception | None = None
        try:
            for sample in along_tar(self._spool.path, self._shard.title, self._spool.wait):
                label = -1 if sample.label is None else sample.label
                window.append(Item(Place(path, sample.offset, sample.size), label, sample.key))
                if len(window) == size:
                    yield window
                    window, size = [], next(sizes)
        except (FormatError, OSError) as error:
            failure = error
        if window:
            yield window
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Stop fetching, and remove what need not stay."""
        self._spool.close()


@dataclass(frozen=True, eq=False)
class Here:
    """Local images that need no fetching, as a shard, closed or open."""

    name: str
    items: Sequence[Item]
    done: bool = True

    def open(self, folder: Path, keep: bool, patience: RetryPolicy) -> "Here":
        """There is nothing to start."""
        return self

    def windows(self, sizes: Iterator[int]) -> Iterator[list[Item]]:
        """Yield its images in groups of these sizes."""
        start = 0
        while start < len(self.items):
            end = start + next(sizes)
            yield list(self.items[start:end])
            start = end

    def close(self) -> None:
        """There is nothing to close."""


@dataclass(eq=False)
class Stream:
    """Images that are read shard by shard: see `Lanes` for their order.

    `folder` holds what is fetched; with `keep` it stays there for later epochs and runs. `total` is the number of
    images where an index.json beside the shards tells it, else None until every shard was read once; `classes` come
    from there too, else (). `lost` is what could not be read when the stream was opened.
    """

    shards: Sequence[Remote | Here]
    folder: Path
    keep: bool
    patience: RetryPolicy
    total: int | None = None
    classes: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)

    def learn(self, number: int, size: int) -> None:
        """Note how many images a shard had; when that is known of all of them, so is `total`."""
        self._sizes[number] = size
        if len(self._sizes) == len(self.shards):
            self.total = sum(self._sizes.values())

    def key(self, i: int) -> str:
        """Name the image of number i, which holds that of its shard and its place there."""
        return f"{self.shards[i >> 32].name}, image {i & 0xFFFFFFFF}"

    def open(self, number: int) -> Arriving | Here:
        """Start to read a shard by its number, 0 .. len(shards) - 1."""
        return self.shards[number].open(self.folder, self.keep, self.patience)


def first_images(stream: Stream, reasons: list[str]) -> Iterator[tuple[str, Place | np.ndarray]]:
    """Yield the first images, by key, of the first shards, to see whether anything there can be used.

    It asks for all these shards at once and gives up early. Why a shard has no image is appended to `reasons`.
    """
    shards = stream.shards[:PROBED]
    opened = [shard.open(stream.folder, stream.keep, PROBING) for shard in shards]
    try:
        for shard, reading in zip(shards, opened, strict=True):
            before = len(reasons)
            try:
                for item in itertools.chain.from_iterable(
                    itertools.islice(reading.windows(itertools.repeat(1)), PROBED_IMAGES)
                ):
                    yield item.key, item.image
            except (FormatError, FetchError) as error:
                reasons.append(f"{shard.name}: {error}")
            else:
                if len(reasons) == before:
                    reasons.append(f"{shard.name}: holds no image")
    finally:
        for reading in opened:
            reading.close()


def name_shards(addresses: Sequence[str]) -> list[Remote]:
    """Name the shards of addresses: in messages, in the keys of their images, in the folder where they are kept."""
    names = [redact(address) for address in addresses]
    unique = len(set(names)) == len(set(addresses))  # else two shards would share a file
    titles = [name if name.startswith("pipe:") else name.partition("?")[0].rpartition("/")[2] for name in names]
    count = Counter(titles)
    return [
        Remote(address, name, title if count[title] == 1 else name, stem_of(address, with_secrets=not unique))
        for address, name, title in zip(addresses, names, titles, strict=True)
    ]


def open_folder(cache_dir: str) -> Path:
    """Return the folder for what is fetched: `cache_dir`, or a temporary one that goes when this process ends."""
    if cache_dir:
        folder = Path(cache_dir).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--cache-dir {cache_dir}: {error.strerror}; give a folder that can be written") from None
        remove_leftovers(folder)
        return folder
    folder = Path(tempfile.mkdtemp(prefix="maejax-shards-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def fetch_all(
    shards: Sequence[Remote], folder: Path, patience: RetryPolicy
) -> tuple[list[tuple[Path, str]], dict[str, str]]:
    """Fetch shards to local files: (path, title) of each that could be had, and why the others, by name, could not."""
    fetched: list[tuple[Path, str]] = []
    lost: dict[str, str] = {}

    def fetch(shard: Remote) -> Path | FetchError:
        try:
            return shard.fetch(folder, patience)
        except FetchError as error:
            return error

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="maejax-fetch") as executor:
        for shard, result in zip(shards, executor.map(fetch, shards), strict=True):
            if isinstance(result, FetchError):
                lost[shard.name] = str(result)
            else:
                fetched.append((result, shard.title))
    return fetched, lost


def read_index(addresses: Sequence[str]) -> tuple[int | None, tuple[str, ...]]:
    """Read what the index.json beside shards says of them: how many images they hold, and the names of the classes.

    (None, ()) where there is none beside each of them, or it does not name them all.
    """
    folders: dict[str, set[str]] = {}
    for address in addresses:
        folder, _, name = address.rpartition("/")
        folders.setdefault(folder, set()).add(name)
    if len(folders) > 4 or any(address.startswith("pipe:") or "?" in address for address in addresses):
        return None, ()
    total, classes = 0, ()
    for folder, names in folders.items():
        try:
            chunks = read_address(f"{folder}/index.json", RetryPolicy(connect=5, stall=5, total=5), threading.Event())
            index = json.loads(b"".join(chunks))
            samples = {entry["name"]: int(entry["samples"]) for entry in index["shards"]}
            total += sum(samples[name] for name in names)
            classes = tuple(map(str, index["classes"]))
        except (FetchError, ValueError, KeyError, TypeError):  # somebody else's index.json, or none
            return None, ()
    return total, classes
