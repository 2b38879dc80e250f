"""Comparison of each fast form with plain products on the device itself: one layer, forward and gradient.

Shapes: B batch, Q queries, T tokens, D width.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from maejax.ops.attention import attend, attend_packed, attend_plainly, chosen_form
from maejax.ops.dense import ACTIVATIONS, Dtype, affine, mlp_in_pieces, piece_ends
from maejax.ops.platform import is_target_tpu, target_platform

NAMES = {"pallas": "TPU attention kernel", "cudnn": "cuDNN attention", "pieces": "MLP in pieces of tokens"}
# Samples of a comparison. All forms work per sample; from 50 tokens of half precision on, 64 samples fill more than two
# blocks of the TPU kernel, the last one in part.
MOST_ROWS = 64


@dataclass(frozen=True)
class Sizes:
    """Sizes of a layer on one device: B samples, Q tokens with queries and in the MLP, T tokens in all, D, heads, E.

    `activation` is the name of that of the MLP. A layer `crosses` if its queries are no part of the tokens.
    """

    part: str
    rows: int
    queries: int
    tokens: int
    dim: int
    heads: int
    mlp_dim: int
    activation: str = "erf"
    crosses: bool = False


@dataclass(frozen=True)
class Comparison:
    """Deviations of a fast form as shares of the largest vector, their bound, and the error if one was raised."""

    form: str
    part: str
    forward: float
    gradient: float
    bound: float
    error: str = ""

    @property
    def ok(self) -> bool:
        """True if the form may run: no error, and no deviation beyond the bound. NaN is beyond it."""
        return not self.error and self.forward <= self.bound and self.gradient <= self.bound

    def __str__(self) -> str:
        """Describe the outcome in one line."""
        deviations = f"off by {self.forward:.1e} forward, {self.gradient:.1e} in the gradient; {self.bound:.1e} allowed"
        return f"{NAMES[self.form]} in the {self.part}: {self.error or deviations}"


def compare_fast_forms(layers: Sequence[Sizes], dtype: Dtype, *, attention: bool = True) -> list[Comparison]:
    """Compare the fast forms of this device at the sizes of a model's layers; none on CPU.

    `dtype` is the type of the model's matrix products. Without `attention` only the MLP is compared.
    """
    found = []
    for sizes in layers:
        q, k = (jax.ShapeDtypeStruct((sizes.rows, n, sizes.dim), dtype) for n in (sizes.queries, sizes.tokens))
        forms = ["pieces"] if is_target_tpu() else []
        if attention:
            forms += [form for form in ("pallas", "cudnn") if chosen_form(form, q, k, sizes.heads) == form]
        found += [compare(form, sizes, dtype) for form in forms]
    return found


def compare(form: str, sizes: Sizes, dtype: Dtype) -> Comparison:
    """Compare one fast form at these sizes, but at most `MOST_ROWS` samples, with exact products.

    The form fails if the compiler or the device raises anything. Otherwise the bound is what rounding can do to a
    vector. A form rounds at up to five places to the type of its products, and values are off by eps / sqrt(12) of
    their power of two: each place moves a vector by eps / 5. The root of the squares is half of eps, and eps is the
    bound. Float32 sums add their eps times the square root of the number of terms.
    """
    products = jnp.bfloat16 if target_platform() == "tpu" else dtype  # there those of float32 too, by JAX's default
    terms = min(sizes.rows, MOST_ROWS) * sizes.tokens + sizes.mlp_dim
    bound = float(jnp.finfo(products).eps + jnp.finfo(jnp.float32).eps * math.sqrt(terms))
    forward, gradient, error = math.nan, math.nan, ""
    try:
        fast, plain, shapes = _mlp_forms(sizes, dtype) if form == "pieces" else _attention_forms(form, sizes)
        *operands, cotangent = jax.jit(_draw, static_argnums=(0, 1))(tuple(shapes), jnp.dtype(dtype))
        found = jax.jit(_outcome, static_argnums=0)(fast, operands, cotangent)
        with jax.default_matmul_precision("highest"):
            forward, gradient = map(float, jax.jit(_deviations, static_argnums=0)(plain, operands, cotangent, found))
    except Exception as raised:
        error = f"{type(raised).__name__}: {str(raised).strip()}".splitlines()[0][:200]
    return Comparison(form, sizes.part, forward, gradient, bound, error)


def _attention_forms(form: str, sizes: Sizes):
    """Return attention by a fast form, attention by plain products, and the shapes of q, k, v and the result."""

    def fast(q, k, v):
        if sizes.queries == sizes.tokens and not sizes.crosses:  # a layer of a model projects to one array then
            return attend_packed(jnp.concatenate([q, k, v], axis=-1), sizes.heads, form)
        return attend(q, k, v, sizes.heads, form)

    rows, (queries, tokens) = min(sizes.rows, MOST_ROWS), (sizes.queries, sizes.tokens)
    shapes = [(rows, length, sizes.dim) for length in (queries, tokens, tokens, queries)]
    return fast, functools.partial(attend_plainly, heads=sizes.heads), shapes


def _mlp_forms(sizes: Sizes, dtype: Dtype):
    """Return the MLP in the pieces of the full batch, by plain products, and the shapes of operands and result."""
    dim, hidden, activate = sizes.dim, sizes.mlp_dim, ACTIVATIONS[sizes.activation]
    first = hidden * (2 if sizes.activation == "swiglu" else 1)
    ends = piece_ends(jax.ShapeDtypeStruct((sizes.rows, sizes.queries, dim), dtype), first)

    def fast(x, w1, b1, w2, b2):
        return mlp_in_pieces(x, lambda x: affine(x, w1, b1), lambda x: affine(x, w2, b2), activate, ends)

    def plain(x, w1, b1, w2, b2):
        return affine(activate(affine(x, w1, b1)), w2, b2)

    tokens = (min(sizes.rows, MOST_ROWS), sizes.queries, dim)
    return fast, plain, [tokens, (dim, first), (first,), (hidden, dim), (dim,), tokens]


def _draw(shapes: Sequence[tuple[int, ...]], dtype: jnp.dtype) -> list[jax.Array]:
    """Draw tokens [B, T, D] of a type, and float32 weights and biases with the values of that type."""
    keys, kept = jax.random.split(jax.random.key(0), len(shapes)), jnp.finfo(dtype)
    values = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    # Not by a cast to `dtype` and back, which XLA may skip.
    rounded = [jax.lax.reduce_precision(a * len(a) ** -0.5, kept.nexp, kept.nmant) for a in values]
    return [a.astype(dtype) if a.ndim == 3 else weights for a, weights in zip(values, rounded, strict=True)]


def _outcome(function: Callable[..., jax.Array], operands: list[jax.Array], cotangent: jax.Array) -> list[jax.Array]:
    """Compute a function of the operands and, for a cotangent of its result, the gradient by each operand."""
    out, backward = jax.vjp(function, *operands)
    return [out, *backward(cotangent)]


def _deviations(plain, operands, cotangent, found) -> tuple[jax.Array, jax.Array]:
    """Return how far the found outcome of a function is from the exact one: the result, and the worst gradient.

    Arrays are compared by their vectors along the last axis: the longest difference by the longest exact vector. So a
    wrong vector weighs as much among many samples as among few.
    """
    *wide, wide_cotangent = [array.astype(jnp.float32) for array in (*operands, cotangent)]

    def deviation(found, exact):
        off, size = (jnp.linalg.norm(a, axis=-1).max() for a in (found.astype(jnp.float32) - exact, exact))
        return off / size

    out, *gradients = map(deviation, found, _outcome(plain, wide, wide_cotangent))
    return out, jnp.stack(gradients).max()
