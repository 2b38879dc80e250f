"""Random erasing of normalised images, on the devices (Zhong et al. 2020), as timm's `RandomErasing` in pixel mode."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

AREA = (0.02, 1 / 3)  # of the image
ASPECT = (0.3, 1 / 0.3)  # height / width
ATTEMPTS = 10  # to find a box that fits
STREAM = 0x0E7A5E  # keeps these numbers apart from others of the same seed


class Boxes(NamedTuple):
    """Boxes that are erased, one for each image: all int32 [B]; height and width are 0 for none."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def erase(images: jax.Array, step: jax.Array, *, seed: int, probability: float) -> jax.Array:
    """Fill a random box of some of the images [B, H, W, C], float and normalised, with Gaussian noise.

    A function of the global batch, `seed` and `step` alone; every row of every step has numbers of its own. It comes
    before `mix`, as in timm. With `probability` 0 nothing changes.
    """
    if not probability:
        return images
    key = jax.random.fold_in(jax.random.key(seed), STREAM)
    box_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
    rows, height, width, _ = images.shape
    boxes = draw_boxes(box_key, rows, (height, width), probability)
    down = _within(boxes.top, boxes.height, height)
    across = _within(boxes.left, boxes.width, width)
    inside = down[:, :, None, None] & across[:, None, :, None]
    return jnp.where(inside, jax.random.normal(noise_key, images.shape, images.dtype), images)


def _within(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    at = jnp.arange(size)[None]
    return (at >= start[:, None]) & (at < (start + length)[:, None])


def draw_boxes(key: jax.Array, rows: int, size: tuple[int, int], probability: float) -> Boxes:
    """Draw the boxes of `rows` images of `size` (H, W), each erased with `probability`.

    The area is uniform within `AREA`, the aspect log-uniform within `ASPECT`. Of ten such boxes the first that is
    smaller than the image in both directions is taken, at a uniform place.
    """
    erased_key, area_key, aspect_key, place_key = jax.random.split(key, 4)
    image = jnp.array(size)[:, None, None]
    area = math.prod(size) * jax.random.uniform(area_key, (rows, ATTEMPTS), minval=AREA[0], maxval=AREA[1])
    low, high = map(math.log, ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspect_key, (rows, ATTEMPTS), minval=low, maxval=high))
    boxes = jnp.round(jnp.sqrt(jnp.stack([area * aspect, area / aspect]))).astype(jnp.int32)
    fits = (boxes < image).all(axis=0)
    first = jnp.argmax(fits, axis=1)
    found = fits.any(axis=1) & (jax.random.uniform(erased_key, (rows,)) < probability)
    height, width = jnp.where(found[None], boxes[:, jnp.arange(rows), first], 0)
    free = image[..., 0] - jnp.stack([height, width]) + 1
    top, left = jax.random.randint(place_key, (2, rows), 0, free)
    return Boxes(top, left, height, width)
