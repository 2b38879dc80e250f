"""What a batch will be made of, before any pixel is read; and that layout for a source that is read at random."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np

from maejax.data.fill import Row
from maejax.data.order import epoch_order
from maejax.data.sources import Source


@dataclass
class Layout:
    """The rows of a global batch that belong to one process, without their pixels.

    `index` is int64 [B], -1 for padding; `labels` int32 [B], -1 where there is none; `rows` says how the rows that an
    image fills are made. `key` names the image of a row, `shard` the shard that a file belongs to (None: the file is an
    image of its own). `position` is where a stream stands after this batch. `release` frees what only the batches up
    to this one read.
    """

    step: int
    index: np.ndarray
    labels: np.ndarray
    rows: list[Row]
    key: Callable[[Row], str]
    shard: Callable[[Row], str | None]
    position: dict[str, Any] | None = None
    release: list[Callable[[], None]] = field(default_factory=list)


class Numbered:
    """Lays out batches of a source that can be read at random, by their number.

    With `shuffle`, batch `step` is positions step * B .. (step + 1) * B of an endless sequence of epochs, each a
    permutation; else of one pass in the order of the source. `rows` are those of a global batch of `batch_size` that
    belong to this process.
    """

    def __init__(self, source: Source, *, batch_size: int, rows: range, repeats: int, seed: int, shuffle: bool):
        self.source = source
        self.batch_size = batch_size
        self.rows = rows
        self.repeats = repeats
        self.shuffle = shuffle
        self._order = lru_cache(maxsize=2)(partial(epoch_order, len(source), seed))  # a batch may span two epochs

    def layouts(self, start: int, stop: int | None) -> Iterator[Layout]:
        """Yield the layouts of batches `start` .. `stop`, for ever without `stop`."""
        for step in itertools.count(start) if stop is None else range(start, stop):
            yield self.layout(step)

    def layout(self, step: int) -> Layout:
        """Lay out batch `step`."""
        positions = step * self.batch_size + np.arange(self.rows.start, self.rows.stop)
        epochs, within = np.divmod(positions // self.repeats, len(self.source))
        if self.shuffle:
            index = np.empty(len(positions), np.int64)
            for epoch in np.unique(epochs).tolist():
                index[epochs == epoch] = self._order(epoch)[within[epochs == epoch]]
        else:
            index = np.where(epochs == 0, within, -1)
        labels = np.where(index >= 0, self.source.labels[index], -1).astype(np.int32)
        rows = [
            Row(row, position, i, self.source.place(i))
            for row, (position, i) in enumerate(zip(positions.tolist(), index.tolist(), strict=True))
            if i >= 0
        ]
        return Layout(step, index, labels, rows, self._key, self._shard)

    def _key(self, row: Row) -> str:
        return self.source.keys[row.index]

    def _shard(self, row: Row) -> str | None:
        return None if isinstance(row.image, np.ndarray) or row.image.size < 0 else row.image.path
