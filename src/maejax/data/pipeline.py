"""Batches of a run: the same for any number of processes and threads."""

import contextlib
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from maejax.data.augment import Size, Transform
from maejax.data.batch_plan import Layout, Numbered
from maejax.data.decode import decode
from maejax.data.faults import Faults
from maejax.data.fill import Fault, Filling, Place, Row, fill
from maejax.data.lanes import Lanes
from maejax.data.sources import Source
from maejax.data.stream import Stream, first_images
from maejax.data.workers import Workers, describe_workers, open_workers
from maejax.errors import InputError, UnreadableImage

AHEAD = 2  # batches prepared beyond the one in use


class Batch(NamedTuple):
    """The rows of a global batch that belong to one process.

    `images` uint8 [B, H, W, C]; `labels` int32 [B], -1 where there is none; `valid` bool [B], False for rows that no
    image fills, which are zeros; `index` int64 [B], the image's number in the source, -1 for padding. In a stream it is
    shard * 2**32 + the image's number in the shard.
    """

    images: Any  # arrays of NumPy, or of JAX once they are on devices
    labels: Any
    valid: Any
    index: Any


class Loader:
    """Batches of a source or a stream.

    Training (`shuffle`) sees an endless sequence of epochs. Of a source each is a permutation of the whole; batch
    `step` is positions step * B .. (step + 1) * B of it, with B = `batch_size`, which counts the rows of all processes;
    process i of `process_count` has the i-th part. Of a stream it is as `Lanes` says. Evaluation is one pass in the
    order of the source, and its last batch is padded. Each image enters `repeats` times, one after the other, augmented
    differently. What a batch contains depends on the arguments and its number alone, never on `workers`, the number of
    cores that prepare batches: 0 is the calling thread, up to 16 are threads, more are processes of up to 16 threads
    each, which write into shared memory. `processes` sets their number, for tests; 0 is none.

    `steps` is the number of batches in a pass, the same in every process; None for a stream whose size is not known.
    `faults` says what may be wrong and counts it: the rows of a bad image are zeros and not valid.

    Raises InputError where `batch_size` does not divide by `repeats` or `process_count`, where a stream is to be
    evaluated, and, while batches are made, where more is wrong with the data than `faults` allows.
    """

    def __init__(
        self,
        source: Source | Stream,
        transform: Transform,
        *,
        batch_size: int,
        channels: int,
        size: Size,
        seed: int = 0,
        shuffle: bool = True,
        repeats: int = 1,
        workers: int = 0,
        processes: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
        faults: Faults | None = None,
    ):
        for what, number in (("augment_repeats", repeats), ("the number of processes", process_count)):
            if batch_size < 1 or batch_size % number:
                below = max(batch_size // number, 1) * number
                raise InputError(f"a batch size of {batch_size} does not divide by {what}, {number}; take {below}")
        self.source = source
        self.batch_size = batch_size
        self.channels = channels
        self.size = size
        self.shuffle = shuffle
        self.workers = workers
        self.processes = processes
        self._ahead = AHEAD if workers else 0
        self.faults = Faults() if faults is None else faults
        self.steps = None if source.total is None else -(-source.total * repeats // batch_size)
        self._filling = Filling(transform, channels, seed, whole=repeats > 1)
        share = batch_size // process_count
        self._shape = (share, *size, channels)
        rows = range(process_index * share, (process_index + 1) * share)
        if isinstance(source, Source):
            self._layouts = Numbered(
                source, batch_size=batch_size, rows=rows, repeats=repeats, seed=seed, shuffle=shuffle
            )
        elif shuffle:
            self._layouts = Lanes(
                source, batch_size=batch_size, rows=rows, repeats=repeats, seed=seed, faults=self.faults
            )
        else:
            raise InputError("a stream cannot be evaluated in order; open it by open_source, which fetches all of it")
        self._position: dict[str, Any] | None = None
        for name, reason in source.lost.items():
            self.faults.lost_shard(name, reason)

    @property
    def footprint(self) -> str:
        """One sentence for the log: what prepares batches on this host, and the memory that they take at most."""
        return describe_workers(self.workers, self.processes, self._shape, self._ahead)

    @property
    def bad(self) -> dict[str, str]:
        """The key of each image that could not be read so far, and why."""
        return self.faults.bad

    @property
    def lost(self) -> dict[str, str]:
        """The name of each shard that could not be read to its end so far, and why."""
        return self.faults.lost

    def position(self) -> dict[str, Any] | None:
        """Say where a stream stands after the last batch that was yielded, as JSON holds it; None for a source.

        It covers the lanes that this process reads; the positions of several processes are merged by `merge_positions`.
        """
        return self._position

    def batch(self, step: int) -> Batch:
        """Return this process's rows of global batch `step` of a source; prepared in the calling thread."""
        if isinstance(self._layouts, Lanes):
            raise InputError("a stream has no batches by number; go through them by iterate")
        layout, images = self._layouts.layout(step), np.zeros(self._shape, np.uint8)
        return self._close(layout, images, fill(images, layout.rows, self._filling))

    def iterate(
        self, start: int = 0, stop: int | None = None, position: dict[str, Any] | None = None
    ) -> Generator[Batch, None, None]:
        """Yield batches `start` .. `stop`, preparing two ahead; without `stop`, a whole pass, or endless training.

        A stream that does not start at 0 needs the `position` it had there. The threads end with the iterator, also
        when it is closed early or forgotten. What goes wrong in one of them is raised here.
        """
        if stop is None and not self.shuffle:
            stop = self.steps
        with contextlib.ExitStack() as stack:
            if isinstance(self._layouts, Lanes):
                lanes = self._layouts.open(start, position)
                for lane in lanes:
                    stack.callback(lane.close)
                layouts = self._layouts.layouts(lanes, start, stop)
            else:
                layouts = self._layouts.layouts(start, stop)
            for layout, batch in stack.enter_context(contextlib.closing(self._batches(layouts))):
                self._position = layout.position
                for release in layout.release:
                    release()
                yield batch

    def _batches(self, layouts: Iterable[Layout]) -> Generator[tuple[Layout, Batch], None, None]:
        workers = open_workers(self.workers, self.processes, self._shape, self._filling, self._ahead)
        waiting: deque[tuple[Layout, np.ndarray, list[Future[list[Fault]]]]] = deque()
        try:
            for layout in layouts:
                waiting.append((layout, *workers.start(layout.rows)))
                if len(waiting) > self._ahead:
                    yield self._finish(workers, *waiting.popleft())
            while waiting:
                yield self._finish(workers, *waiting.popleft())
        finally:
            workers.close()

    def _finish(
        self, workers: Workers, layout: Layout, images: np.ndarray, pieces: list[Future[list[Fault]]]
    ) -> tuple[Layout, Batch]:
        faults = [fault for piece in pieces for fault in piece.result()]
        return layout, self._close(layout, workers.keep(images), faults)

    def _close(self, layout: Layout, images: np.ndarray, faults: Iterable[Fault]) -> Batch:
        """Mark the rows that have no image, and judge whether it is too much."""
        batch = Batch(images, layout.labels, layout.index >= 0, layout.index)
        self.faults.saw(len({row.index for row in layout.rows}), self.source.total)
        made: dict[int, Row] = {}
        for fault in faults:
            made = made or {row.row: row for row in layout.rows}
            batch.valid[fault.row] = False
            images[fault.row] = 0
            row = made[fault.row]
            shard = None if fault.file is None else layout.shard(row)
            if shard is not None:
                self.faults.lost_shard(shard, fault.reason)
            else:
                self.faults.bad_image(layout.key(row), fault.reason)
        return batch


def check_readable(source: Source | Stream, channels: int, at_most: int = 1000) -> None:
    """Try images from the front until one can be read; raises InputError where none of the first `at_most` can.

    Of a stream, the first shards are tried, with little patience.
    """
    reasons: list[str] = []
    what = "images and shards" if isinstance(source, Stream) else "images"
    if isinstance(source, Stream):
        tried = first_images(source, reasons)
    else:
        tried = ((source.keys[i], source.place(i)) for i in range(min(len(source), at_most)))
    for key, image in tried:
        try:
            decode(image.read() if isinstance(image, Place) else image, channels)
            return
        except (UnreadableImage, OSError) as error:
            reasons.append(f"{key}: {error}")
    raise InputError(f"none of {len(reasons)} {what} tried can be read; the first, {reasons[0]}; check the files")
