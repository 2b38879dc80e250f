"""Mean and deviation of every band over all pixels of a source, exact, in one pass, and the file that holds them."""

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maejax.data.arrays import read_pixels
from maejax.data.form import Form, choose_bands
from maejax.data.listing import ByteRange
from maejax.data.sources import Source
from maejax.data.values import missing_in
from maejax.errors import InputError, UnreadableImage
from maejax.storage.atomic import write_whole

CHUNK = 32  # images of a task; the sums do not depend on how many processes share them
BLOCK = 1 << 20  # pixels that are added up at a time: squares of 16 bits then stay exact in float64
Progress = Callable[[int, int], None]


@dataclass
class Moments:
    """Sums over the pixels of each band: `count`, `missing`, `mean` and squared deviations `square`, and the extremes.

    Sums of integers are exact: `total` and `squares` are whole numbers of any size. Those of floats are float64,
    joined as Chan et al. (1983) have it.
    """

    count: list[int]
    missing: list[int]
    low: list[float]
    high: list[float]
    mean: list[float]
    square: list[float]
    total: list[int]
    squares: list[int]
    whole: bool
    images: int = 0
    unreadable: int = 0

    @classmethod
    def empty(cls, channels: int, whole: bool) -> "Moments":
        """Return the sums of no pixel; `whole` for integers."""
        none, zero = [0] * channels, [0.0] * channels
        ends = [math.inf] * channels, [-math.inf] * channels
        return cls([*none], [*none], *ends, [*zero], [*zero], [*none], [*none], whole)

    def add(self, pixels: np.ndarray, no_data: float | None) -> None:
        """Add an image [H, W, C]."""
        self.images += 1
        rows = max(1, BLOCK // pixels.shape[1])
        for start in range(0, len(pixels), rows):
            block = pixels[start : start + rows].reshape(-1, pixels.shape[2])
            missing = missing_in(block, no_data)
            for band, values in enumerate(np.ascontiguousarray(block.T, np.float64)):
                column = values if missing is None else values[~missing[:, band]]
                self.missing[band] += len(values) - len(column)
                if len(column):
                    self._add_band(band, column)

    def _add_band(self, band: int, values: np.ndarray) -> None:
        self.low[band], self.high[band] = min(self.low[band], values.min()), max(self.high[band], values.max())
        if self.whole:
            self.count[band] += len(values)
            self.total[band] += int(values.sum())
            self.squares[band] += int(values @ values)
        else:
            mean = float(values.mean())
            self._join(band, len(values), mean, float(np.square(values - mean).sum()))

    def _join(self, band: int, count: int, mean: float, square: float) -> None:
        both, apart = self.count[band] + count, mean - self.mean[band]
        self.square[band] += square + apart * apart * (self.count[band] * count / both)
        self.mean[band] += apart * (count / both)
        self.count[band] = both

    def merge(self, other: "Moments") -> None:
        """Add the sums of other images."""
        self.images, self.unreadable = self.images + other.images, self.unreadable + other.unreadable
        for band, count in enumerate(other.count):
            self.missing[band] += other.missing[band]
            self.low[band] = min(self.low[band], other.low[band])
            self.high[band] = max(self.high[band], other.high[band])
            self.total[band] += other.total[band]
            self.squares[band] += other.squares[band]
            if self.whole:
                self.count[band] += count
            elif count:
                self._join(band, count, other.mean[band], other.square[band])

    def result(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of every band, that of all its pixels."""
        if not self.whole:
            return self.mean, [math.sqrt(s / n) if n else 0.0 for s, n in zip(self.square, self.count, strict=True)]
        of = list(zip(self.count, self.total, self.squares, strict=True))
        means = [total / n if n else 0.0 for n, total, _ in of]
        return means, [math.sqrt((n * squares - total * total) / (n * n)) if n else 0.0 for n, total, squares in of]


class Statistics(NamedTuple):
    """The content of a file of statistics; mean and deviation of uint8 are on the 0..1 scale, else in own units."""

    image_type: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bands: tuple[str, ...]
    no_data: float | None


def compute(source: Source, workers: int | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Compute the statistics of all images of a source in its form, as `write` stores them.

    `workers` processes take part (None: one for each core; 1: this one alone); their number changes no bit. Missing
    pixels and unreadable images are counted and left out. Raises InputError if a band has no pixel.
    """
    form, workers = source.form, workers or os.cpu_count() or 1
    whole = form.dtype.kind != "f"
    found = Moments.empty(form.channels, whole)
    for part in _parts(source, form, min(workers, -(-len(source) // CHUNK))):
        found.merge(part)
        if progress is not None:
            progress(found.images + found.unreadable, len(source))
    names = list(form.chosen)
    if empty := [i for i, count in enumerate(found.count) if not count]:
        raise InputError(f"band {names[empty[0]] if names else empty[0]} has no pixel that exists; leave it out")
    scale = 255 if form.image_type == "uint8" else 1
    mean, std = ([value / scale for value in values] for values in found.result())
    return {
        "images": found.images,
        "unreadable": found.unreadable,
        "image_type": form.image_type,
        "no_data": form.no_data,
        "bands": names,
        "pixels": found.count,
        "missing": found.missing,
        "min": [float(value) for value in found.low],
        "max": [float(value) for value in found.high],
        "mean": mean,
        "std": std,
    }


def _parts(source: Source, form: Form, workers: int) -> Iterator[Moments]:
    """Yield the sums of chunks of images, in their order, with a few chunks on the way at a time."""
    chunks = (range(start, min(start + CHUNK, len(source))) for start in range(0, len(source), CHUNK))
    if workers <= 1:
        yield from (add_up([source.stored(i) for i in chunk], form) for chunk in chunks)
        return
    # New interpreters: a copy of this process could hold locks of threads that it does not have.
    with ProcessPoolExecutor(workers, get_context("spawn")) as executor:
        waiting: deque[Future[Moments]] = deque()
        for chunk in chunks:
            waiting.append(executor.submit(add_up, [source.stored(i) for i in chunk], form))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def add_up(images: list[ByteRange | np.ndarray], form: Form) -> Moments:
    """Return the sums of a few images."""
    found = Moments.empty(form.channels, form.dtype.kind != "f")
    for image in images:
        try:
            found.add(read_pixels(image.read() if isinstance(image, ByteRange) else image, form), form.no_data)
        except (UnreadableImage, OSError):
            found.unreadable += 1
    return found


def write(path: Path, statistics: dict[str, Any]) -> None:
    """Write statistics as JSON."""
    write_whole(path, json.dumps(statistics, indent=1) + "\n")


def read(path: str) -> Statistics:
    """Read a file of statistics; raises InputError if it is none, or if a band never changes."""
    try:
        found = json.loads(Path(path).expanduser().read_text())
        bands = tuple(map(str, found["bands"]))
        mean, std = (tuple(map(float, found[name])) for name in ("mean", "std"))
        statistics = Statistics(str(found["image_type"]), mean, std, bands, found["no_data"])
        if len(mean) != len(std) or len(bands) not in (0, len(mean)):
            raise ValueError("it has not as many deviations or names as means")
    except OSError as error:
        raise InputError(f"--statistics {path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--statistics {path}: is no file of `maejax data --statistics` ({error})") from None
    if constant := [i for i, value in enumerate(std) if not value > 0]:
        name = bands[constant[0]] if bands else constant[0]
        raise InputError(f"--statistics {path}: band {name} never changes; leave it out by --bands")
    return statistics


def take(statistics: Statistics, form: Form, path: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of the bands of a form; raises InputError if they are of other images."""
    if statistics.image_type != form.image_type:
        raise InputError(
            f"--statistics {path}: is of {statistics.image_type} values, and the images are {form.image_type}: compute "
            "it again"
        )
    count, wanted = len(statistics.mean), form.chosen
    if wanted and (statistics.bands or len(wanted) != count):
        place = choose_bands(wanted, statistics.bands, count, f"--statistics {path}: band")
    elif count != form.channels:
        raise InputError(f"--statistics {path}: has {count} bands, and the images {form.channels}")
    else:
        place = tuple(range(count))
    return tuple(statistics.mean[i] for i in place), tuple(statistics.std[i] for i in place)
