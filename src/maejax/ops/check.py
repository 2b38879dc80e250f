"""Comparison of each fast form with plain products on the device itself: one layer, forward and gradient.

Shapes: B batch, Q queries, T tokens, D width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from maejax.ops.attention import attend, attend_packed, attend_plainly, chosen_form
from maejax.ops.dense import Dtype, affine, gelu, mlp_in_pieces, piece_ends
from maejax.ops.platform import is_target_tpu, target_platform

FastForm = Literal["pallas", "cudnn", "pieces"]
NAMES: dict[FastForm, str] = {
    "pallas": "attention by the TPU kernel",
    "cudnn": "attention by cuDNN",
    "pieces": "the MLP in pieces of tokens",
}
# Samples of a comparison. All forms work per sample, and 64 fill two blocks of the TPU kernel from 50 tokens of half
# precision on, the second of them in part.
MOST_ROWS = 64


@dataclass(frozen=True)
class Sizes:
    """Sizes of the layers of one part of a model on one device: B, Q, T, D and the attention heads.

    Q is less than T in a layer whose last Q tokens alone are asked for; its MLP has Q tokens.
    """

    part: str
    rows: int
    queries: int
    tokens: int
    dim: int
    heads: int


@dataclass(frozen=True)
class Comparison:
    """Deviations of a fast form from exact products, as shares of the largest vector, and the bound for both.

    `error` is the first line of what was raised instead.
    """

    form: FastForm
    part: str
    forward: float
    gradient: float
    bound: float
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the form may run: neither raised nor deviated. NaN deviates."""
        return not self.error and self.forward <= self.bound and self.gradient <= self.bound

    def __str__(self) -> str:
        """Describe the outcome in one line."""
        if self.error:
            return f"{NAMES[self.form]} fails in the {self.part}: {self.error}"
        return (
            f"{NAMES[self.form]} deviates in the {self.part} by {self.forward:.1e} forward and {self.gradient:.1e} in "
            f"the gradient, at most {self.bound:.1e} is rounding"
        )


def compare_fast_forms(layers: Sequence[Sizes], dtype: Dtype, *, attention: bool = True) -> list[Comparison]:
    """Compare the fast forms of this device at the sizes of a model's layers; none on CPU.

    `dtype` is the type of the model's matrix products. Without `attention` only the MLP is compared.
    """
    found = []
    for sizes in layers:
        form = attention_form(sizes, dtype) if attention else None
        found += [compare(each, sizes, dtype) for each in (form, "pieces" if is_target_tpu() else None) if each]
    return found


def attention_form(sizes: Sizes, dtype: Dtype) -> Literal["pallas", "cudnn"] | None:
    """Return the fast form of attention that supports this device and these sizes, if there is one."""
    q, k = (jax.ShapeDtypeStruct((sizes.rows, n, sizes.dim), dtype) for n in (sizes.queries, sizes.tokens))
    return next((form for form in ("pallas", "cudnn") if chosen_form(form, q, k, sizes.heads) == form), None)  # type: ignore[arg-type]


def compare(form: FastForm, sizes: Sizes, dtype: Dtype) -> Comparison:
    """Compare one fast form at these sizes, but at most `MOST_ROWS` samples, with exact products.

    Whatever the compiler or the device raises counts as failed.
    """
    limit = bound(sizes, dtype)
    try:
        fast, plain, draw = _mlp_forms(sizes, dtype) if form == "pieces" else _attention_forms(form, sizes, dtype)
        *operands, cotangent = jax.jit(draw)(jax.random.key(0))
        found = jax.jit(_outcome, static_argnums=0)(fast, operands, cotangent)
        with jax.default_matmul_precision("highest"):
            forward, gradient = jax.jit(_deviations, static_argnums=0)(plain, operands, cotangent, found)
        return Comparison(form, sizes.part, float(forward), float(gradient), limit)
    except Exception as error:
        first_line = (str(error).strip() or "no message").splitlines()[0]
        return Comparison(form, sizes.part, math.nan, math.nan, limit, f"{type(error).__name__}: {first_line[:200]}")


def bound(sizes: Sizes, dtype: Dtype) -> float:
    """Return how far rounding can move a vector of results, as a share of the largest.

    A form rounds at up to five places to the type of the products. Each moves a vector by eps / 5 in the mean: values
    are off by eps / sqrt(12) of their power of two. Their squares add up to about half of eps, and eps is the bound.
    On TPU float32 products round their operands to bfloat16. Float32 sums add eps(float32) times the square root of
    their length.
    """
    products = jnp.bfloat16 if target_platform() == "tpu" else dtype
    terms = min(sizes.rows, MOST_ROWS) * sizes.tokens + 4 * sizes.dim
    return float(jnp.finfo(products).eps) + float(jnp.finfo(jnp.float32).eps) * math.sqrt(terms)


def _attention_forms(form: str, sizes: Sizes, dtype: Dtype):
    """Return attention by a fast form, by plain products, and a function that draws q, k, v and a cotangent."""
    heads, rows = sizes.heads, min(sizes.rows, MOST_ROWS)

    def fast(q, k, v):
        if sizes.queries == sizes.tokens:  # as in a layer whose tokens are all asked for
            return attend_packed(jnp.concatenate([q, k, v], axis=-1), heads, form)
        return attend(q, k, v, heads, form)

    def draw(key):
        lengths = (sizes.queries, sizes.tokens, sizes.tokens, sizes.queries)
        keys = jax.random.split(key, 4)
        return [jax.random.normal(k, (rows, n, sizes.dim), dtype) for k, n in zip(keys, lengths, strict=True)]

    return fast, lambda *operands: attend_plainly(*operands, heads), draw


def _mlp_forms(sizes: Sizes, dtype: Dtype):
    """Return the MLP in the pieces of the full batch, by plain products, and a function that draws its operands."""
    rows, dim, tokens = min(sizes.rows, MOST_ROWS), sizes.dim, sizes.queries
    ends = piece_ends(jax.ShapeDtypeStruct((sizes.rows, tokens, dim), dtype), 4 * dim)

    def fast(x, *weights):
        fc1, fc2 = (lambda x, w=w, b=b: affine(x, w, b) for w, b in (weights[:2], weights[2:]))
        return mlp_in_pieces(x, fc1, fc2, gelu, ends)

    def plain(x, *weights):
        return affine(gelu(affine(x, *weights[:2])), *weights[2:])

    def draw(key):
        keys = jax.random.split(key, 6)
        x, cotangent = (jax.random.normal(k, (rows, tokens, dim), dtype) for k in keys[:2])
        shapes = (dim, 4 * dim), (4 * dim,), (4 * dim, dim), (dim,)
        weights = (jax.random.normal(k, s) * s[0] ** -0.5 for k, s in zip(keys[2:], shapes, strict=True))
        # Rounded to `dtype`: exact products must be of the same numbers. XLA may skip a cast to `dtype` and back.
        kept = jnp.finfo(dtype)
        return [x, *(jax.lax.reduce_precision(w, kept.nexp, kept.nmant) for w in weights), cotangent]

    return fast, plain, draw


def _outcome(function: Callable[..., jax.Array], operands: list[jax.Array], cotangent: jax.Array) -> list[jax.Array]:
    """Compute a function of the operands and its gradients by each of them, where its result has that cotangent."""
    out, backward = jax.vjp(function, *operands)
    return [out, *backward(cotangent)]


def _deviations(plain, operands, cotangent, found) -> tuple[jax.Array, jax.Array]:
    """Compare what was found with a function's exact outcome: the result's deviation and the gradients' largest.

    Arrays are compared by their vectors along the last axis: the longest difference by the longest exact one. So a
    wrong value weighs as much among many samples as among few.
    """
    wide = [a.astype(jnp.float32) for a in (*operands, cotangent)]

    def deviation(found, exact):
        off, size = (jnp.linalg.norm(a, axis=-1).max() for a in (found.astype(jnp.float32) - exact, exact))
        return off / size

    out, *gradients = map(deviation, found, _outcome(plain, wide[:-1], wide[-1]))
    return out, jnp.stack(gradients).max()
