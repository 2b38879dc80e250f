"""From the pixels of an image to values of about zero mean and unit variance."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Normalized(NamedTuple):
    """Images [B, H, W, C] that are normalised already, for a model that would take floats for pixels."""

    images: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the images."""
        return self.images.shape

    @property
    def dtype(self) -> Any:
        """The type of the images."""
        return self.images.dtype


def normalize(
    images: jax.Array | np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    image_type: str = "uint8",
    no_data: float | None = None,
    missing: float = 0.0,
) -> jax.Array:
    """Scale images [..., C] to float32 by a mean and standard deviation per channel.

    Those of uint8 are on the 0..1 scale, those of another `image_type` in its own units. Pixels that are `no_data`, and
    those of floats that are NaN, become `missing`. Raises ValueError for images of another type, which may be
    normalised already, and for other channels.
    """
    if images.dtype != image_type:
        span = ", 0..255" if image_type == "uint8" else ""
        raise ValueError(
            f"normalize takes {image_type} images{span}, not {images.dtype}; floats are not normalised twice"
        )
    if np.shape(images)[-1] != len(mean):
        raise ValueError(f"images end in their {len(mean)} channels here, not in {np.shape(images)[-1]}")
    shape = (*[1] * (np.ndim(images) - 1), len(mean))
    scale, offset = (jnp.asarray(values, jnp.float32).reshape(shape) for values in (std, mean))
    values = jnp.asarray(images, jnp.float32)
    scaled = ((values / 255 if image_type == "uint8" else values) - offset) / scale
    if no_data is None and not image_type.startswith("float"):
        return scaled
    gone = jnp.isnan(values) if no_data is None else jnp.isnan(values) | (values == jnp.float32(no_data))
    return jnp.where(gone, jnp.float32(missing), scaled)
