"""The facts about a source of images, before anything is trained on it."""

import io
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from maejax.data.arrays import is_picture, look, read_pixels, size_of
from maejax.data.decode import opener_of
from maejax.data.form import Form
from maejax.data.listing import ByteRange
from maejax.data.order import epoch_order
from maejax.data.sources import FileSource, Source
from maejax.data.stream import Stream, first_images
from maejax.errors import InputError, UnreadableImage

QUANTILES = (0, 5, 50, 95, 100)  # percent


def survey(
    source: Source, *, sample: int | None, channels: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Collect the facts about a source, as JSON can hold them.

    `sample` images, drawn at random but the same every time (None: all), are read with `channels`: their sizes,
    formats and modes are counted, and unreadable ones are named. Everything else is counted over all images.
    `progress` is called with the number of images decoded so far and in the end.
    """
    count = len(source) if sample is None else min(sample, len(source))
    form = source.form._replace(channels=channels)
    chosen = sorted(epoch_order(len(source), 0, 0)[:count].tolist())
    sizes: list[tuple[int, int, int]] = []  # width, height, bytes
    formats, modes, bad = Counter(), Counter(), {}
    with (
        ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="maejax-survey") as executor,
        closing(executor.map(lambda i: _look(source, i, form), chosen)) as looks,  # type: ignore[type-var]
    ):
        for done, (i, look) in enumerate(zip(chosen, looks, strict=True), 1):
            if isinstance(look, str):
                bad[source.keys[i]] = look
            else:
                format, mode, size = look
                formats[format] += 1
                modes[mode] += 1
                sizes.append(size)
            if progress is not None:
                progress(done, count)
    return {
        "images": len(source),
        "shards": _shards(source),
        "suffixes": dict(Counter(PurePosixPath(key).suffix for key in source.keys).most_common()),
        "classes": _classes(source),
        "duplicates": _duplicates(source),
        "problems": source.problems,
        "looked_at": count,
        "formats": dict(formats.most_common()),
        "modes": dict(modes.most_common()),
        **{name: _quantiles([size[k] for size in sizes]) for k, name in enumerate(("width", "height", "bytes"))},
        "bad": bad,
    }


def typical_size(source: Source | Stream, sample: int = 64) -> tuple[int, int]:
    """Return the median height and width of images spread over a source, or of the first ones of a stream.

    Raises InputError if none of them can be read.
    """
    if isinstance(source, Stream):
        images = (image for _, image in islice(first_images(source, []), sample))
    else:
        images = map(source.stored, np.linspace(0, len(source) - 1, min(sample, len(source))).astype(int).tolist())
    sizes = []
    for image in images:
        with suppress(OSError, UnreadableImage):
            data = image.read() if isinstance(image, ByteRange) else image
            sizes.append(size_of(data, source.form) or read_pixels(data, source.form).shape[:2])
    if not sizes:
        raise InputError("none of the images looked at can be read; check them with `maejax data`")
    height, width = np.median(sizes, axis=0).astype(int).tolist()
    return height, width


def _look(source: Source, i: int, form: Form) -> tuple[str, str, tuple[int, int, int]] | str:
    """Return format, mode and (width, height, bytes) of an image, or why it cannot be read."""
    try:
        data = source.read(i)
        height, width = read_pixels(data, form).shape[:2]
        if isinstance(data, np.ndarray) or not is_picture(data):
            stored = look(data, form)
            mode = "grey" if stored.bands == 1 else f"{stored.bands} channels"
            mode = mode if stored.image_type == "uint8" else f"{stored.image_type} {mode}"
            return stored.kind, mode, (width, height, data.nbytes if isinstance(data, np.ndarray) else len(data))
        opener = opener_of(data)
        return opener.format or "", opener(io.BytesIO(data)).mode, (width, height, len(data))
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _shards(source: Source) -> dict[str, Any] | None:
    """Describe the files that hold many images; None for arrays and for folders, where each image is a file."""
    if not isinstance(source, FileSource):
        return None
    single = set(source.file[source.size < 0].tolist())
    if not (shards := [i for i in range(len(source.files)) if i not in single]):
        return None
    images = np.bincount(source.file, minlength=len(source.files))[shards].tolist()
    sizes = [source.files[i].stat().st_size for i in shards]
    of_shards = {"bytes": _quantiles(sizes, (0, 50, 100)), "images": _quantiles(images, (0, 50, 100))}
    return {"count": len(shards), **of_shards}


def _classes(source: Source) -> dict[str, Any]:
    """Count the images of each class, the most frequent first, and those without one."""
    counts, names = Counter(np.sort(np.maximum(source.labels, -1)).tolist()), dict(enumerate(source.classes))
    unlabelled = counts.pop(-1, 0)
    images = [[names.get(label, str(label)), count] for label, count in counts.most_common()]
    images += [[name, 0] for label, name in names.items() if label not in counts]
    return {"count": max(len(source.classes), len(counts)), "images": images, "unlabelled": unlabelled}


def _duplicates(source: Source) -> dict[str, int]:
    """Count the names that occur more than once: in one shard, or, but for mere numbers, in several."""
    keys = Counter(source.keys)
    names = Counter(key.partition(":")[2] for key in source.keys)
    several = {name: count for name, count in names.items() if name and not PurePosixPath(name).stem.isdecimal()}
    return {name: count for name, count in (keys | several).items() if count > 1}


def _quantiles(values: list[int], percent: tuple[int, ...] = QUANTILES) -> dict[str, int]:
    found = np.percentile(values, percent, method="nearest") if values else []
    return {f"{p}%": int(v) for p, v in zip(percent, found, strict=bool(values))}
