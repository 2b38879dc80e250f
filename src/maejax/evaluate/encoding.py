"""Frozen features: what the encoder says about an image when nothing is masked."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maejax.models.vit import POOLS, Pool, pooled


def extract(
    model: Any,
    images: np.ndarray | Iterable[np.ndarray],
    batch_size: int = 256,
    pool: Pool | None = "cls+mean",
    layers: Sequence[int] | None = None,
) -> np.ndarray:
    """Encode every image and return its feature vector.

    `images` is uint8 [n, H, W, C], or an iterable of uint8 [b, H, W, C] with b of any size, read once. `model` offers
    `normalize` and `encode`. The feature is the class token ("cls"), the mean of the patch tokens ("mean"), or the two
    side by side ("cls+mean"), which is the stronger choice for small encoders; None keeps all tokens. `layers` are
    those of `VisionTransformer.encode`.

    Returns float32 [n, D], or [n, 2 D] for "cls+mean", [n, 1 + N, D] for None; with `layers`, [n, L, ...]. Images pass
    through in chunks of one fixed size, so a feature does not depend on the company an image keeps, and the encoder
    compiles once.

    Raises ValueError for an unknown `pool`, for arrays that are not uint8 [b, H, W, C], and where there are no images.
    """
    if isinstance(images, np.ndarray):
        batch_size = min(batch_size, max(len(images), 1))  # three images are not worth 256 passes
        images = [images]
    features = list(stream(model, images, batch_size, pool, layers))
    if not features:
        raise ValueError("there are no images to encode")
    return np.concatenate(features)


def stream(
    model: Any,
    images: Iterable[np.ndarray],
    batch_size: int = 256,
    pool: Pool | None = "cls+mean",
    layers: Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
    """Yield the features of images as they arrive, in chunks of `batch_size` at most; all else as `extract`."""
    if pool is not None and pool not in POOLS:
        raise ValueError(f"pool is {', '.join(map(repr, POOLS))} or None, not {pool!r}")
    chosen = None if layers is None else tuple(layers)
    # The next chunk is under way before the last one is fetched: the device never waits for the host.
    pending: tuple[jax.Array, int] | None = None
    for chunk in _chunks(images, batch_size):
        padding = [(0, batch_size - len(chunk)), (0, 0), (0, 0), (0, 0)]
        running = encode(model, np.pad(chunk, padding), pool, chosen), len(chunk)
        if pending is not None:
            yield np.asarray(pending[0])[: pending[1]]
        pending = running
    if pending is not None:
        yield np.asarray(pending[0])[: pending[1]]


def _chunks(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    for batch in batches:
        if batch.ndim != 4 or batch.dtype != np.uint8:
            raise ValueError(f"images are uint8 [B, H, W, C], not {batch.dtype} {list(batch.shape)}")
        for start in range(0, len(batch), size):
            yield batch[start : start + size]


@partial(jax.jit, static_argnames=("pool", "layers"))
def encode(model: Any, images: Any, pool: Pool | None, layers: tuple[int, ...] | None = None) -> jax.Array:
    """Encode uint8 images [B, H, W, C] in one pass; all else as `extract`."""
    chosen = {} if layers is None else {"layers": layers}
    return pooled(model.encode(model.normalize(images), pool=None, **chosen).astype(jnp.float32), pool)
