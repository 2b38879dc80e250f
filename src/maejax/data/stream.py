"""Shards that are read from front to back while they arrive from elsewhere."""

import atexit
import contextlib
import fcntl
import itertools
import json
import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maejax.data.form import Form
from maejax.data.listing import LATE, ByteRange, Listing, Sample, along_tar
from maejax.errors import FetchError, FormatError, InputError
from maejax.storage.read import read_address
from maejax.storage.redact import redact
from maejax.storage.retry import RetryPolicy
from maejax.storage.spool import Spool, kept_file, remove_leftovers, stem_of

_log = logging.getLogger("maejax.data")
TEMPORARY = "maejax-shards-"
PARALLEL = 8  # shards fetched at a time where all are wanted
PROBED, PROBED_IMAGES = 8, 100  # shards, and images of each, that are tried before training
PROBING = RetryPolicy(connect=5, stall=10, total=10)


@dataclass(frozen=True)
class RemoteShard:
    """A tar shard that must be fetched or unpacked. `title` begins the keys of its images, `stem` its local file."""

    address: str
    name: str
    title: str
    stem: str


@dataclass(frozen=True, eq=False)
class LocalShard:
    """Local images that need no fetching, as a shard."""

    name: str
    samples: Sequence[Sample]


class OpenShard:
    """A shard that is being read; `spool` is what fetches it, None if its samples are here."""

    def __init__(self, samples: Iterator[Sample], spool: Spool | None = None):
        self._samples, self._spool = samples, spool

    @property
    def done(self) -> bool:
        """True once all of it has arrived, or no more will."""
        return self._spool is None or self._spool.done

    def windows(self, sizes: Iterator[int]) -> Iterator[list[Sample]]:
        """Yield its samples in groups of these sizes as they arrive; raises FormatError and FetchError at damage."""
        window, size = [], next(sizes)
        try:
            for sample in self._samples:
                window.append(sample)
                if len(window) == size:
                    yield window
                    window, size = [], next(sizes)
        except (FormatError, OSError):
            if window:
                yield window
            raise
        if window:
            yield window

    def close(self) -> None:
        """Stop fetching, close the file, and remove it unless it is kept."""
        if isinstance(self._samples, Generator):
            self._samples.close()
        if self._spool is not None:
            self._spool.close()


@dataclass(eq=False)
class Stream:
    """Images that are read shard by shard: see `Lanes` for their order.

    `folder` holds the fetched files; with `keep` they stay there for later epochs and runs. `total` is the number of
    images by the index.json beside the shards; without one it is None until every shard was read once. `classes` come
    from there too, else (). `lost` maps the shards that could not be read at opening to the reason. `unlabelled` says
    why images have no number that have a label, "" while there is none. `form` is how images become pixels,
    `names` are those of the bands, and `seen` the first images, so that they need not be fetched twice.
    """

    shards: list[RemoteShard | LocalShard]
    folder: Path
    keep: bool
    patience: RetryPolicy
    total: int | None = None
    classes: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    unlabelled: str = ""
    form: Form = field(default_factory=Form)
    names: tuple[str, ...] = ()
    seen: list[tuple[str, bytes | np.ndarray]] = field(default_factory=list)
    _sizes: dict[int, int] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)  # what the log has on images that are left out
    _dead: dict[int, tuple[int, int]] = field(default_factory=dict)  # by shard: failures, epoch of the next try

    @property
    def size(self) -> str:
        """How much it holds, in words, where the number of images is not known."""
        return f"{len(self.shards)} shards"

    def learn(self, number: int, size: int) -> None:
        """Note how many images a shard had; once all shards were noted, `total` is known."""
        self._sizes[number] = size
        if len(self._sizes) == len(self.shards):
            self.total = sum(self._sizes.values())

    def bury(self, number: int, epoch: int, why: str) -> None:
        """Note that a shard gave no image in an epoch: it is tried again after 1, 2, 4, 8, ... epochs.

        Raises InputError if no other shard gives any.
        """
        failures, _ = self._dead.get(number, (0, 0))
        self._dead[number] = (failures + 1, epoch + 1 + 2**failures)
        if len(self._dead) == len(self.shards):
            name = self.shards[number].name
            raise InputError(f"no image in any of {len(self.shards)} shards, such as {name}: {why}; check the shards")

    def revive(self, number: int) -> None:
        """Note that a shard gives images."""
        self._dead.pop(number, None)

    def rests(self, number: int, epoch: int) -> bool:
        """Return whether a shard that gave nothing is left alone in an epoch."""
        return epoch < self._dead.get(number, (0, 0))[1]

    def key(self, i: int) -> str:
        """Name image i, whose number holds that of its shard and its place there."""
        return f"{self.shards[i >> 32].name}, image {i & 0xFFFFFFFF}"

    def open(self, number: int, patience: RetryPolicy | None = None) -> OpenShard:
        """Start to read a shard by its number, 0 .. len(shards) - 1."""
        shard = self.shards[number]
        if isinstance(shard, LocalShard):
            return OpenShard(iter(shard.samples))
        patience = patience or (PROBING if number in self._dead else self.patience)
        spool = Spool(shard.address, self.folder, shard.stem, keep=self.keep, policy=patience)
        return OpenShard(
            self._numbered(along_tar(spool.path, shard.title, spool.wait, found := Listing()), found), spool
        )

    def _numbered(self, samples: Iterator[Sample], found: Listing) -> Iterator[Sample]:
        """Yield samples with the numbers of their classes, as far as these are known; tell what is left out."""
        number: dict[int | str, int] = {name: i for i, name in enumerate(self.classes)}
        for sample in samples:
            label = sample.label
            if isinstance(label, str) and label not in number:
                self.unlabelled = (
                    f"{sample.key} has the class {label!r}, and no index.json beside the shards numbers it"
                )
            elif label == -1:
                label = next((part for part in sample.folder.split("/") if part in number), -1)
            yield sample._replace(label=label if isinstance(label, int) else number.get(label, -1))
        if LATE in found.left_out:
            self.unlabelled = f"{found.left_out[LATE][1]} comes after its image, not beside it"
        for sentence in found.sentences():
            what = sentence.partition(": ")[2].partition(";")[0]
            if what not in self._told:
                _log.warning("%s", sentence)
            self._told.add(what)


def first_images(stream: Stream, reasons: list[str]) -> Iterator[tuple[str, ByteRange | np.ndarray]]:
    """Yield key and image of the first images of the first shards, with little patience; failures go to `reasons`."""
    opened = [stream.open(number, PROBING) for number in range(min(PROBED, len(stream.shards)))]
    try:
        for shard, reading in zip(stream.shards, opened, strict=False):
            before = len(reasons)
            try:
                for (sample,) in itertools.islice(reading.windows(itertools.repeat(1)), PROBED_IMAGES):
                    yield sample.key, sample.image
            except (FormatError, FetchError) as error:
                reasons.append(f"{shard.name}: {error}")
            else:
                reasons += [f"{shard.name}: holds no image"] if len(reasons) == before else []
    finally:
        for reading in opened:
            reading.close()


def open_shards(
    addresses: Sequence[str], cache_dir: str, patience: RetryPolicy | None, chosen: range | None = None
) -> Stream:
    """Open the tar shards of addresses, or those of the numbers `chosen`, as a stream.

    It keeps them in `cache_dir` if that is given.
    """
    names = [redact(address) for address in addresses]
    same = len(set(names)) < len(set(addresses))  # without their secrets: two shards would share a file
    seen = Counter[str]()
    for i, name in enumerate(names):  # messages and counts tell shards apart by their names
        seen[name] += 1
        names[i] = f"{name} ({seen[name]})" if seen[name] > 1 else name
    titles = [name if name.startswith("pipe:") else name.partition("?")[0].rpartition("/")[2] for name in names]
    count, shards = Counter(titles), []
    for i in range(len(addresses)) if chosen is None else chosen:
        title = titles[i] if count[titles[i]] == 1 else names[i]
        shards.append(RemoteShard(addresses[i], names[i], title, stem_of(addresses[i], with_secrets=same)))
    return Stream(shards, _open_folder(cache_dir), keep=bool(cache_dir), patience=patience or RetryPolicy())


def _open_folder(cache_dir: str) -> Path:
    """Return the folder for fetched files: `cache_dir`, or a temporary one that is removed when this process ends."""
    if not cache_dir:
        _remove_abandoned()
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)  # as long as this process lives
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
    folder = Path(cache_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--cache-dir {cache_dir}: {error.strerror}; give a folder that can be written") from None
    remove_leftovers(folder)
    return folder


def _remove_abandoned() -> None:
    """Remove the temporary folders of processes that were killed: nobody holds their lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):  # somebody else's, or held
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - folder.stat().st_mtime > 60:  # else it may have been made just now
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def fetch_all(stream: Stream) -> tuple[list[tuple[Path, RemoteShard]], dict[str, str]]:
    """Fetch the shards to local files: path and shard of each fetched one, and the reason by name for each lost one."""
    remote = [shard for shard in stream.shards if isinstance(shard, RemoteShard)]

    def fetch(shard: RemoteShard) -> Path | FetchError:
        """Return the local file of a shard, or why there is none."""
        spool = Spool(shard.address, stream.folder, shard.stem, keep=True, policy=stream.patience)
        try:
            spool.wait(1 << 62)
        except FetchError as error:
            return error
        finally:
            spool.close()
        return kept_file(stream.folder, shard.stem) or FetchError(f"{stream.folder}: the fetched file is gone")

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="maejax-fetch") as executor:
        results = list(zip(remote, executor.map(fetch, remote), strict=True))
    fetched = [(result, shard) for shard, result in results if isinstance(result, Path)]
    return fetched, {shard.name: str(result) for shard, result in results if isinstance(result, FetchError)}


def read_index(addresses: Sequence[str]) -> tuple[int | None, tuple[str, ...]]:
    """Read the number of images and the classes from the index.json beside shards; (None, ()) if it lacks one."""
    folders: dict[str, set[str]] = {}
    for address in addresses:
        folder, _, name = address.rpartition("/")
        folders.setdefault(folder, set()).add(name)
    if len(folders) > 4 or any(address.startswith("pipe:") or "?" in address for address in addresses):
        return None, ()
    sizes, classes, patience = [], (), RetryPolicy(connect=5, stall=5, total=5)
    for folder, names in folders.items():
        try:
            index = json.loads(b"".join(read_address(f"{folder}/index.json", patience)))
            samples = {entry["name"]: entry.get("samples") for entry in index["shards"]}
            sizes += [samples[name] for name in names]
            classes = tuple(map(str, index["classes"]))
        except (FetchError, ValueError, KeyError, TypeError, AttributeError):  # somebody else's index.json, or none
            return None, ()
    return (sum(sizes) if all(isinstance(size, int) for size in sizes) else None), classes
