"""Frozen features: images to the pooled tokens of an encoder, without a mask."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from maejax.data.pipeline import Batch, evaluation_loader
from maejax.data.sources import Source
from maejax.models.pooling import Pool, pools

Layers = Sequence[int] | None
Images = Iterable[np.ndarray]  # [n, H, W, C] of the model's type, of any n
READING = {"crop_ratio": 0.0, "batch_size": 64, "workers": 0}  # of `evaluation_loader`


def extract(
    model: Any, images: Images, batch_size: int = 256, pool: Pool | None = "cls+mean", layers: Layers = None
) -> np.ndarray:
    """Encode images and return one feature each: float32 [n, D], [n, 2 D] for "cls+mean", [n, 1 + N, D] for None.

    `images` is one array [n, H, W, C] of the model's type, or an iterable of them with n of any size. "cls" is the
    class token, "mean" the mean of the patch tokens, "cls+mean" both, which is stronger for small encoders; None keeps
    all tokens.
    `layers` are those of `VisionTransformer.encode`; with them the result is [n, L, ...].

    All chunks are padded to one size, so that the encoder compiles once and a feature does not depend on the images
    beside it. Raises ValueError for an unknown `pool`, for other arrays, and without images.
    """
    if isinstance(images, np.ndarray):
        batch_size = min(batch_size, max(len(images), 1))  # pad three images to 3, not to 256
        images = [images]
    chunks = ((None, chunk) for chunk in _chunks(images, batch_size, model.config.encoder.image_type))
    features = [rows for _, rows in _encode_all(model, chunks, batch_size, pool, layers)]
    if not features:
        raise ValueError("there are no images to encode")
    return np.concatenate(features)


def encode_source(
    model: Any, source: Source, *, pool: Pool | None, layers: Layers = None, first: int = 0, **reading: Any
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yield the batches of a source in its order, from number `first` on, each with its features as of `extract`.

    `reading` are arguments of `evaluation_loader`, by default those of `READING`. Rows of padding have index -1.
    """
    encoder, reading = model.config.encoder, READING | reading
    loader = evaluation_loader(source, encoder.image_size, channels=encoder.channels, **reading)
    batches = ((batch, batch.images) for batch in loader.iterate(first))
    return _encode_all(model, batches, reading["batch_size"], pool, layers)


def _encode_all(
    model: Any, chunks: Iterable[tuple[Any, np.ndarray]], size: int, pool: Pool | None, layers: Layers
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield each label of a chunk with the features of its images; a chunk holds at most `size` images."""
    if pool is not None and pool not in (known := pools(model.config.encoder)):
        raise ValueError(f"pool is {', '.join(map(repr, known))} or None, not {pool!r}")
    chosen = None if layers is None else tuple(layers)
    running: list[tuple[Any, jax.Array, int]] = []
    for label, images in chunks:
        padding = [(0, size - len(images)), (0, 0), (0, 0), (0, 0)]
        running.append((label, encode(model, np.pad(images, padding), pool, chosen), len(images)))
        if len(running) > 1:  # fetch a chunk after the next one has started: the device never waits for the host
            label, features, count = running.pop(0)
            yield label, np.asarray(features)[:count]
    for label, features, count in running:
        yield label, np.asarray(features)[:count]


def _chunks(batches: Images, size: int, kind: str) -> Iterator[np.ndarray]:
    for batch in batches:
        if batch.ndim != 4 or batch.dtype != kind:
            raise ValueError(f"images are {kind} [B, H, W, C], not {batch.dtype} {list(batch.shape)}")
        for start in range(0, len(batch), size):
            yield batch[start : start + size]


@partial(jax.jit, static_argnames=("pool", "layers"))
def encode(model: Any, images: Any, pool: Pool | None, layers: tuple[int, ...] | None = None) -> jax.Array:
    """Encode images [B, H, W, C] of the model's type in one pass; see `extract`."""
    chosen = {} if layers is None else {"layers": layers}
    return model.encode(model.normalize(images), pool=pool, **chosen)
