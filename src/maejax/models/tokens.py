"""Learned tokens, and the positions of all tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

from maejax.models.patches import sincos_table

TOKEN_STD = 0.02  # cls and mask token, authors' code


class Constant(nnx.Variable):
    """An array that is saved with the model and never trained."""


def token(dim: int, rngs: nnx.Rngs, count: int = 1) -> nnx.Param:
    """Build learned tokens [1, count, D], normal with standard deviation .02."""
    return nnx.Param(TOKEN_STD * jax.random.normal(rngs.params(), (1, count, dim)))


def positions(kind: str, grid: tuple[int, int], dim: int, rngs: nnx.Rngs, *, cls: bool) -> nnx.Variable | None:
    """Build positions of the cls token, if it has one, and of N patches: [1, 1 + N, D] or [1, N, D].

    They are fixed "sincos2d" (a `Constant`) or "learnable" (a `Param`, std .02); None for "rotary".
    """
    if kind == "rotary":
        return None
    if kind == "sincos2d":
        return Constant(jnp.asarray(sincos_table(grid, dim, cls=cls))[None])
    return nnx.Param(TOKEN_STD * jax.random.normal(rngs.params(), (1, cls + grid[0] * grid[1], dim)))


def mixing_weights(states: int, layers: int, rngs: nnx.Rngs, wanted: bool) -> nnx.Param | None:
    """Build the weights [states, layers] of a decoder's mixes, Xavier-uniform as in CrossMAE; None if unwanted."""
    init = nnx.initializers.xavier_uniform()
    return nnx.Param(init(rngs.params(), (states, layers))) if wanted else None


def frozen_if_constant(variable: nnx.Variable) -> jax.Array:
    """Read a variable; no gradient reaches it if it is a `Constant`."""
    value = variable[...]
    return jax.lax.stop_gradient(value) if isinstance(variable, Constant) else value
