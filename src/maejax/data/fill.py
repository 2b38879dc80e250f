"""Filling rows of a batch: a function of plain data, for any thread or process to call."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from maejax.data.arrays import read_pixels, size_of
from maejax.data.augment import Transform
from maejax.data.form import Form
from maejax.data.listing import ByteRange
from maejax.data.order import augment_rng
from maejax.errors import UnreadableImage

_PIECES = 4  # for each thread and batch: one per image would cost tiny images more than their decoding


class RowSpec(NamedTuple):
    """The recipe of one row of a batch; `image` is encoded bytes in a file, or pixels, [H, W] or [H, W, C]."""

    row: int  # in the batch
    position: int  # in the endless sequence of rows: names the random numbers of the augmentation
    index: int  # of the image in the source
    image: ByteRange | np.ndarray
    key: str  # the name of the image in messages


def packed(rows: Sequence[RowSpec]) -> list[Any]:
    """Return rows as columns for another process; arrays of one shape as one: sending each costs more than its row."""
    columns: list[Any] = list(zip(*rows, strict=True))
    images = columns[RowSpec._fields.index("image")] if rows else ()
    if images and len({(each.shape, each.dtype) if isinstance(each, np.ndarray) else None for each in images}) == 1:
        columns[RowSpec._fields.index("image")] = np.stack(images) if isinstance(images[0], np.ndarray) else images
    return columns


def unpacked(columns: Sequence[Any]) -> list[RowSpec]:
    """Return the rows of columns."""
    return [RowSpec(*values) for values in zip(*columns, strict=True)]


class Fault(NamedTuple):
    """Why a row has no image. `file` is the file that could not be read, None if its bytes are no image."""

    row: int
    reason: str
    file: str | None


class FillConfig(NamedTuple):
    """How rows are filled, the same for all of a run: augmentation, form of the pixels, seed of the augmentation."""

    transform: Transform
    form: Form
    seed: int
    decode_whole: bool = False  # once for neighbouring rows: cheaper if an image is used several times a batch


def fill(images: np.ndarray, rows: Sequence[RowSpec], config: FillConfig) -> list[Fault]:
    """Read, decode and augment an image for each of `rows` into `images` [B, H, W, C]; not those returned."""
    faults: list[Fault] = []
    last, image = -1, Fault(-1, "", None)
    for spec in rows:
        if spec.index != last:
            last, image = spec.index, _read(spec, config)
        if not isinstance(image, Fault):
            try:
                images[spec.row] = _augment(image, config, augment_rng(config.seed, spec.position))
            except UnreadableImage as error:
                image = Fault(spec.row, str(error), None)
        if isinstance(image, Fault):
            faults.append(image._replace(row=spec.row))
    return faults


def _read(spec: RowSpec, config: FillConfig) -> bytes | np.ndarray | Fault:
    try:
        data = spec.image.read() if isinstance(spec.image, ByteRange) else spec.image
        return read_pixels(data, config.form) if config.decode_whole else data
    except OSError as error:
        return Fault(spec.row, error.strerror or str(error), spec.image.path)  # type: ignore[union-attr]
    except UnreadableImage as error:
        return Fault(spec.row, str(error), None)


def _augment(image: bytes | np.ndarray, config: FillConfig, rng: np.random.Generator) -> np.ndarray:
    transform, form = config.transform, config.form
    if config.decode_whole:
        return transform(image, rng)  # type: ignore[arg-type]
    # The crop is drawn from the size in the header, and no more than it is decoded.
    if transform.box is not None and (size := size_of(image, form)):
        return transform.finish(read_pixels(image, form, transform.box(size, rng)), rng)
    return transform(read_pixels(image, form), rng)


def split_rows(rows: Sequence[RowSpec], parts: int) -> list[Sequence[RowSpec]]:
    """Split rows into up to `parts` runs of nearly equal length, none of them empty."""
    cuts = np.linspace(0, len(rows), parts + 1).astype(int).tolist()
    return [rows[a:b] for a, b in pairwise(cuts) if b > a]


class FillThreads:
    """A pool of threads that fill rows; 0 threads are the calling thread."""

    def __init__(self, threads: int, config: FillConfig):
        self._pieces, self._config = _PIECES * threads, config
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="maejax-data") if threads else None
        if threads:
            # glibc gives the pixels of an image back to the system and faults them in again for the next, a hundred
            # pages each, until a block larger than these was freed: mallopt(3), M_MMAP_THRESHOLD, at most 32 MiB.
            bytearray(31 << 20)

    def submit(self, images: np.ndarray, rows: Sequence[RowSpec]) -> list[Future[list[Fault]]]:
        """Start to fill `rows` of `images`, as `fill` does, in several pieces."""
        if self._executor is not None:
            pieces = split_rows(rows, self._pieces)
            return [self._executor.submit(fill, images, piece, self._config) for piece in pieces]
        done: Future[list[Fault]] = Future()
        done.set_result(fill(images, rows, self._config))
        return [done]

    def close(self) -> None:
        """Drop what has not started and wait for the rest."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
