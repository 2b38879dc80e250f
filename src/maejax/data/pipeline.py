"""The order of a run and its batches: which image is where, the same for any number of processes and threads."""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from maejax.data.augment import Size, Transform
from maejax.data.decode import UnreadableImage, decode
from maejax.data.shards import DataError, Source

AHEAD = 2  # batches prepared beyond the one in use
_ORDER, _AUGMENT = 0, 1  # streams of random numbers

_log = logging.getLogger("maejax.data")


@dataclass
class Batch:
    """The rows of a global batch that belong to one process.

    `images` uint8 [B, H, W, C]; `labels` int32 [B], -1 where there is none; `valid` bool [B], False for rows that no
    image fills, which are zeros; `index` int64 [B], the image's number in the source, -1 for padding.
    """

    images: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    index: np.ndarray


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of n images in an epoch, a permutation of 0..n-1 as int64 [n].

    It sorts raw bits of Philox, whose streams are fixed for good; those of numpy's `permutation` are not.
    """
    return np.argsort(_philox(seed, _ORDER, epoch).random_raw(n), kind="stable")


def _philox(seed: int, stream: int, position: int) -> np.random.Philox:
    # Counter-based: every (seed, stream, position) has 2**64 blocks of its own, and none costs a warm-up.
    key = np.array([seed % 2**64, stream], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, position, 0, 0], np.uint64))


class Loader:
    """Batches of a source, by number.

    Training (`shuffle`) sees an endless sequence of epochs, each a permutation of the whole source; batch `step` is
    positions step * B .. (step + 1) * B of it, with B = `batch_size`, which counts the rows of all processes; process i
    of `process_count` has the i-th part. Evaluation is one pass in the order of the source, and its last batch is
    padded. Each image enters `repeats` times, one after the other, augmented differently. What a batch contains depends
    on the arguments and its number alone, never on `workers`, the number of threads that prepare batches (0: the
    calling thread).

    `steps` is the number of batches in a pass, the same in every process. `bad` maps the key of each image that could
    not be read so far to the reason; its rows are zeros and not valid, and the log names it once.

    Raises DataError where `batch_size` does not divide by `repeats` or `process_count`.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        batch_size: int,
        channels: int,
        size: Size,
        seed: int = 0,
        shuffle: bool = True,
        repeats: int = 1,
        workers: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        for what, number in (("augment_repeats", repeats), ("the number of processes", process_count)):
            if batch_size < 1 or batch_size % number:
                below = max(batch_size // number, 1) * number
                raise DataError(f"a batch size of {batch_size} does not divide by {what}, {number}; take {below}")
        self.source = source
        self.transform = transform
        self.batch_size = batch_size
        self.channels = channels
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.repeats = repeats
        self.workers = workers
        self.process_index = process_index
        self.process_count = process_count
        self.steps = -(-len(source) * repeats // batch_size)
        self.bad: dict[str, str] = {}
        self._bad_lock = threading.Lock()
        self._order = lru_cache(maxsize=2)(partial(epoch_order, len(source), seed))  # a batch may span two epochs

    def batch(self, step: int) -> Batch:
        """Return this process's rows of global batch `step`; prepared in the calling thread."""
        batch, positions = self._plan(step)
        self._fill(batch, positions, range(len(positions)))
        return batch

    def iterate(self, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """Yield batches `start` .. `stop`, preparing two ahead; without `stop`, a whole pass, or endless training.

        The threads end with the iterator, also when it is closed early or forgotten. What goes wrong in one of them
        (an OSError of the disk, say) is raised here.
        """
        if stop is None and not self.shuffle:
            stop = self.steps
        steps = itertools.count(start) if stop is None else range(start, stop)
        if not self.workers:
            yield from map(self.batch, steps)
            return
        executor = ThreadPoolExecutor(self.workers, thread_name_prefix="maejax-data")
        waiting: deque[tuple[Batch, list[Future[None]]]] = deque()
        try:
            for step in steps:
                waiting.append(self._submit(executor, step))
                if len(waiting) > AHEAD:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, executor: ThreadPoolExecutor, step: int) -> tuple[Batch, list[Future[None]]]:
        batch, positions = self._plan(step)
        # A few pieces per thread: one per image would cost tiny images more than their decoding.
        pieces = np.array_split(np.arange(len(positions)), min(len(positions), 4 * self.workers))
        return batch, [executor.submit(self._fill, batch, positions, piece.tolist()) for piece in pieces]

    def _plan(self, step: int) -> tuple[Batch, np.ndarray]:
        """Lay out a batch: everything but the pixels, and the position of each row in the endless sequence."""
        rows = self.batch_size // self.process_count
        positions = step * self.batch_size + self.process_index * rows + np.arange(rows)
        epochs, within = np.divmod(positions // self.repeats, len(self.source))
        if self.shuffle:
            index = np.empty(rows, np.int64)
            for epoch in np.unique(epochs).tolist():
                index[epochs == epoch] = self._order(epoch)[within[epochs == epoch]]
        else:
            index = np.where(epochs == 0, within, -1)
        # A new array every time: on CPU, JAX may use the memory of a batch as it is, long after the next was asked for.
        images = np.zeros((rows, *self.size, self.channels), np.uint8)
        labels = np.where(index >= 0, self.source.labels[index], -1).astype(np.int32)
        return Batch(images, labels, np.zeros(rows, bool), index), positions

    def _fill(self, batch: Batch, positions: np.ndarray, rows: Iterable[int]) -> None:
        last, image = -1, None
        for row in rows:
            index = int(batch.index[row])
            if index < 0:
                continue
            if index != last:  # repeats lie side by side and are decoded once
                last, image = index, self._read(index)
            if image is not None:
                rng = np.random.Generator(_philox(self.seed, _AUGMENT, int(positions[row])))
                batch.images[row] = self.transform(image, rng)
                batch.valid[row] = True

    def _read(self, index: int) -> np.ndarray | None:
        try:
            return decode(self.source.read(index), self.channels)
        except UnreadableImage as error:
            key = self.source.keys[index]
            with self._bad_lock:
                new = key not in self.bad
                self.bad[key] = str(error)
            if new:
                _log.warning("unreadable image %s: %s", key, error)
            return None


def _finished(batch: Batch, pieces: list[Future[None]]) -> Batch:
    for piece in pieces:
        piece.result()
    return batch


def check_readable(source: Source, channels: int, at_most: int = 1000) -> None:
    """Try images from the front until one can be read; raises DataError where none of the first `at_most` can."""
    reasons: list[str] = []
    for i in range(min(len(source), at_most)):
        try:
            decode(source.read(i), channels)
            return
        except (UnreadableImage, OSError) as error:
            reasons.append(str(error))
    raise DataError(
        f"none of {len(reasons)} images tried can be read; the first, {source.keys[0]}: {reasons[0]}; check the files"
    )
