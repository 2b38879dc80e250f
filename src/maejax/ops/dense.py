"""Layers of every part of a model: linear, layer norm, GELU, dropout, and the MLP of a block.

Shapes: B batch, T tokens, D and E width. Parameters are float32; `dtype` is the type of the matrix products.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maejax.ops.platform import auto_devices, is_target_tpu, target_platform

# Bytes of a hidden layer that stay in a TPU's on-chip memory until they are read: a fifth of that memory.
PIECE_BYTES = 26 * 2**20
MOST_PIECES = 16  # each is compiled by itself

Dtype = jnp.dtype | type
Layer = Callable[[jax.Array], jax.Array]


@jax.custom_vjp
def affine(x: jax.Array, weights: jax.Array, bias: jax.Array) -> jax.Array:
    """Compute x [B, T, D] times weights [D, E] plus bias [E], both float32, in x's type: [B, T, E] of x's type.

    Products are of x's type and sums are float32, in the gradient too. The gradient of weights and bias stays float32
    from the samples to the optimizer, across devices too. The backward pass is written out, since autodiff would round
    that gradient. XLA on CPU multiplies in half precision, twice as fast, only if sums are requested in float32.
    """
    weights, bias = weights.astype(x.dtype), bias.reshape(1, 1, -1)
    if target_platform() == "gpu":  # one call of cuBLAS, which adds the bias before it rounds
        return rounded_product("btd,de->bte", x, weights) + bias.astype(x.dtype)
    return (product("btd,de->bte", x, weights) + bias).astype(x.dtype)


def product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Compute an einsum of two arrays with products in their type and float32 sums: float32."""
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def rounded_product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Compute `product` rounded to the arrays' type. On a GPU, cuBLAS rounds its float32 sums as it writes them."""
    if target_platform() == "gpu":
        return jnp.einsum(axes, a, b, preferred_element_type=a.dtype)
    return product(axes, a, b).astype(a.dtype)


def _affine_forward(x, weights, bias):
    return affine(x, weights, bias), (x, weights)


def _affine_backward(kept, g):
    x, weights = kept
    dx = rounded_product("bte,de->btd", g, weights.astype(x.dtype))
    if x.shape[-1] > g.shape[-1] and target_platform() == "cpu":
        # XLA on CPU would transpose both axes value by value, which for a wide x takes as long as the product.
        dweights = product("td,te->de", x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))
    else:
        dweights = product("btd,bte->de", x, g)
    return dx, dweights, jnp.sum(g, axis=(0, 1), dtype=jnp.float32)


affine.defvjp(_affine_forward, _affine_backward)


@jax.custom_vjp
def mixed(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Compute sums of the arrays x [S, B, T, D] by float32 weights [S, L], in x's type: [L, B, T, D] of x's type.

    As in `affine`, sums are float32, and the gradient of the weights stays so.
    """
    return rounded_product("sl,sbtd->lbtd", weights.astype(x.dtype), x)


def _mixed_forward(x, weights):
    return mixed(x, weights), (x, weights)


def _mixed_backward(kept, g):
    x, weights = kept
    dx = rounded_product("sl,lbtd->sbtd", weights.astype(x.dtype), g)
    return dx, product("sbtd,lbtd->sl", x, g)


mixed.defvjp(_mixed_forward, _mixed_backward)


class Linear(nnx.Linear):
    """Linear layer with float32 weights, computed in `dtype` by `affine`."""

    def __call__(self, x: jax.Array, outputs: slice = slice(None)) -> jax.Array:
        """Map x [B, T, D] to [B, T, E], or only to the slice `outputs` of E."""
        weights = self.kernel[...][:, outputs]
        bias = jnp.zeros(weights.shape[-1]) if self.bias is None else self.bias[...][outputs]
        return affine(x.astype(self.dtype), weights, bias)


def linear(inputs: int, outputs: int, dtype: Dtype, rngs: nnx.Rngs, *, bias: bool = True) -> Linear:
    """Make a linear layer with the authors' initialisation: Xavier-uniform weights, zero biases."""
    init = nnx.initializers.xavier_uniform()
    return Linear(inputs, outputs, kernel_init=init, use_bias=bias, dtype=dtype, rngs=rngs)


class LayerNorm(nnx.LayerNorm):
    """Layer norm in float32 with the exact (two-pass) variance; `rounded` if only a linear layer reads it."""

    rounded = False

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalise x [..., D]: float32, or of x's type on a GPU if it is `rounded`."""
        if target_platform() != "gpu" or mask is not None:
            return super().__call__(x, mask=mask)
        assert self.scale is not None and self.bias is not None
        return normalized(x, self.scale[...], self.bias[...], self.epsilon, x.dtype if self.rounded else jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalized(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float, dtype: Dtype) -> jax.Array:
    """Normalise x [..., D] in float32 and apply scale and bias [D]: of type `dtype`.

    The backward pass is written out for GPUs: with that of autodiff, XLA writes float32 arrays as large as x.
    """
    return _normalized_forward(x, scale, bias, eps, dtype)[0]


def _normalized_forward(x, scale, bias, eps, dtype):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + eps)
    return ((wide - mean) * (rate * _across(scale, x)) + _across(bias, x)).astype(dtype), (x, scale, mean, rate)


def _normalized_backward(eps, dtype, kept, g):
    x, scale, mean, rate = kept
    # Behind a barrier, or XLA keeps in float32 what these sums have in common with the gradient of x.
    y, h = jax.lax.optimization_barrier((x, g))
    rows, h = tuple(range(x.ndim - 1)), h.astype(jnp.float32)
    dscale, dbias = (h * (y - mean) * rate).sum(rows), h.sum(rows)
    unit, g = (x - mean) * rate, g * _across(scale, x)
    dx = rate * (g - g.mean(-1, keepdims=True) - unit * (g * unit).mean(-1, keepdims=True))
    return dx.astype(x.dtype), dscale, dbias


normalized.defvjp(_normalized_forward, _normalized_backward)


def _across(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Return a vector [D] with the axes of x [..., D]."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def layer_norm(dim: int, rngs: nnx.Rngs, eps: float = 1e-6, *, rounded: bool = False) -> LayerNorm:
    """Make a float32 layer norm, `rounded` as in `LayerNorm`."""
    norm = LayerNorm(dim, epsilon=eps, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)
    norm.rounded = rounded
    return norm


@jax.custom_vjp
def gelu(h: jax.Array) -> jax.Array:
    """Apply the exact (erf) GELU, in float32 whatever the type of h.

    `jax.nn.gelu` uses erfc, and CPUs round after every operation of half precision: each takes twice as long.
    """
    wide = h.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(h.dtype)


def _gelu_forward(h):
    return gelu(h), h  # keep h alone: autodiff would also keep erf(h)


def _gelu_backward(h, g):
    # Without the barrier XLA shares erf(h) with the forward pass and keeps it in float32: twice the bytes of h.
    h = jax.lax.optimization_barrier(h)
    wide = h.astype(jnp.float32)
    cdf = 0.5 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))
    pdf = jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    return ((g * (cdf + wide * pdf)).astype(h.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def quick_gelu(h: jax.Array) -> jax.Array:
    """Apply x sigmoid(1.702 x), OpenAI's approximation of the GELU."""
    return h * jax.nn.sigmoid(1.702 * h)


def swiglu(h: jax.Array) -> jax.Array:
    """Multiply values by SiLU of their gates, which come first: h [..., 2 E] to [..., E]."""
    gate, value = jnp.split(h, 2, axis=-1)
    return jax.nn.silu(gate) * value


ACTIVATIONS = {"erf": gelu, "tanh": jax.nn.gelu, "quick": quick_gelu, "swiglu": swiglu}


def dropout(x: jax.Array, rate: float | jax.Array, key: jax.Array | None, shape: Sequence[int] | None = None):
    """Zero elements of x with probability `rate` and scale up the rest; identity without a key.

    A `shape` that broadcasts against x drops slices together: (B, 1, 1) is stochastic depth.
    """
    if key is None or (isinstance(rate, float) and rate == 0):
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape if shape is None else shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def mlp(x: jax.Array, fc1: Linear, fc2: Linear, form: str, rate: float = 0, key=None, pieces: bool = True) -> jax.Array:
    """Map x [B, T, D] by two linear layers with one of `ACTIVATIONS` and dropout between them: [B, T, D].

    The pre-GELU values of the hidden layer, four times as wide as x, are named "hidden" for `jax.checkpoint`.

    The step is memory-bound on TPU v4 and later. There, unless `pieces` is False, the hidden layer is computed in
    chunks of tokens that fit on-chip, and only its pre-GELU values are kept for the backward pass.
    """
    activate = ACTIVATIONS[form]
    fixed = isinstance(x.shape[0], int)  # not when exported for any batch
    if pieces and is_target_tpu() and fixed and (key is None or rate == 0):
        x = x.astype(fc1.dtype)
        return mlp_in_pieces(x, fc1, fc2, activate, piece_ends(x, fc1.out_features))
    hidden = checkpoint_name(fc1(x), "hidden")
    return fc2(dropout(activate(hidden), rate, key))


def mlp_in_pieces(x: jax.Array, fc1: Layer, fc2: Layer, activate: Layer, ends: Sequence[int]) -> jax.Array:
    """Compute `mlp` on chunks of the tokens of x [B, T, D], split before each index in `ends`.

    x is of the layers' `dtype`. Only the pre-GELU values are kept for the backward pass.
    """

    @jax.checkpoint
    def second_half(hidden):
        # Without the barrier the product with the gradient recomputes the GELU for each tile that it reads.
        return fc2(jax.lax.optimization_barrier(activate(hidden)))

    chunks = jnp.split(x, ends, axis=1)
    return jnp.concatenate([second_half(checkpoint_name(fc1(chunk), "hidden")) for chunk in chunks], axis=1)


def piece_ends(x: jax.Array | jax.ShapeDtypeStruct, width: int) -> list[int]:
    """Return where to split the tokens of x [B, T, D] so that each chunk's hidden layer takes at most `PIECE_BYTES`.

    Tokens are split because the samples are already spread over the devices. Returns no split where it takes more than
    MOST_PIECES chunks.
    """
    samples, tokens, _ = x.shape
    nbytes = samples // auto_devices() * tokens * width * x.dtype.itemsize
    pieces = math.ceil(nbytes / PIECE_BYTES)
    return [tokens * i // pieces for i in range(1, pieces)] if pieces <= min(tokens, MOST_PIECES) else []
