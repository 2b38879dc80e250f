"""The order of a stream: lanes that read shards in parallel."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial

import numpy as np

from maejax.data.batch_plan import BatchConfig, BatchPlan, Position
from maejax.data.faults import Faults
from maejax.data.fill import RowSpec
from maejax.data.listing import Sample
from maejax.data.order import epoch_order, window_order
from maejax.data.stream import OpenShard, Stream
from maejax.errors import FetchError, FormatError, InputError

LANES = 64
LEAST, MOST = 256, 4096  # images in a window


class Lanes:
    """Plans batches of a stream, one after the other.

    The shards of a run form an endless sequence: a permutation of all shards for epoch 0, one for epoch 1, and so on.
    Lane l of L reads every L-th of them, starting with the l-th, from front to back, and fetches the next one ahead. A
    batch takes the same number of images from each lane: its first rows from lane 0, the next from lane 1. So every
    image is read once an epoch. The order depends on the seed, the batch size and the shards alone, not on hosts,
    workers or the network. L is the largest number that divides the images of a batch, at most `LANES` and at most the
    number of shards. A process reads only the lanes of its rows.

    Within a shard, windows of up to `MOST` consecutive images are shuffled: for most shards the whole of them. In the
    first shard of a lane windows double from `LEAST` on, so that a run starts before whole shards are here.
    """

    def __init__(self, stream: Stream, config: BatchConfig, faults: Faults):
        self.stream, self.config, self.faults = stream, config, faults
        images, rows = config.batch_size // config.repeats, config.rows
        most = min(LANES, len(stream.shards))
        self.count = next(number for number in range(most, 0, -1) if images % number == 0)
        self.share = config.batch_size // self.count  # rows of a lane in a batch
        self.mine = range(rows.start // self.share, -(-rows.stop // self.share))
        self.order = lru_cache(maxsize=4)(partial(epoch_order, len(stream.shards), config.seed))
        self.shape = {"lanes": self.count, "shards": len(stream.shards), "images": images}

    @contextmanager
    def plans(self, start: int, stop: int | None, position: Position | None) -> Iterator[Iterator[BatchPlan]]:
        """Open the plans of batches `start` .. `stop` (None: no end); raises InputError if `position` does not fit."""
        if start and position is None:
            raise InputError(f"a stream cannot start at step {start}: the position it had there was not kept")
        at = {} if position is None else self._check(position)
        lanes = [_Lane(self, number, *at.get(str(number), (0, 0))) for number in self.mine]
        try:
            yield (self._plan(step, lanes) for step in (itertools.count(start) if stop is None else range(start, stop)))
        finally:
            for lane in lanes:
                lane.close()

    def _plan(self, step: int, lanes: "Sequence[_Lane]") -> BatchPlan:
        for lane in lanes:
            lane.look_ahead()
        mine, repeats = self.config.rows, self.config.repeats
        index, labels = np.full(len(mine), -1, np.int64), np.full(len(mine), -1, np.int32)
        before = step * self.config.batch_size + mine.start
        specs: list[RowSpec] = []
        for lane in lanes:
            first = lane.number * self.share - mine.start
            for image in range(first, first + self.share, repeats):
                number, sample = lane.take()
                for row in range(max(image, 0), min(image + repeats, len(mine))):
                    index[row], labels[row] = number, sample.label
                    specs.append(RowSpec(row, before + row, number, sample.image, sample.key))
        position = {**self.shape, "at": {str(lane.number): [lane.shard, lane.offset] for lane in lanes}}
        release = [close for lane in lanes for close in lane.retired]
        for lane in lanes:
            lane.retired = []
        return BatchPlan(index, labels, specs, position, release)

    def _check(self, position: Position) -> dict[str, list[int]]:
        shape = {name: position.get(name) for name in self.shape}
        missing = [number for number in self.mine if str(number) not in position["at"]]
        if shape != self.shape or missing:
            raise InputError(
                f"the position in the stream is of another run: it has {shape}, this one {self.shape}; "
                "give the same shards and batch size, or start a new run"
            )
        return position["at"]


class _Lane:
    """One lane: `shard` counts the shards it finished, `offset` the images taken from the present one."""

    def __init__(self, lanes: Lanes, number: int, shard: int, offset: int):
        self._lanes, self.number, self.shard, self.offset = lanes, number, shard, offset
        self.retired: list[Callable[[], None]] = []
        self._current = self._open(shard)
        self._next: tuple[int, OpenShard] | None = None
        self._images = self._read(offset)

    def look_ahead(self) -> None:
        if self._next is None and self._current.done:
            self._next = self._following(), self._open(self._following())

    def take(self) -> tuple[int, Sample]:
        """Return the next image and its number; waits until it is here."""
        while True:
            try:
                image = next(self._images)
            except StopIteration:
                self._advance("holds no image")
            except (FormatError, FetchError) as error:
                self._lanes.faults.lost_shard(self._name(), str(error))
                self._advance(str(error))
            else:
                if not self.offset:
                    self._lanes.stream.revive(self._number(self.shard))
                self.offset += 1
                return image

    def close(self) -> None:
        for close in [*self.retired, self._current.close, *([self._next[1].close] if self._next else [])]:
            close()

    def _advance(self, why: str) -> None:
        if self.offset == 0:
            self._lanes.stream.bury(self._number(self.shard), self._epoch(self.shard), why)
        self.retired.append(self._current.close)
        self.shard, self.offset = self._following(), 0
        ahead, self._next = self._next, None
        if ahead is not None and ahead[0] != self.shard:  # failed elsewhere since it was opened
            self.retired.append(ahead[1].close)
            ahead = None
        self._current = self._open(self.shard) if ahead is None else ahead[1]
        self._images = self._read(0)

    def _following(self) -> int:
        shard = self.shard + 1
        while self._lanes.stream.rests(self._number(shard), self._epoch(shard)):
            shard += 1
        return shard

    def _epoch(self, shard: int) -> int:
        return self._place(shard) // len(self._lanes.stream.shards)

    def _read(self, skip: int) -> Iterator[tuple[int, Sample]]:
        lanes, number, done = self._lanes, self._number(self.shard), 0
        sizes = itertools.repeat(MOST) if self.shard else (min(MOST, LEAST << n) for n in itertools.count())
        for window, items in enumerate(self._current.windows(sizes)):
            order = window_order(len(items), lanes.config.seed, self._place(self.shard), window).tolist()
            for i in order[max(0, skip - done) :]:
                yield (number << 32) + done + i, items[i]
            done += len(items)
        lanes.stream.learn(number, done)

    def _place(self, shard: int) -> int:
        """Return the place of a shard of this lane in the endless sequence of shards."""
        return self.number + shard * self._lanes.count

    def _number(self, shard: int) -> int:
        epoch, within = divmod(self._place(shard), len(self._lanes.stream.shards))
        return int(self._lanes.order(epoch)[within])

    def _name(self) -> str:
        return self._lanes.stream.shards[self._number(self.shard)].name

    def _open(self, shard: int) -> OpenShard:
        return self._lanes.stream.open(self._number(shard))


def merge_positions(positions: Sequence[Position]) -> Position:
    """Merge the positions of several processes, each of its own lanes."""
    return {**positions[0], "at": {lane: at for position in positions for lane, at in position["at"].items()}}
