"""Masks as data: an order of the patches per sample, of which the first K stay visible.

Every function returns `order [B, N]` int32, a permutation of 0..N-1 in each row. The strategies are those of the
paper's Figure 6 and Table 1f, and one of band-passed noise. With each of them, a model keeps exactly the first K
patches of the order.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Kind = Literal["random", "block", "grid", "noise"]
Custom = Callable[[jax.Array, int, tuple[int, int]], jax.Array]  # the user's, with the arguments of `block`

BAND = (0.7, 1.4)  # standard deviations of the two Gaussians of `noise`, in patches
BLOCKS = 64  # enough to cover 95 % of the patches of any grid; the first ones decide, the rest fill up


def draw(kind: Kind | Custom, key: jax.Array, batch: int, shape: tuple[int, int]) -> jax.Array:
    """Draw orders [B, N] of the patches of a (rows, columns) grid by a strategy; raises ValueError if it is unknown."""
    if callable(kind):
        return jnp.asarray(kind(key, batch, shape), jnp.int32)
    match kind:
        case "random":
            return random(key, batch, shape[0] * shape[1])
        case "block":
            return block(key, batch, shape)
        case "grid":
            return grid(key, batch, shape)
        case "noise":
            return noise(key, batch, shape)
    raise ValueError(f"a mask is random, block, grid or noise, not {kind}")


def random(key: jax.Array, batch: int, patches: int) -> jax.Array:
    """Draw uniformly random orders [B, N]: the argsort of uniform noise, as in the authors' code."""
    return order_of(jax.random.uniform(key, (batch, patches)))


def order_of(noise: jax.Array) -> jax.Array:
    """Turn noise [B, N] into an order [B, N] as the authors' code does: patches of small noise stay visible."""
    return jnp.argsort(noise, axis=1).astype(jnp.int32)


def grid(key: jax.Array, batch: int, shape: tuple[int, int]) -> jax.Array:
    """Order the patches of a (rows, columns) grid so that one of every 2 x 2 comes first (75 % masking)."""
    rows, columns = jnp.indices(shape).reshape(2, -1)
    dropped = (rows % 2 + columns % 2) > 0
    return order_of(dropped[None] + jax.random.uniform(key, (batch, dropped.size)))


def noise(key: jax.Array, batch: int, shape: tuple[int, int]) -> jax.Array:
    """Order the patches of a (rows, columns) grid by band-passed noise: the visible ones lie in small, spread groups.

    White noise is blurred by two Gaussians (`BAND`), and the difference is sorted, as with the green noise of ColorMAE
    (Hinojosa et al. 2024, section 3). Their noise is cut out of stored images, so that its band is another one. The
    grid is a torus: the border is not special.
    """
    white = jax.random.normal(key, (batch, *shape))

    def blurred(deviation: float) -> jax.Array:
        rows, columns = (_gaussian(side, deviation) for side in shape)
        return jnp.einsum("ab,nbc,cd->nad", rows, white, columns, precision="highest")

    return order_of((blurred(BAND[0]) - blurred(BAND[1])).reshape(batch, -1))


def _gaussian(side: int, deviation: float) -> np.ndarray:
    """Compute the matrix [side, side] that blurs along a side of a torus."""
    away = np.abs(np.subtract.outer(np.arange(side), np.arange(side)))
    weights = np.exp(-0.5 * (np.minimum(away, side - away) / deviation) ** 2)
    return (weights / weights.sum(axis=0)).astype(np.float32)


def block(key: jax.Array, batch: int, shape: tuple[int, int]) -> jax.Array:
    """Order the patches of a (rows, columns) grid so that large random blocks come last and are hidden.

    Blocks are those of BEiT (Bao et al. 2022, Algorithm 1): at least 16 patches or an eighth of a smaller grid, aspect
    ratio log-uniform in .3..1/.3. For any number of hidden patches, those of the blocks drawn first are hidden first.
    """
    height, width = shape
    patches = height * width
    smallest = min(16, max(1, patches // 8))
    area_key, aspect_key, top_key, left_key, noise_key = jax.random.split(key, 5)
    draw = (batch, BLOCKS, 1)
    area = jax.random.uniform(area_key, draw, minval=smallest, maxval=max(smallest + 1, patches // 4))
    aspect = jnp.exp(jax.random.uniform(aspect_key, draw, minval=jnp.log(0.3), maxval=-jnp.log(0.3)))
    tall = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, height)
    wide = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, width)
    top = jnp.floor(jax.random.uniform(top_key, draw) * (height - tall + 1))
    left = jnp.floor(jax.random.uniform(left_key, draw) * (width - wide + 1))
    rows, columns = jnp.indices(shape).reshape(2, 1, 1, patches)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    rank = jnp.max(jnp.where(inside, BLOCKS - jnp.arange(BLOCKS).reshape(1, BLOCKS, 1), 0), axis=1)
    return order_of(rank + jax.random.uniform(noise_key, (batch, patches)))
