"""Attention over short sequences as one Pallas kernel for TPU: the scores never leave the chip.

XLA writes the scores [B, heads, T, T] of a layer to memory in float32, forward and backward. At the sizes of a masked
autoencoder that is half of all bytes that a training step moves. One program of the kernel holds some samples and a
block of lanes of their width: the fewest groups of 128 lanes that whole heads fill. That is 128 lanes, or 640 for the
eight heads of 80 of ViT-H. A head owns its lanes: its queries are set to zero in all others. The hardware multiplies
128 lanes at once, and so the product gives the scores of that head alone. A head of 80 may lie in two groups; its
products are then over both. Any number of tokens works, without padding in memory.

Shapes: B batch, Q queries, T tokens, D width.
"""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
MOST_TOKENS = 512  # with more, the scores of a head fill the on-chip memory
HEAD_SIZES = (32, 64, 80, 128)
# Bytes of the seven arrays of the backward pass, double-buffered. The compiler gives a kernel 16 MiB, and the scores
# take a few of them.
BLOCK_BYTES = 6 * 2**20


def fits_kernel(queries: int, tokens: int, dim: int, heads: int) -> bool:
    """Return whether the kernel supports these sizes: up to 512 tokens, heads that fill groups of 128 lanes."""
    head_dim = dim // heads
    return max(queries, tokens) <= MOST_TOKENS and head_dim in HEAD_SIZES and dim % math.lcm(head_dim, LANES) == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend_on_chip(q: jax.Array, k: jax.Array, v: jax.Array, heads: int, interpret: bool = False) -> jax.Array:
    """Attend with queries q [B, Q, D] over keys and values k, v [B, T, D], `heads` of them side by side: [B, Q, D].

    Arrays are float32 or bfloat16; softmax and sums are float32. The backward pass recomputes the scores, so only q, k
    and v are kept for it. `interpret` runs the kernel on any platform, slowly.
    """
    return _call(_forward, 2, [q, k, v], [q], heads, interpret)[0]


def _keep(q, k, v, heads, interpret):
    return attend_on_chip(q, k, v, heads, interpret), (q, k, v)


def _differentiate(heads, interpret, kept, g):
    return tuple(_call(_backward, 5, [*kept, g], kept, heads, interpret))


attend_on_chip.defvjp(_keep, _differentiate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def attend_packed_on_chip(qkv: jax.Array, heads: int, interpret: bool = False) -> jax.Array:
    """Attend as `attend_on_chip` does, with queries, keys and values side by side in one array [B, T, 3 D].

    One product makes that array and takes its gradient; to split it would be to copy it.
    """
    batch, tokens, width = qkv.shape
    out = jax.ShapeDtypeStruct((batch, tokens, width // 3), qkv.dtype)
    return _call(_forward, 2, [qkv] * 3, [out], heads, interpret, packed=True)[0]


def _keep_packed(qkv, heads, interpret):
    return attend_packed_on_chip(qkv, heads, interpret), qkv


def _differentiate_packed(heads, interpret, qkv, g):
    return tuple(_call(_backward_packed, 5, [qkv] * 3 + [g], [qkv], heads, interpret, packed=True))


attend_packed_on_chip.defvjp(_keep_packed, _differentiate_packed)


def _call(kernel, products, inputs, like, heads, interpret, packed=False):
    """Run a kernel over blocks of (samples, all tokens, whole heads); its outputs have the shapes and types of `like`.

    `products` is the number of matrix products of a head, each of queries x tokens x the groups of 128 lanes of that
    head. The cost estimate follows from it, for the compiler and for `maejax plan`. With `packed` the first three
    inputs are one array. An output of its shape is written a third at a time, along the last axis of the grid.
    """
    batch, tokens, dim = inputs[1].shape
    dim = dim // 3 if packed else dim
    head_dim, scores = dim // heads, batch * heads * inputs[0].shape[1] * tokens
    lanes = math.lcm(head_dim, LANES)
    groups, windows = dim // lanes, head_windows(lanes, head_dim)
    width = sum(window.stop - window.start for window in windows) / len(windows)
    sample_bytes = 7 * 2 * (max(tokens, inputs[0].shape[1]) + 8) * lanes * inputs[1].dtype.itemsize
    samples = max(1, min(batch, BLOCK_BYTES // sample_bytes))
    thirds = 3 if packed and like[0].shape[-1] > dim else 1

    def block(array, third):
        return pl.BlockSpec(
            (samples, array.shape[1], lanes), lambda i, j, step: (i, 0, j + groups * (step if third is None else third))
        )

    return pl.pallas_call(
        functools.partial(kernel, head_dim=head_dim),
        # The last block may reach beyond the batch: its surplus rows are undefined and not written.
        grid=(pl.cdiv(batch, samples), groups, thirds),
        in_specs=[block(array, i if packed and i < 3 else 0) for i, array in enumerate(inputs)],
        out_specs=[block(array, None if thirds > 1 else 0) for array in like],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in like],
        scratch_shapes=[pltpu.VMEM((samples, tokens, lanes), inputs[1].dtype)] * (thirds - 1),
        interpret=interpret,
        # The two cores of a v4 or v5p chip share only the axes of a grid whose steps are independent.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=int(2 * width * products * scores),
            transcendentals=scores,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in [*inputs[2 * packed :], *like]),
        ),
    )(*inputs)


def _forward(q_ref, k_ref, v_ref, out_ref, *, head_dim):
    def _sample(i, _):
        q, k, v = q_ref[i], k_ref[i], v_ref[i]
        scaled = q.astype(jnp.float32) * head_dim**-0.5
        out = jnp.zeros(q.shape, jnp.float32)
        for lanes, own in _heads(q.shape, head_dim):
            exps, total = _exponentials(jnp.where(own, scaled[:, lanes], 0).astype(q.dtype), k[:, lanes])
            out = _put(out, lanes, own, _dot(exps.astype(v.dtype), v[:, lanes], 1, 0) / total)
        out_ref[i] = out.astype(out_ref.dtype)

    jax.lax.fori_loop(0, q_ref.shape[0], _sample, None)


def _backward(q_ref, k_ref, v_ref, g_ref, dq_ref, dk_ref, dv_ref, *, head_dim):
    def _sample(i, _):
        q, k, v, g = q_ref[i], k_ref[i], v_ref[i], g_ref[i]
        scale = head_dim**-0.5
        scaled, wide_g = q.astype(jnp.float32) * scale, g.astype(jnp.float32)
        dq = jnp.zeros(q.shape, jnp.float32)
        dk = dv = jnp.zeros(k.shape, jnp.float32)
        for (lanes, own), (_, own_k) in zip(_heads(q.shape, head_dim), _heads(k.shape, head_dim), strict=True):
            exps, total = _exponentials(jnp.where(own, scaled[:, lanes], 0).astype(q.dtype), k[:, lanes])
            p = exps / total
            dp = _dot(jnp.where(own, wide_g[:, lanes], 0).astype(g.dtype), v[:, lanes], 1, 1)
            ds = (p * (dp - jnp.sum(p * dp, axis=1, keepdims=True))).astype(q.dtype)
            dq = _put(dq, lanes, own, _dot(ds, k[:, lanes], 1, 0))
            dk = _put(dk, lanes, own_k, _dot(ds, scaled[:, lanes].astype(q.dtype), 0, 0))
            dv = _put(dv, lanes, own_k, _dot(p.astype(g.dtype), g[:, lanes], 0, 0))
        dq_ref[i] = (dq * scale).astype(dq_ref.dtype)
        dk_ref[i] = dk.astype(dk_ref.dtype)
        dv_ref[i] = dv.astype(dv_ref.dtype)

    jax.lax.fori_loop(0, q_ref.shape[0], _sample, None)


def _backward_packed(q_ref, k_ref, v_ref, g_ref, third_ref, dk_ref, dv_ref, *, head_dim):
    third = pl.program_id(2)

    @pl.when(third == 0)
    def _():
        _backward(q_ref, k_ref, v_ref, g_ref, third_ref, dk_ref, dv_ref, head_dim=head_dim)

    @pl.when(third == 1)
    def _():
        third_ref[...] = dk_ref[...]

    @pl.when(third == 2)
    def _():
        third_ref[...] = dv_ref[...]


def head_windows(lanes: int, head_dim: int) -> list[slice]:
    """Return for each head in a block of `lanes` the slice of the groups of 128 lanes that it lies in."""
    starts = range(0, lanes, head_dim)
    return [slice(start // LANES * LANES, -(-(start + head_dim) // LANES) * LANES) for start in starts]


def _heads(shape: tuple[int, ...], head_dim: int) -> Iterator[tuple[slice, jax.Array]]:
    """Yield for each head of a block [tokens, lanes] its slice of the lanes, and a mask of those that it owns."""
    for head, window in enumerate(head_windows(shape[1], head_dim)):
        lanes = window.start + jax.lax.broadcasted_iota(jnp.int32, (shape[0], window.stop - window.start), 1)
        yield window, (lanes >= head * head_dim) & (lanes < (head + 1) * head_dim)


def _put(whole: jax.Array, lanes: slice, own: jax.Array, values: jax.Array) -> jax.Array:
    """Write values into the lanes of a block that a head owns."""
    parts = [whole[:, : lanes.start], jnp.where(own, values, whole[:, lanes]), whole[:, lanes.stop :]]
    return jnp.concatenate([part for part in parts if part.shape[1]], axis=1)


def _exponentials(q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the numerators [Q, T] and denominators [Q, 1] of the softmax of q k^T, float32."""
    scores = _dot(q, k, 1, 1)
    exps = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    return exps, jnp.sum(exps, axis=1, keepdims=True)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)
