"""Frozen features: what the encoder says about an image when nothing is masked."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Pool = Literal["cls", "mean", "cls+mean"]


def extract(
    model: Any, images: np.ndarray | Iterable[np.ndarray], batch_size: int = 256, pool: Pool = "cls+mean"
) -> np.ndarray:
    """Encode every image and return its feature vector.

    `images` is uint8 [n, H, W, C], or an iterable of uint8 [b, H, W, C] with b of any size, read once. `model` offers
    `normalize` and `encode`. The feature is the class token ("cls"), the mean of the patch tokens ("mean"), or the two
    side by side ("cls+mean"), which is the stronger choice for small encoders.

    Returns float32 [n, D], or [n, 2 D] for "cls+mean". Images pass through in chunks of one fixed size, so a feature
    does not depend on the company an image keeps, and the encoder compiles once.

    Raises ValueError for an unknown `pool`, for arrays that are not uint8 [b, H, W, C], and where there are no images.
    """
    if pool not in ("cls", "mean", "cls+mean"):
        raise ValueError(f"pool is 'cls', 'mean' or 'cls+mean', not {pool!r}")
    if isinstance(images, np.ndarray):
        batch_size = min(batch_size, max(len(images), 1))  # three images are not worth 256 passes
        images = [images]
    # The next chunk is under way before the last one is fetched: the device never waits for the host.
    features: list[np.ndarray] = []
    pending: tuple[jax.Array, int] | None = None
    for chunk in _chunks(images, batch_size):
        padding = [(0, batch_size - len(chunk)), (0, 0), (0, 0), (0, 0)]
        running = _encode(model, np.pad(chunk, padding), pool), len(chunk)
        if pending is not None:
            features.append(np.asarray(pending[0])[: pending[1]])
        pending = running
    if pending is None:
        raise ValueError("there are no images to encode")
    features.append(np.asarray(pending[0])[: pending[1]])
    return np.concatenate(features)


def _chunks(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    for batch in batches:
        if batch.ndim != 4 or batch.dtype != np.uint8:
            raise ValueError(f"images are uint8 [B, H, W, C], not {batch.dtype} {list(batch.shape)}")
        for start in range(0, len(batch), size):
            yield batch[start : start + size]


@partial(jax.jit, static_argnames="pool")
def _encode(model: Any, images: jax.Array, pool: Pool) -> jax.Array:
    tokens = model.encode(model.normalize(images), pool=None).astype(jnp.float32)
    cls, mean = tokens[:, 0], tokens[:, 1:].mean(axis=1)
    return {"cls": cls, "mean": mean, "cls+mean": jnp.concatenate([cls, mean], axis=-1)}[pool]
