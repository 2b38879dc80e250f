"""The plan of a batch, before any pixel is read, and how to make it for a source that is read at random."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np

from maejax.data.fill import RowSpec
from maejax.data.order import epoch_order
from maejax.data.sources import Source
from maejax.errors import InputError

Position = dict[str, Any]  # where a stream stands, as JSON


@dataclass(frozen=True)
class BatchConfig:
    """How a source is cut into batches, and which rows of each belong to this process.

    `batch_size` counts the rows of all processes; process i of `process_count` has the i-th part. With `shuffle`,
    batches are an endless sequence of epochs, else one pass in order. Each image enters `repeats` times, one after the
    other. `seed` is that of the order and of the augmentation. Raises InputError if `batch_size` does not divide by
    `repeats` or `process_count`.
    """

    batch_size: int
    seed: int = 0
    shuffle: bool = True
    repeats: int = 1
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self):
        for what, number in (("augment_repeats", self.repeats), ("the number of processes", self.process_count)):
            if self.batch_size < 1 or self.batch_size % number:
                below = max(self.batch_size // number, 1) * number
                raise InputError(f"a batch size of {self.batch_size} does not divide by {what}, {number}; take {below}")

    @property
    def rows(self) -> range:
        """The rows of a global batch that belong to this process."""
        share = self.batch_size // self.process_count
        return range(self.process_index * share, (self.process_index + 1) * share)


@dataclass
class BatchPlan:
    """The rows of a global batch that belong to one process, without their pixels.

    `index` is int64 [B], -1 for padding; `labels` int32 [B], -1 if there is none; `rows` are those that an image
    fills. `position` is where a stream stands after this batch. `release` frees what only the batches up to it read.
    """

    index: np.ndarray
    labels: np.ndarray
    rows: list[RowSpec]
    position: Position | None = None
    release: list[Callable[[], None]] = field(default_factory=list)


class Numbered:
    """Plans batches of a source by number: of an endless sequence of permutations with `shuffle`, else of one pass."""

    def __init__(self, source: Source, config: BatchConfig):
        self.source, self.config = source, config
        self._order = lru_cache(maxsize=2)(partial(epoch_order, len(source), config.seed))  # two epochs in a batch

    def plans(self, start: int, stop: int | None, position: Position | None) -> nullcontext[Iterator[BatchPlan]]:
        """Open the plans of batches `start` .. `stop`, without end if that is None; `position` is for streams."""
        return nullcontext(map(self.plan, itertools.count(start) if stop is None else range(start, stop)))

    def plan(self, step: int) -> BatchPlan:
        """Plan batch `step`."""
        rows = self.config.rows
        positions = step * self.config.batch_size + np.arange(rows.start, rows.stop)
        epochs, within = np.divmod(positions // self.config.repeats, len(self.source))
        if self.config.shuffle:
            index = np.empty(len(positions), np.int64)
            for epoch in np.unique(epochs).tolist():
                index[epochs == epoch] = self._order(epoch)[within[epochs == epoch]]
        else:
            index = np.where(epochs == 0, within, -1)
        labels = np.where(index >= 0, self.source.labels[index], -1).astype(np.int32)
        specs = [
            RowSpec(row, position, i, self.source.stored(i), self.source.keys[i])
            for row, (position, i) in enumerate(zip(positions.tolist(), index.tolist(), strict=True))
            if i >= 0
        ]
        return BatchPlan(index, labels, specs)
