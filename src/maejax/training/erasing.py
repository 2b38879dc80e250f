"""Random erasing of normalised images, on the devices (Zhong et al. 2020), as timm's `RandomErasing` in pixel mode."""

import math

import jax
import jax.numpy as jnp

AREA = (0.02, 1 / 3)  # of the image
ASPECT = (0.3, 1 / 0.3)  # height / width
ATTEMPTS = 10  # to find a box that fits
STREAM = 0x0E7A5E  # keeps these numbers apart from others of the same seed


def erase(images: jax.Array, step: jax.Array, *, seed: int, probability: float) -> jax.Array:
    """Fill a random box of some of the images [B, H, W, C], float and normalised, with Gaussian noise.

    A function of the batch, `seed` and `step` alone, drawn anew for every row. It comes before `mix`, as in timm.
    """
    if not probability:
        return images
    key = jax.random.fold_in(jax.random.key(seed), STREAM)
    box_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
    rows, height, width, _ = images.shape
    top, left, high, wide = draw_boxes(box_key, rows, (height, width), probability)
    down, across = _within(top, high, height), _within(left, wide, width)
    inside = down[:, :, None, None] & across[:, None, :, None]
    return jnp.where(inside, jax.random.normal(noise_key, images.shape, images.dtype), images)


def _within(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    at = jnp.arange(size)[None]
    return (at >= start[:, None]) & (at < (start + length)[:, None])


def draw_boxes(key: jax.Array, rows: int, size: tuple[int, int], probability: float) -> jax.Array:
    """Draw a box in each of `rows` images of `size` (H, W), with `probability`; else its height and width are 0.

    Returns top, left, height and width, int32 [4, rows]. The area is uniform within `AREA`, the aspect log-uniform
    within `ASPECT`. The first of ten that is smaller than the image both ways is taken, at a uniform place.
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
    sides = jnp.where(found[None], boxes[:, jnp.arange(rows), first], 0)
    places = jax.random.randint(place_key, (2, rows), 0, image[..., 0] - sides + 1)
    return jnp.concatenate([places, sides])
