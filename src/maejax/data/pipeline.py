"""Batches of a run: the same for any number of processes and threads."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import closing
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from maejax.data.arrays import read_pixels
from maejax.data.augment import Size, Transform, build_eval
from maejax.data.batch_plan import BatchConfig, BatchPlan, Numbered, Position
from maejax.data.faults import Faults
from maejax.data.fill import Fault, FillConfig, fill
from maejax.data.lanes import Lanes
from maejax.data.listing import ByteRange
from maejax.data.sources import Source
from maejax.data.stream import Stream, first_images
from maejax.data.workers import Workers, describe_workers, loader_processes
from maejax.errors import InputError, UnreadableImage

AHEAD = 2  # batches prepared beyond the one in use


class Batch(NamedTuple):
    """The rows of a global batch that belong to one process; a pytree, on the host and on devices.

    `images` [B, H, W, C] of the type of the source's form; `labels` int32 [B], -1 if there is none; `valid` bool [B],
    False for rows that no image fills, which are zeros; `index` int64 [B], the image's number in the source, -1 for
    padding. In a stream it is shard * 2**32 + the image's number in the shard.
    """

    images: Any  # arrays of NumPy, or of JAX once they are on devices
    labels: Any
    valid: Any
    index: Any


class Loader:
    """Batches of a source or a stream.

    Of a source each training epoch is a permutation of the whole; of a stream the order is that of `Lanes`. An
    evaluation is one pass in the order of the source, and its last batch is padded. `size` and `channels` are those of
    the images in a batch. `workers` is the number of cores that prepare batches: 0 is the calling thread, up to 16 are
    threads, more are processes of up to 16 threads each; in training of small images the first 16 are
    processes. It changes nothing in the batches.

    `steps` is the number of batches in a pass, the same in every process; None for a stream of unknown size. The rows
    of a bad image are zeros and not valid; `faults` counts them, `bad` and `lost` name them and shards with the reason.
    `footprint` is a sentence for the log on what prepares batches here, and the memory that they take at most.

    Raises InputError if a stream is to be evaluated, and if more is wrong with the data than `faults` allows.
    """

    def __init__(
        self,
        source: Source | Stream,
        transform: Transform,
        config: BatchConfig,
        *,
        size: Size,
        channels: int,
        workers: int = 0,
        faults: Faults | None = None,
    ):
        self.source, self.config = source, config
        self.workers, self.faults = workers, faults or Faults()
        self.bad, self.lost = self.faults.bad, self.faults.lost
        self.steps = None if source.total is None else -(-source.total * config.repeats // config.batch_size)
        self._ahead = AHEAD if workers else 0
        form = source.form._replace(channels=channels)
        self._fill = FillConfig(transform, form, config.seed, decode_whole=config.repeats > 1)
        self._shape = (len(config.rows), *size, channels)
        self._processes = loader_processes(workers, size, config.shuffle)
        self.footprint = describe_workers(workers, self._processes, self._shape, form.dtype, self._ahead)
        self._position: Position | None = None
        if isinstance(source, Source):
            self._plans = Numbered(source, config)
        elif config.shuffle:
            self._plans = Lanes(source, config, self.faults)
        else:
            raise InputError("a stream cannot be evaluated in order; open it by open_source, which fetches all of it")
        for name, reason in source.lost.items():
            self.faults.lost_shard(name, reason)

    def position(self) -> Position | None:
        """Return where this process stands in a stream after the last batch; see `merge_positions`."""
        return self._position

    def batch(self, step: int) -> Batch:
        """Return this process's rows of global batch `step` of a source; prepared in the calling thread."""
        if isinstance(self._plans, Lanes):
            raise InputError("a stream has no batches by number; go through them by iterate")
        plan, images = self._plans.plan(step), np.zeros(self._shape, self._fill.form.dtype)
        return self._close(plan, images, fill(images, plan.rows, self._fill))

    def iterate(
        self, start: int = 0, stop: int | None = None, position: Position | None = None
    ) -> Generator[Batch, None, None]:
        """Yield batches `start` .. `stop`, preparing two ahead; without `stop`, a whole pass, or endless training.

        A stream that does not start at 0 needs the `position` it had there. The threads end with the iterator, even if
        it is forgotten, and their errors are raised here.
        """
        if stop is None and not self.config.shuffle:
            stop = self.steps
        with self._plans.plans(start, stop, position) as plans, closing(self._batches(plans)) as batches:
            for plan, batch in batches:
                self._position = plan.position
                for release in plan.release:
                    release()
                yield batch

    def _batches(self, plans: Iterable[BatchPlan]) -> Generator[tuple[BatchPlan, Batch], None, None]:
        workers = Workers(self.workers, self._processes, self._shape, self._fill, self._ahead)
        waiting: deque[tuple[BatchPlan, np.ndarray, list[Future[list[Fault]]]]] = deque()

        def finish(plan: BatchPlan, images: np.ndarray, pieces: list[Future[list[Fault]]]) -> tuple[BatchPlan, Batch]:
            faults = [fault for piece in pieces for fault in piece.result()]
            return plan, self._close(plan, workers.keep(images), faults)

        try:
            for plan in plans:
                waiting.append((plan, *workers.start(plan.rows)))
                if len(waiting) > self._ahead:
                    yield finish(*waiting.popleft())
            while waiting:
                yield finish(*waiting.popleft())
        finally:
            workers.close()

    def _close(self, plan: BatchPlan, images: np.ndarray, faults: Iterable[Fault]) -> Batch:
        """Mark the rows that have no image, and count the faults."""
        batch = Batch(images, plan.labels, plan.index >= 0, plan.index)
        self.faults.saw(len({spec.index for spec in plan.rows}), self.source.total)
        for fault in faults:
            batch.valid[fault.row] = False
            images[fault.row] = 0
            spec = next(spec for spec in plan.rows if spec.row == fault.row)
            if fault.file is None or not isinstance(spec.image, ByteRange) or spec.image.size < 0:
                self.faults.bad_image(spec.key, fault.reason)
            elif isinstance(self.source, Stream):
                self.faults.lost_shard(self.source.shards[spec.index >> 32].name, fault.reason)
            else:
                self.faults.lost_shard(fault.file, fault.reason)
        return batch


def evaluation_loader(
    source: Source,
    size: Size,
    *,
    crop_ratio: float,
    channels: int,
    batch_size: int,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    faults: Faults | None = None,
) -> Loader:
    """Build the loader of one pass over a source in order: images pass `center_crop`, the last batch is padded."""
    config = BatchConfig(batch_size, shuffle=False, process_index=process_index, process_count=process_count)
    transform = build_eval(size, crop_ratio, source.form.no_data)
    return Loader(source, transform, config, size=size, channels=channels, workers=workers, faults=faults)


def check_readable(source: Source | Stream, channels: int, at_most: int = 1000) -> None:
    """Try the first images, or those of the first shards; raises InputError if none of `at_most` can be read."""
    reasons: list[str] = []
    form = source.form._replace(channels=channels)
    if isinstance(source, Stream):
        seen, source.seen = source.seen, []
        what, tried = "images and shards", chain(seen, first_images(source, reasons))
    else:
        what, tried = "images", ((source.keys[i], source.stored(i)) for i in range(min(len(source), at_most)))
    for key, image in tried:
        try:
            read_pixels(image.read() if isinstance(image, ByteRange) else image, form)
            return
        except (UnreadableImage, OSError) as error:
            reasons.append(f"{key}: {error}")
    raise InputError(f"none of {len(reasons)} {what} tried can be read; the first, {reasons[0]}; check the files")
