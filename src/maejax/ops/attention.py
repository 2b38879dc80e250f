"""Multi-head attention between projected tokens: plain products, and the fast form of each kind of device.

Shapes: B batch, Q queries, T tokens, D width.
"""

import functools
import os
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from maejax.ops.attention_tpu import attend_on_chip, attend_packed_on_chip, fits_kernel
from maejax.ops.dense import product
from maejax.ops.platform import auto_devices, is_target_tpu, target_platform

Form = Literal["auto", "xla", "pallas", "cudnn"]
Shaped = jax.Array | jax.ShapeDtypeStruct

# Each piece of a batch is compiled by itself: at most this many, and only 1 below so many scores [B, heads, Q, T].
MOST_PIECES = 16
FEWEST_SCORES = 2**20


def check_form(form: str) -> None:
    """Raise ValueError if there is no such form of attention."""
    if form not in get_args(Form):
        raise ValueError(f"attention is one of {', '.join(get_args(Form))}, not {form}")


def attend(q: jax.Array, k: jax.Array, v: jax.Array, heads: int, form: str = "auto", lengths=None) -> jax.Array:
    """Attend with queries q [B, Q, D] over keys and values k, v [B, T, D], split into `heads`: [B, Q, D].

    All forms compute the same, with the softmax in float32. "xla" is plain matrix products, "pallas" the TPU kernel of
    `attention_tpu`, "cudnn" the fused attention of NVIDIA's library. Where a form does not support the device or the
    sizes, plain products run. "auto" is the kernel on TPU from v4 on and plain products elsewhere; a training run
    replaces it by the fast form that passed `check.compare` on its devices. `lengths` as in `attend_by_cudnn`; no
    other form takes padded arrays.
    """
    chosen = chosen_form(form, q, k, heads)
    if chosen == "pallas":
        return on_every_device(functools.partial(attend_on_chip, heads=heads))(q, k, v)
    if chosen == "cudnn":
        return on_every_device(functools.partial(attend_by_cudnn, heads=heads, lengths=lengths))(q, k, v)
    pieces = pieces_of(q, k, heads)
    if pieces == 1:
        return attend_plainly(q, k, v, heads)
    qs, ks, vs = (jnp.split(x, pieces) for x in (q, k, v))
    return jnp.concatenate([attend_plainly(*part, heads=heads) for part in zip(qs, ks, vs, strict=True)])


def attend_packed(qkv: jax.Array, heads: int, form: str = "auto") -> jax.Array:
    """Attend as `attend` does, with queries, keys and values side by side in qkv [B, T, 3 D]: [B, T, D].

    The kernel reads the packed array. Other forms split it, and their gradient is a concatenation of three.
    """
    q, k, v = jnp.split(qkv, 3, axis=-1)
    if chosen_form(form, q, k, heads) == "pallas":
        return on_every_device(functools.partial(attend_packed_on_chip, heads=heads))(qkv)
    return attend(q, k, v, heads, form)


def by_head(x: jax.Array, heads: int) -> jax.Array:
    """Split the width of x [B, T, D] into heads: [B, T, heads, D / heads]."""
    return x.reshape(*x.shape[:2], heads, -1)


def attention_weights(q: jax.Array, k: jax.Array, heads: int, seen: jax.Array | None = None) -> jax.Array:
    """Compute how much each query q [B, Q, D] attends to each key k [B, T, D]: float32 [B, heads, Q, T], sums 1.

    Keys that are not `seen` [B, T] get 0.
    """
    q, k = by_head(q * (q.shape[-1] // heads) ** -0.5, heads), by_head(k, heads)
    return jax.nn.softmax(product("bqhd,bkhd->bhqk", q, k), where=None if seen is None else seen[:, None, None])


@jax.custom_vjp
def attend_by_products(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attend as `attend` does, with separate heads: q [B, Q, heads, D / heads], k and v [B, T, heads, D / heads].

    The backward pass is written out: autodiff multiplies the float32 gradient of the scores by keys and queries in half
    precision, and XLA then computes in float32, on CPU a third slower. Heads before tokens save another third there.
    """
    return _products_forward(q, k, v)[0]


def _products_forward(q, k, v):
    q, k, v = _swap(q * q.shape[-1] ** -0.5), _swap(k), _swap(v)
    p = jax.nn.softmax(product("bhqd,bhkd->bhqk", q, k)).astype(v.dtype)
    return _swap(product("bhqk,bhkd->bhqd", p, v)).astype(v.dtype), (q, k, v, p)


def _products_backward(kept, g):
    q, k, v, p = kept
    g = _swap(g)
    dp = product("bhqd,bhkd->bhqk", g, v)
    ds = (p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True))).astype(q.dtype)
    dq, dk = product("bhqk,bhkd->bhqd", ds, k) * q.shape[-1] ** -0.5, product("bhqk,bhqd->bhkd", ds, q)
    dv = product("bhqk,bhqd->bhkd", p, g)
    return _swap(dq).astype(q.dtype), _swap(dk).astype(k.dtype), _swap(dv).astype(v.dtype)


attend_by_products.defvjp(_products_forward, _products_backward)


def _swap(x: jax.Array) -> jax.Array:
    """Swap tokens and heads: [B, T, heads, D / heads] to [B, heads, T, D / heads] and the reverse."""
    return jnp.swapaxes(x, 1, 2)


def attend_by_cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, heads: int, lengths: tuple[int, int] | None = None
) -> jax.Array:
    """Attend as `attend` does, by cuDNN's fused kernel; half precision only.

    JAX refuses the gradient for an odd number of tokens, so an odd number is padded by one masked token. Arrays that
    are padded already keep their size; `lengths` are their numbers of queries and tokens.
    """
    lengths = lengths or (q.shape[1], k.shape[1])
    even = [by_head(padded_to_even(x), heads) for x in (q, k, v)]
    rows = [jnp.full(q.shape[0], length, jnp.int32) for length in lengths]
    masked = dict(zip(("query_seq_lengths", "key_value_seq_lengths"), rows, strict=True))
    padded = (even[0].shape[1], even[1].shape[1]) != lengths
    out = jax.nn.dot_product_attention(*even, implementation="cudnn", **masked if padded else {})
    return out[:, : q.shape[1]].reshape(q.shape)


def padded_to_even(x: jax.Array) -> jax.Array:
    """Append a token of zeros to x [B, T, D] if T is odd."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0)))


def chosen_form(form: str, q: Shaped, k: Shaped, heads: int) -> str:
    """Return the form to use; "xla" if the requested one does not support the device or the sizes."""
    batch, queries, dim = q.shape
    if not isinstance(batch, int) or batch % auto_devices():
        return "xla"  # exported for any batch and platform, or rows that do not divide over the devices
    if form in ("auto", "pallas") and is_target_tpu() and fits_kernel(queries, k.shape[1], dim, heads):
        return "pallas"
    # cuDNN knows half precision and heads of a multiple of 8 up to 128 channels.
    fits_cudnn = q.dtype.itemsize == 2 and (dim // heads) % 8 == 0 and dim // heads <= 128
    if form == "cudnn" and target_platform() == "gpu" and fits_cudnn:
        return "cudnn"
    return "xla"


def attend_plainly(q: jax.Array, k: jax.Array, v: jax.Array, heads: int) -> jax.Array:
    """Attend as `attend` does, by plain products."""
    return attend_by_products(by_head(q, heads), by_head(k, heads), by_head(v, heads)).reshape(q.shape)


def pieces_of(q: jax.Array, k: jax.Array, heads: int) -> int:
    """Return the number of pieces that plain products split a batch into: on CPU up to two per core, elsewhere 1.

    XLA on CPU computes a batch of small products on one core, but several such batches at once.
    """
    batch, queries, _ = q.shape
    if target_platform() != "cpu" or not isinstance(batch, int) or auto_devices() > 1:
        return 1
    if batch * heads * queries * k.shape[1] < FEWEST_SCORES:
        return 1
    most = min(MOST_PIECES, 2 * (os.cpu_count() or 1))
    return max(pieces for pieces in range(1, most + 1) if batch % pieces == 0)


def on_every_device(attention):
    """Run a form of attention on each device's own samples: XLA cannot split an unknown kernel over devices."""
    if auto_devices() == 1:
        return attention
    rows = PartitionSpec(jax.sharding.get_abstract_mesh().axis_names)
    return jax.shard_map(attention, in_specs=rows, out_specs=rows, check_vma=False)
