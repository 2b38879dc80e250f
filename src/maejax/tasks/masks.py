"""The masks of a pre-training run: which patches each step hides, and how many."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from maejax.config import Config
from maejax.data.pipeline import Batch
from maejax.errors import InputError
from maejax.models import masking
from maejax.models.code import name_code
from maejax.models.description import MAE

RATIOS = 4  # of a range of mask ratios; the step is compiled for each


class Masked(NamedTuple):
    """A batch with masks: `images` [B, H, W, C], `order` int32 [B, N] of the patches, `valid` bool [B].

    `ratio` int32 [B] is the number of the mask ratio of the step among those of the run, the same in all rows.
    """

    images: jax.Array
    order: jax.Array
    valid: jax.Array
    ratio: jax.Array


class Masks(NamedTuple):
    """How a run hides patches: the seed, the strategy, the grid, and the numbers of visible patches to draw from."""

    seed: int
    kind: masking.Kind | masking.Custom
    grid: tuple[int, int]
    visible: tuple[int, ...]

    @classmethod
    def of(cls, config: Config, model: MAE) -> "Masks":
        """Return what the flags ask for."""
        ratios = mask_ratios(config.mae.image_mask_ratio)
        visible = tuple(replace(model, mask_ratio=ratio).visible for ratio in ratios)
        return cls(config.seeds.noise_seed, config.mae.mask, model.encoder.grid, visible)

    def order(self, step: int | jax.Array, rows: int) -> jax.Array:
        """Draw the order [rows, N] of the patches of a global batch, a function of (seed, step) alone."""
        return masking.draw(self.kind, jax.random.fold_in(jax.random.key(self.seed), step), rows, self.grid)

    def ratio(self, step: int | jax.Array) -> jax.Array:
        """Draw the number of a step's mask ratio, a function of (seed, step) alone."""
        key = jax.random.fold_in(jax.random.key(self.seed + 1), step)
        return jax.random.randint(key, (), 0, len(self.visible))

    def draw(self, batch: Batch, step: jax.Array) -> Masked:
        """Draw the masks of a global batch."""
        ratio = jnp.broadcast_to(self.ratio(step), batch.valid.shape)
        return Masked(batch.images, self.order(step, len(batch.images)), batch.valid, ratio)


def check_custom(kind: Any, grid: tuple[int, int]) -> None:
    """Check the orders that the user's mask draws, if the mask is the user's; raises InputError for other values."""
    if not callable(kind):
        return
    draw = cast(masking.Custom, kind)
    name, patches = name_code(kind), grid[0] * grid[1]
    try:
        keys = jax.random.split(jax.random.key(0), 2)
        order = np.asarray(jax.vmap(lambda key: masking.draw(draw, key, 2, grid))(keys))
    except Exception as error:  # whatever the user's code raises
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise InputError(f"mask {name} fails as mask(key, batch=2, grid={grid}) in jax.vmap: {why}") from error
    if order.shape != (2, 2, patches) or np.any(np.sort(order) != np.arange(patches)):
        raise InputError(
            f"mask {name}: return an order int32 [batch, {patches}], in every row each of 0 to {patches - 1} once, the "
            f"patches that stay visible first; for batch 2 it returns {list(order.shape[1:])}"
        )


def mask_ratios(given: float | Sequence[float]) -> tuple[float, ...]:
    """List the mask ratios that the steps of a run draw from."""
    if isinstance(given, (int, float)):
        return (given,)
    first, last = given
    return tuple(float(ratio) for ratio in np.linspace(first, last, RATIOS).round(6))
