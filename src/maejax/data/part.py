"""A part of a source: some of its images, in its order."""

from dataclasses import dataclass, replace

import numpy as np

from maejax.data.listing import ByteRange
from maejax.data.sources import Source


@dataclass(eq=False)
class PartSource(Source):
    """The images of `whole` of the numbers `rows`."""

    whole: Source
    rows: np.ndarray

    def stored(self, i: int) -> ByteRange | np.ndarray:
        """Return image i as `whole` does."""
        return self.whole.stored(int(self.rows[i]))


def spread(source: Source, count: int) -> Source:
    """Return a source of at most `count` images, evenly spread over another one whose form is agreed on."""
    if len(source) <= count:
        return source
    return take(source, np.linspace(0, len(source) - 1, count).round().astype(int))


def take(source: Source, rows: np.ndarray) -> Source:
    """Return a source of the images of these numbers of another one, whose form is agreed on."""
    keys, labels = [source.keys[row] for row in rows], source.labels[rows]
    return PartSource(keys, labels, source.classes, source.problems, source, rows, form=source.form)


def hold_out(source: Source, count: int) -> tuple[Source, Source]:
    """Split a source whose form is agreed on: all but `count` images, and these, evenly spread over it."""
    held = spread(source, count)
    rest = take(source, np.setdiff1d(np.arange(len(source)), held.rows))  # type: ignore[attr-defined]
    return replace(rest, lost=source.lost), replace(held, problems=[])
