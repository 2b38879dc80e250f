"""A source to be read once, from front to back, in pieces: shards elsewhere are fetched one ahead, and removed."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maejax.data.listing import IMAGE_SUFFIXES, Listing, in_tar
from maejax.data.part import take
from maejax.data.sources import Source, gather, labelled, open_local, places
from maejax.data.stream import RemoteShard, Stream, open_shards, read_index
from maejax.data.tables import TABLE_SUFFIXES
from maejax.errors import Failed, FetchError, InputError
from maejax.storage.redact import redact
from maejax.storage.spool import Spool, kept_file

# The variables of an engine: the number of a part, and how many there are.
ENGINES = {
    "slurm": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    "kubernetes": ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
}
TOGETHER = 64  # shards on this machine that are listed at a time: their keys lie in memory
NO_SHARDS = (*IMAGE_SUFFIXES, *TABLE_SUFFIXES, ".npz")


class Part(NamedTuple):
    """Part `number` of `count`, from 0."""

    number: int
    count: int

    def of(self, items: int) -> range:
        """Return the numbers of its items: in order, in shares that differ by one at most."""
        return range(self.number * items // self.count, (self.number + 1) * items // self.count)


WHOLE = Part(0, 1)


def read_part(text: str) -> Part:
    """Read `--part`: I/N, counted from 0, or ENGINE/N or ENGINE, whose variables say the rest.

    Raises InputError for another form, where the engine did not start this process, and for an array of some parts that
    does not say of how many.
    """
    first, _, count = text.partition("/")
    number = first
    if first in ENGINES:
        name, names = ENGINES[first][0], ENGINES[first][: 1 if count else 2]
        number, count = os.environ.get(name, ""), count or os.environ.get(ENGINES[first][1], "")
        if not (number.isdecimal() and count.isdecimal()):
            missing = " and ".join(each for each in names if not os.environ.get(each, "").isdecimal()) or "/N"
            raise InputError(f"--part {text}: {missing} is not set here; start an array of parts, or give --part I/N")
        last = os.environ.get("SLURM_ARRAY_TASK_MAX", "")
        if text == "slurm" and last.isdecimal() and int(last) != int(count) - 1:
            raise InputError(
                f"--part slurm: the array of this job does not run from 0 on without a gap (its last is {last} of "
                f"{count}); give --array=0-(N - 1) for N parts, or --part slurm/N for some of them"
            )
    if not (number.isdecimal() and count.isdecimal()):
        raise InputError(f"--part {text}: give I/N, such as 0/8, or {' or '.join(ENGINES)}")
    if not int(number) < int(count):
        raise InputError(f"--part {text}: part {number} of {count} is none; parts count from 0 to {int(count) - 1}")
    return Part(int(number), int(count))


@dataclass
class Pieces:
    """The pieces of a source, or of a part of it, in order.

    `local` is what lies on this machine: sources, or functions that open them. `shards` are those of `stream` that
    follow. `total` is the number of images, None if it is not known. `classes` are those of the index.json beside
    shards elsewhere, () without one. `identity` tells this source from others, whatever
    its part. `numbers` are the places among all shards of those that are pieces of their own.
    """

    local: list[Source | Callable[[], Source]]
    shards: list[RemoteShard] = field(default_factory=list)
    stream: Stream | None = None
    labels: str | Path | None = None
    total: int | None = None
    classes: tuple[str, ...] = ()
    identity: str = ""
    numbers: range = range(1)

    def __len__(self) -> int:
        return len(self.local) + len(self.shards)

    def chosen(self, numbers: Sequence[int]) -> "Pieces":
        """Return the pieces of these numbers, in order."""
        here = len(self.local)
        local, shards = (
            [self.local[i] for i in numbers if i < here],
            [self.shards[i - here] for i in numbers if i >= here],
        )
        return replace(self, local=local, shards=shards)

    @contextmanager
    def opened(self, first: int = 0) -> Iterator[Iterator[Source]]:
        """Open the pieces from a number on, within a `with`; a shard is there until the next one is asked for.

        The next raises Failed for a shard that cannot be fetched.
        """
        with ExitStack() as stack:
            yield self._each(first, stack)

    def _each(self, first: int, stack: ExitStack) -> Iterator[Source]:
        for piece in self.local[first:]:
            yield piece if isinstance(piece, Source) else piece()
        rest = self.shards[max(0, first - len(self.local)) :]
        ahead = [(shard, self._fetch(shard, stack)) for shard in rest[:1]]
        for following in [*rest[1:], None]:
            if not ahead:
                return
            (shard, spool), ahead = ahead[0], []
            if following is not None:
                ahead = [(following, self._fetch(following, stack))]
            yield self._source(shard, spool)
            spool.close()

    def _fetch(self, shard: RemoteShard, stack: ExitStack) -> Spool:
        assert self.stream is not None  # it has the shards
        spool = Spool(shard.address, self.stream.folder, shard.stem, keep=self.stream.keep, policy=self.stream.patience)
        stack.callback(spool.close)
        return spool

    def _source(self, shard: RemoteShard, spool: Spool) -> Source:
        """Wait for a shard and list it. Raises Failed if it does not come, InputError if it holds no image."""
        assert self.stream is not None
        try:
            spool.wait(1 << 62)
        except FetchError as error:
            raise Failed(f"{shard.name}: {error}; start the same command again") from None
        found = Listing()
        found.extend(in_tar(kept_file(self.stream.folder, shard.stem) or spool.path, shard.title, shard.name))
        source = labelled(gather([shard.name], 1, found), [], self.labels)
        if self.labels is None and not source.classes and 0 <= source.labels.max() < len(self.classes):
            source.classes = self.classes  # numbers, as the index names them
        return source


def open_pieces(spec: str, *, labels: str | Path | None = None, part: Part = WHOLE, cache_dir: str = "") -> Pieces:
    """Open a source in pieces, or a part of it.

    Parts are shares of the shards; where these are fewer, and all on this machine, shares of the images. Only the
    shards of the part are looked at. Raises InputError as `open_source`.
    """
    specs, local, addresses, notes = places(spec)
    if addresses or (are_shards(local) and len(local) >= part.count):
        return _open_shards(specs, local, addresses, notes, labels, part, cache_dir, together=True)
    source = open_local(specs, local, notes, labels)
    rows = part.of(len(source))
    identity = f"{_identity(local, [])} of {len(source)}, {source.keys[0]} to {source.keys[-1]}"
    piece = source if len(rows) == len(source) else take(source, np.arange(rows.start, rows.stop)) if rows else None
    return Pieces([piece] if piece else [], total=len(rows), identity=identity)


def open_each_shard(spec: str, *, labels: str | Path | None = None, part: Part = WHOLE) -> Pieces | None:
    """Open each shard of a source as a piece, or those of a part; None for a source that is no shards."""
    specs, local, addresses, notes = places(spec)
    if not are_shards(local):
        return None
    return _open_shards(specs, local, addresses, notes, labels, part, "", together=False)


def are_shards(paths: list[Path]) -> bool:
    """Return whether each of some local paths is a shard."""
    return not any(path.is_dir() or path.suffix.lower() in NO_SHARDS for path in paths)


def _identity(local: list[Path], addresses: list[str]) -> str:
    names = [redact(str(place)).rpartition("/")[2] for place in (*local, *addresses)]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]


def _open_shards(
    specs: list[str],
    local: list[Path],
    addresses: list[str],
    notes: list[str],
    labels: str | Path | None,
    part: Part,
    cache_dir: str,
    *,
    together: bool,
) -> Pieces:
    """Open the shards of a part: those on this machine `together`, as few sources, else each in its turn."""
    titles, chosen = Counter(path.name for path in local), part.of(len(local) + len(addresses))
    here, size = [local[i] for i in chosen if i < len(local)], TOGETHER if together else 1
    pieces = Pieces([], identity=_identity(local, addresses), numbers=chosen, labels=labels)
    groups = [here[i : i + size] for i in range(0, len(here), size)]
    pieces.local = [partial(open_local, specs, group, [], labels, titles) for group in groups]
    if together and len(groups) == 1:
        source = open_local(specs, here, notes, labels, titles)
        pieces.local, pieces.total = [source], None if addresses else len(source)
    elif not addresses:
        pieces.total = read_index([str(path.absolute()) for path in here])[0] if here else 0
    if addresses:
        there = range(max(chosen.start - len(local), 0), max(chosen.stop - len(local), 0))
        pieces.stream = open_shards(addresses, cache_dir, None, there)
        pieces.shards = pieces.stream.shards  # type: ignore[assignment]
        total, pieces.classes = read_index([shard.address for shard in pieces.stream.shards])  # type: ignore[union-attr]
        pieces.total = None if here else total
    return pieces
