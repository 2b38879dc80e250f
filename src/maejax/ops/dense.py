"""Layers that are the same in every part of a model: linear, layer norm, GELU, dropout, and the MLP of a block.

Shapes: B batch, T tokens, D and E width. Parameters are float32; `dtype` is the type of the matrix products.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maejax.ops.platform import auto_devices, platform_ahead, tpu_ahead

# Bytes of a hidden layer that stay on a TPU chip while they are read: a fifth of what it holds beside its registers.
PIECE_BYTES = 26 * 2**20
MOST_PIECES = 16  # each is compiled by itself

Dtype = jnp.dtype | type


@jax.custom_vjp
def affine(x: jax.Array, weights: jax.Array, bias: jax.Array) -> jax.Array:
    """Compute x [B, T, D] times weights [D, E] plus bias [E], both float32, in x's type: [B, T, E] of x's type.

    Products are of x's type, sums are float32, and so it is with the gradient: that of weights and bias stays float32
    from the samples to the optimizer, across devices too. Written out since autodiff would round it, and since XLA on
    CPU multiplies in half precision only where the sums are asked for in single: twice as fast.
    """
    return (_product("btd,de->bte", x, weights.astype(x.dtype)) + bias.reshape(1, 1, -1)).astype(x.dtype)


def _product(axes, a, b):
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _affine_forward(x, weights, bias):
    return affine(x, weights, bias), (x, weights)


def _affine_backward(kept, g):
    x, weights = kept
    dx = _product("bte,de->btd", g, weights.astype(x.dtype)).astype(x.dtype)
    if x.shape[-1] > g.shape[-1] and platform_ahead() == "cpu":
        # XLA on CPU would transpose what lies over two axes, value by value: for a wide x as long as the product takes.
        dweights = _product("td,te->de", x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))
    else:
        dweights = _product("btd,bte->de", x, g)
    return dx, dweights, jnp.sum(g, axis=(0, 1), dtype=jnp.float32)


affine.defvjp(_affine_forward, _affine_backward)


class Linear(nnx.Linear):
    """A linear layer with float32 weights, computed in `dtype` by `affine`."""

    def __call__(self, x: jax.Array, outputs: slice = slice(None)) -> jax.Array:
        """Map x [B, T, D] to [B, T, E], or to some of its `outputs` and no others."""
        weights, bias = self.kernel[...][:, outputs], self.bias[...][outputs]  # pyright: ignore[reportOptionalSubscript]
        return affine(x.astype(self.dtype), weights, bias)


def linear(inputs: int, outputs: int, dtype: Dtype, rngs: nnx.Rngs) -> Linear:
    """Make a linear layer with the authors' initialisation: Xavier-uniform weights, zero biases."""
    return Linear(inputs, outputs, kernel_init=nnx.initializers.xavier_uniform(), dtype=dtype, rngs=rngs)


def layer_norm(dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Make a float32 layer norm with eps 1e-6 and the exact (two-pass) variance."""
    return nnx.LayerNorm(dim, epsilon=1e-6, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)


@jax.custom_vjp
def gelu(h: jax.Array) -> jax.Array:
    """Apply the exact (erf) GELU, in float32 whatever the type of h.

    Written out since `jax.nn.gelu` goes through erfc, and since CPUs round every single operation of half precision:
    both take twice as long.
    """
    wide = h.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(h.dtype)


def _gelu_forward(h):
    return gelu(h), h  # keep h alone: autodiff would also keep erf(h)


def _gelu_backward(h, g):
    # Else XLA finds erf(h) to be that of the forward pass and keeps it in float32: twice the bytes of h.
    h = jax.lax.optimization_barrier(h)
    wide = h.astype(jnp.float32)
    cdf = 0.5 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))
    pdf = jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    return ((g * (cdf + wide * pdf)).astype(h.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def activation(kind: str) -> Callable[[jax.Array], jax.Array]:
    """Choose the GELU: "erf", exact, or "tanh", the approximation that the original's weights were trained with."""
    if kind not in ("erf", "tanh"):
        raise ValueError(f"gelu is erf or tanh, not {kind}")
    return gelu if kind == "erf" else jax.nn.gelu


def dropout(x: jax.Array, rate: float | jax.Array, key: jax.Array | None, shape: Sequence[int] | None = None):
    """Zero elements of x with probability `rate` and scale up the rest; identity without a key.

    `shape` (broadcast against x) drops whole slices together: (B, 1, 1) is stochastic depth.
    """
    if key is None or (isinstance(rate, float) and rate == 0):
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape if shape is None else shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def mlp(x: jax.Array, fc1: Linear, fc2: Linear, gelu: str, rate: float = 0.0, key: jax.Array | None = None):
    """Map x [B, T, D] by two linear layers with the GELU and dropout between them: [B, T, D].

    Of the hidden layer, four times as wide as x, what enters the GELU is named "hidden" for `jax.checkpoint`.

    On TPU from v4 on, where memory is what a step waits for, it is made a piece of the tokens at a time, each small
    enough to stay on the chip until it was read, and of it what enters the GELU alone is kept for the backward pass.
    """
    activate = activation(gelu)
    fixed = isinstance(x.shape[0], int)  # else a file for any batch is written
    if not tpu_ahead() or not fixed or (key is not None and rate > 0):
        hidden = checkpoint_name(fc1(x), "hidden")
        return fc2(dropout(activate(hidden), rate, key))

    @jax.checkpoint
    def rest(hidden):
        # Without the barrier the product with the gradient computes the GELU anew for each tile that it reads.
        return fc2(jax.lax.optimization_barrier(activate(hidden)))

    x = x.astype(fc1.dtype)
    pieces = jnp.split(x, piece_ends(x, fc1.out_features), axis=1)
    return jnp.concatenate([rest(checkpoint_name(fc1(piece), "hidden")) for piece in pieces], axis=1)


def piece_ends(x: jax.Array, width: int) -> list[int]:
    """Say where to cut the tokens of x [B, T, D], so that no piece's layer of a `width` is beyond `PIECE_BYTES`.

    It is tokens that are cut since the samples already lie on several devices. Where that takes more than MOST_PIECES,
    none is cut.
    """
    samples, tokens, _ = x.shape
    nbytes = samples // auto_devices() * tokens * width * x.dtype.itemsize
    pieces = math.ceil(nbytes / PIECE_BYTES)
    return [tokens * i // pieces for i in range(1, pieces)] if pieces <= min(tokens, MOST_PIECES) else []
