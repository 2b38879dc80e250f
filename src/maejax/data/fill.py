"""Filling rows of a batch: a function of plain data, for any thread or process to call."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maejax.data.augment import Transform
from maejax.data.decode import Picture, decode, open_image
from maejax.data.order import augment_rng
from maejax.errors import UnreadableImage


class Place(NamedTuple):
    """Where an encoded image lies: `size` bytes from `offset` of a file; -1 is to the end."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes; raises OSError where the file is gone, or shorter than it was when it was listed."""
        # Opening anew costs 6 us and keeps nothing open: a thousand shards would pass the usual limit on open files.
        with open(self.path, "rb", buffering=0) as file:
            if self.offset:
                file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError(f"{self.path} ends before byte {self.offset + self.size}: it was cut after it was opened")
        return data


class Row(NamedTuple):
    """What one row of a batch is made of."""

    row: int  # in the batch
    position: int  # in the endless sequence of rows: names the random numbers of the augmentation
    index: int  # of the image; side by side, rows of one image are decoded once
    image: Place | np.ndarray  # encoded bytes in a file, or pixels, uint8 [H, W] or [H, W, C]


class Fault(NamedTuple):
    """Why a row has no image. `file` is the file that could not be read, None where its bytes are no image."""

    row: int
    reason: str
    file: str | None


class Filling(NamedTuple):
    """How rows are filled, the same for all of a run: augmentation, channels, seed of the augmentation.

    `whole` decodes images whole and not just the crop, as is cheaper where each enters several times.
    """

    transform: Transform
    channels: int
    seed: int
    whole: bool = False


def fill(images: np.ndarray, rows: Sequence[Row], filling: Filling) -> list[Fault]:
    """Read, decode and augment an image for each of `rows`, into `images`, uint8 [B, H, W, C].

    All arguments can be pickled, and what is written depends on nothing else. Rows that are returned are left alone.
    """
    faults: list[Fault] = []
    last, image = -1, Fault(-1, "", None)
    for row in rows:
        if row.index != last:
            last, image = row.index, _open(row, filling)
        if not isinstance(image, Fault):
            try:
                images[row.row] = filling.transform(image, augment_rng(filling.seed, row.position))
            except UnreadableImage as error:
                image = Fault(row.row, str(error), None)
        if isinstance(image, Fault):
            faults.append(image._replace(row=row.row))
    return faults


def _open(row: Row, filling: Filling) -> np.ndarray | Picture | Fault:
    try:
        data = row.image.read() if isinstance(row.image, Place) else row.image
    except OSError as error:
        return Fault(row.row, error.strerror or str(error), os.fspath(row.image.path))  # type: ignore[union-attr]
    try:
        return (decode if filling.whole else open_image)(data, filling.channels)
    except UnreadableImage as error:
        return Fault(row.row, str(error), None)
