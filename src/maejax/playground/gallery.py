"""The pictures of a validation set that a page shows, in memory as the model sees them."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from maejax.data.agreement import agree
from maejax.data.arrays import read_pixels
from maejax.data.form import Form
from maejax.data.sources import open_source
from maejax.errors import InputError, UnreadableImage

MOST_BYTES = 2**28
THREADS = 4  # that read and decode


@dataclass(frozen=True)
class Gallery:
    """Pictures [n, H, W, C] of the model's type, their names, the class of each ("" if unknown), and a note on them."""

    images: np.ndarray
    names: tuple[str, ...]
    classes: tuple[str, ...]
    note: str = ""


def empty_gallery(encoder: Any, note: str = "") -> Gallery:
    """Return a gallery without pictures."""
    return Gallery(np.empty((0, *encoder.image_size, encoder.channels), encoder.image_type), (), (), note)


def read_gallery(spec: str, asked: Form, encoder: Any, crop: Callable[..., np.ndarray], most: int) -> Gallery:
    """Read up to `most` pictures, spread over the images of a spec, or as many as `MOST_BYTES` hold.

    Raises InputError if there are none, or if they do not fit the model.
    """
    source = open_source(spec)
    form = agree(source, asked)
    shape, dtype = (*encoder.image_size, encoder.channels), np.dtype(encoder.image_type)
    most = max(1, min(most, MOST_BYTES // (int(np.prod(shape)) * dtype.itemsize)))
    chosen = np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(int)).tolist()
    reasons: list[str] = []

    def read(i: int) -> np.ndarray | None:
        try:
            return crop(read_pixels(source.read(i), form), np.random.default_rng(0))
        except (UnreadableImage, OSError) as error:
            reasons.append(f"{source.keys[i]}: {error}")
            return None

    with ThreadPoolExecutor(THREADS) as threads:
        pictures = dict(zip(chosen, threads.map(read, chosen), strict=True))
    there = [i for i, picture in pictures.items() if picture is not None]
    if not there:
        raise InputError(f"{spec}: none of {len(chosen)} images can be read; the first, {reasons[0]}; check the files")
    labels = [int(source.labels[i]) for i in there]
    classes = [source.classes[n] if 0 <= n < len(source.classes) else str(n) if n >= 0 else "" for n in labels]
    note = f"{len(there):,} of {len(source):,} pictures of {spec}" if len(there) < len(source) else ""
    names = tuple(re.split("[/:]", source.keys[i])[-1] for i in there)
    return Gallery(np.stack([p for p in pictures.values() if p is not None]), names, tuple(classes), note)
