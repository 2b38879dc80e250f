"""Layers: exact GELU, sums of half precision, the MLP in pieces."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.stats import norm

from maejax.ops import dense
from maejax.ops.dense import gelu, linear, mlp

from ..bounds import assert_close, rounding


def test_gelu_is_exact_and_so_is_its_gradient():
    h = jnp.linspace(-6, 6, 101)
    series = 16  # terms of the error function's approximation
    assert_close(gelu(h), h * norm.cdf(h), rounding(series))
    assert_close(jax.vmap(jax.grad(gelu))(h), norm.cdf(h) + h * norm.pdf(h), rounding(series))


def test_mlp_by_pieces_of_the_tokens_is_the_same_and_keeps_less(monkeypatch):
    fc1, fc2 = linear(8, 32, jnp.float32, nnx.Rngs(0)), linear(32, 8, jnp.float32, nnx.Rngs(1))
    x = jax.random.normal(jax.random.key(0), (4, 13, 8))

    def value(fc1, fc2, x):
        return jnp.sum(mlp(x, fc1, fc2, "erf") ** 2)

    def found():
        loss, backward = jax.vjp(value, fc1, fc2, x)
        kept = [array.shape for array in jax.tree.leaves(backward) if array.shape[-1:] == (32,) and array.ndim == 3]
        return (loss, backward(1.0)), sorted(kept)

    plain, _ = found()
    monkeypatch.setattr(dense, "is_target_tpu", lambda: True)
    monkeypatch.setattr(dense, "PIECE_BYTES", 4 * 5 * 32 * 4)  # of 13 tokens, five at the most
    in_pieces, kept = found()
    assert kept == [(4, 4, 32), (4, 4, 32), (4, 5, 32)]  # what enters the GELU, and not what leaves it
    assert_close(in_pieces, plain, rounding(8 + 32 + 4 * 13 * 8))
    monkeypatch.setattr(dense, "MOST_PIECES", 2)
    assert dense.piece_ends(x, 32) == []


def test_half_precision_layers_sum_in_single_and_do_not_round_their_gradients():
    layer = linear(24, 40, jnp.bfloat16, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(size=(3, 50, size)), jnp.bfloat16) for size in (24, 40))

    def both(layer, x, g):
        y, backward = jax.vjp(lambda layer, x: layer(x), layer, x)
        return y, *backward(g)

    y, found, dx = jax.jit(both)(layer, x, g)
    x32, g32, weights = np.float32(x), np.float32(g), np.float32(layer.kernel[...].astype(jnp.bfloat16))
    assert_close(found.kernel[...], np.einsum("btd,bte->de", x32, g32), rounding(3 * 50))
    assert_close(found.bias[...], g32.sum((0, 1)), rounding(3 * 50))
    assert y.dtype == dx.dtype == jnp.bfloat16
    assert_close(y, x32 @ weights, rounding(24), each=2**-8)
    assert_close(dx, g32 @ weights.T, rounding(40), each=2**-8)
