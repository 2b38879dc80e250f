"""Pre-norm transformer blocks (Vaswani et al. 2017; Dosovitskiy et al. 2021), as one stack.

Shapes: B batch, T tokens, Q queries, D and E width. Parameters are float32. Matrix products have the type of
`Compute.dtype`; normalisation and softmax are always float32. No `key` means evaluation.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from maejax.models.description import Compute, Decoder
from maejax.models.stack import Stack
from maejax.ops.attention import (
    attend,
    attend_packed,
    attention_weights,
    by_head,
    check_form,
    chosen_form,
    padded_to_even,
)
from maejax.ops.dense import dropout, layer_norm, linear, mlp

LAYERSCALE_INIT = 1e-4  # as in the original

# Kept of a scanned block for the backward pass, with its input: the results of products, but not attention weights.
KEPT = ("qkv", "attended", "between", "hidden")

Projected = tuple[jax.Array, jax.Array, jax.Array]  # queries, keys, values


class Attention(nnx.Module):
    """Multi-head self-attention with one packed projection to queries, keys and values."""

    def __init__(self, config: Stack, compute: Compute, rngs: nnx.Rngs):
        check_form(compute.attention)
        self.heads, self.form = config.heads, compute.attention
        self.qkv = linear(config.dim, 3 * config.dim, jnp.dtype(compute.dtype), rngs, bias=config.qkv_bias)
        self.proj = linear(config.dim, config.dim, jnp.dtype(compute.dtype), rngs)
        head, eps = config.dim // config.heads, config.norm_eps
        self.q_norm, self.k_norm = (layer_norm(head, rngs, eps) if config.qk_norm else None for _ in range(2))

    def __call__(self, x: jax.Array, last: int | None = None, angles: jax.Array | None = None) -> jax.Array:
        """Attend over x [B, T, D]; with `last`, only the last `last` tokens have queries: [B, last, D].

        Queries and keys are turned by `angles` [B or 1, T, D / heads], if there are any.
        """
        shape = jax.ShapeDtypeStruct(x.shape, self.qkv.dtype)
        if chosen_form(self.form, shape, shape, self.heads) == "cudnn":
            lengths = last or x.shape[1], x.shape[1]
            attended = attend(*self.project(x, last, angles, even=True), self.heads, self.form, lengths)
            return self.proj(checkpoint_name(attended, "attended"))[:, : lengths[0]]
        if last is not None:
            attended = attend(*self.project(x, last, angles), self.heads, self.form)
        elif self.q_norm is None and angles is None:
            attended = attend_packed(checkpoint_name(self.qkv(x), "qkv"), self.heads, self.form)
        else:
            attended = attend_packed(jnp.concatenate(self.project(x, None, angles), axis=-1), self.heads, self.form)
        return self.proj(checkpoint_name(attended, "attended"))

    def project(self, x: jax.Array, last: int | None = None, angles=None, *, even: bool = False) -> Projected:
        """Compute the queries of all or the last `last` tokens of x [B, T, D], and the keys and values of all.

        If `even`, three products write them with an even number of tokens, as cuDNN reads them: to cut and pad would
        copy.
        """
        dim = x.shape[-1]
        asking, turns = (x, angles) if last is None else (x[:, -last:], None if angles is None else angles[:, -last:])
        if even:
            asking, x = padded_to_even(asking), padded_to_even(x)
            turns, angles = (None if each is None else padded_to_even(each) for each in (turns, angles))
        q = checkpoint_name(self.qkv(asking, slice(dim)), "qkv")
        if even:
            k, v = (checkpoint_name(self.qkv(x, slice(i * dim, (i + 1) * dim)), "qkv") for i in (1, 2))
        else:
            k, v = jnp.split(checkpoint_name(self.qkv(x, slice(dim, None)), "qkv"), 2, axis=-1)
        q, k = self.normalize_heads(q, self.q_norm), self.normalize_heads(k, self.k_norm)
        if angles is None or turns is None:
            return q, k, v
        return turn(q, turns, self.heads), turn(k, angles, self.heads), v

    def normalize_heads(self, x: jax.Array, norm: nnx.LayerNorm | None) -> jax.Array:
        """Apply a layer norm to each head of queries or keys x [B, T, D]; identity without one."""
        return x if norm is None else norm(by_head(x, self.heads)).reshape(x.shape).astype(x.dtype)

    def weights(self, x: jax.Array, angles: jax.Array | None = None) -> jax.Array:
        """Compute how much each token of x [B, T, D] attends to each, float32 [B, heads, T, T]."""
        q, k, _ = self.project(x, None, angles)
        return attention_weights(q, k, self.heads)


def turn(x: jax.Array, angles: jax.Array, heads: int) -> jax.Array:
    """Turn each head of queries or keys x [B, T, D] by angles [B or 1, T, D / heads] (Su et al. 2021, section 3.2.2).

    The pairs that turn are channel i and D / heads / 2 + i of a head.
    """
    wide = by_head(x, heads).astype(jnp.float32)
    first, second = jnp.split(wide, 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    return (wide * cos + jnp.concatenate([-second, first], axis=-1) * sin).reshape(x.shape).astype(x.dtype)


class CrossAttention(nnx.Module):
    """Multi-head attention of tokens over other tokens, of the width E."""

    def __init__(self, config: Stack, compute: Compute, rngs: nnx.Rngs, width: int):
        check_form(compute.attention)
        self.heads, self.form, dtype = config.heads, compute.attention, jnp.dtype(compute.dtype)
        self.q = linear(config.dim, config.dim, dtype, rngs, bias=config.qkv_bias)
        self.kv = linear(width, 2 * config.dim, dtype, rngs, bias=config.qkv_bias)
        self.proj = linear(config.dim, config.dim, dtype, rngs)

    def __call__(self, x: jax.Array, source: jax.Array) -> jax.Array:
        """Attend with x [B, Q, D] over a source [B, T, E]: [B, Q, D]."""
        lengths, dim = (x.shape[1], source.shape[1]), x.shape[-1]
        shape = jax.ShapeDtypeStruct(x.shape, self.q.dtype)
        if even := chosen_form(self.form, shape, shape, self.heads) == "cudnn":
            x, source = padded_to_even(x), padded_to_even(source)
        q = checkpoint_name(self.q(x), "qkv")
        if even:  # as in `Attention.project`
            k, v = (checkpoint_name(self.kv(source, part), "qkv") for part in (slice(dim), slice(dim, None)))
        else:
            k, v = jnp.split(checkpoint_name(self.kv(source), "qkv"), 2, axis=-1)
        attended = attend(q, k, v, self.heads, self.form, lengths)
        return self.proj(checkpoint_name(attended, "attended"))[:, : lengths[0]]


class Block(nnx.Module):
    """One pre-norm layer: attention, then an MLP, each added to its input."""

    def __init__(self, config: Stack, compute: Compute, rngs: nnx.Rngs, attention: Callable[..., Any] = Attention):
        dim, dtype = config.dim, jnp.dtype(compute.dtype)
        self.dropout, self.activation, self.pieces = config.dropout, config.activation, compute.pieces
        self.norm1 = layer_norm(dim, rngs, config.norm_eps, rounded=True)
        self.attention = attention(config, compute, rngs)
        self.norm2 = layer_norm(dim, rngs, config.norm_eps, rounded=True)
        self.fc1 = linear(dim, config.fc1_dim, dtype, rngs)
        self.fc2 = linear(config.mlp_dim, dim, dtype, rngs)
        scaled = config.layerscale
        self.scale1 = nnx.Param(jnp.full((1, 1, dim), LAYERSCALE_INIT, jnp.float32)) if scaled else None
        self.scale2 = nnx.Param(jnp.full((1, 1, dim), LAYERSCALE_INIT, jnp.float32)) if scaled else None

    def __call__(self, x, drop_path: float | jax.Array = 0.0, key=None, last: int | None = None, beside=None):
        """Transform x [B, T, D]; `drop_path` is the rate of this layer; `last` and `beside` as in `attend`."""
        keys = [None] * 5 if key is None else list(jax.random.split(key, 5))

        def add(x, branch, scale, path_key):
            branch = branch if scale is None else (branch * scale[...]).astype(branch.dtype)
            return x + dropout(branch, drop_path, path_key, (x.shape[0], 1, 1))

        attended = dropout(self.attend(self.norm1(x), last, beside), self.dropout, keys[0])
        x = checkpoint_name(add(x if last is None else x[:, -last:], attended, self.scale1, keys[1]), "between")
        branch = mlp(self.norm2(x), self.fc1, self.fc2, self.activation, self.dropout, keys[2], self.pieces)
        return add(x, dropout(branch, self.dropout, keys[3]), self.scale2, keys[4])

    def attend(self, x: jax.Array, last: int | None, beside: jax.Array | None) -> jax.Array:
        """Attend over the normalised x [B, T, D]; `last` and the angles `beside` as in `Attention`."""
        return self.attention(x, last, beside)


class CrossBlock(Block):
    """A layer whose tokens attend to a source [B, T, E] alone, and not to each other (Fu et al. 2025, section 3.2)."""

    def __init__(self, config: Decoder, compute: Compute, rngs: nnx.Rngs, width: int):
        super().__init__(config, compute, rngs, partial(CrossAttention, width=width))
        self.source_norm = layer_norm(width, rngs, config.norm_eps, rounded=True) if config.mixes else None

    def attend(self, x: jax.Array, last: int | None, beside: jax.Array | None) -> jax.Array:
        """Attend with the normalised x [B, Q, D] over the source `beside` [B, T, E]."""
        assert beside is not None and last is None
        return self.attention(x, beside if self.source_norm is None else self.source_norm(beside))


@jax.custom_vjp
def gather_params(block: Block) -> Block:
    """All-gather the weights of one layer, if they are split; XLA can reduce-scatter their gradient."""
    empty = jax.sharding.get_abstract_mesh().empty
    return block if empty else jax.lax.with_sharding_constraint(block, PartitionSpec())


gather_params.defvjp(lambda block: (gather_params(block), None), lambda _, gradient: (gradient,))


def unstack(stack: Block, count: int, layers: int) -> tuple[Block | None, list[Block]]:
    """Split the first `layers` layers of a stack: the first `count` stay one stack, the others are single blocks.

    The gradient of one `jnp.split` is a concatenation; indexing each layer would sum `layers` stack-sized arrays.
    """
    leaves, tree = jax.tree.flatten(stack)
    columns = [jnp.split(leaf, tuple(range(max(count, 1), len(leaf)))) for leaf in leaves]
    parts = [jax.tree.unflatten(tree, row) for row in zip(*columns, strict=True)]
    first = parts.pop(0) if count else None
    return first, [jax.tree.map(lambda a: a[0], part) for part in parts[: layers - count]]


class Transformer(nnx.Module):
    """A stack of blocks: one Block whose arrays have a leading depth axis.

    Unrolled, the layers run faster on CPU and take less memory on TPU up to ViT-B; as a scan they compile faster.

    For the backward pass, all results of a block are kept. A scan would copy them, so it keeps `KEPT` and the input of
    a block, and computes the rest again. With remat, only the input is kept. In these two cases the weights of a layer
    that are split over devices are gathered again.
    """

    def __init__(self, config: Stack, compute: Compute, rngs: nnx.Rngs, block: Callable[..., Block] = Block):
        self.layers, self.droppath, self.remat, self.scan = config.layers, config.droppath, compute.remat, compute.scan
        keys = jax.random.split(rngs.params(), config.layers)
        self.blocks = jax.vmap(lambda key: block(config, compute, nnx.Rngs(key)))(keys)

    def __call__(self, x: jax.Array, key=None, last: int | None = None, angles=None, sources=None) -> jax.Array:
        """Run x [B, T, D] through the blocks; with `last`, the last block computes only the last `last` tokens.

        `angles` as in `Attention`. Blocks of cross-attention have each its own of the `sources` [layers, B, T, E].
        """
        return self._run(x, key, last, angles, sources)[0]

    def states(self, x: jax.Array, key=None, angles: jax.Array | None = None) -> jax.Array:
        """Run x [B, T, D] through the blocks; return the input of the first, and the outputs of all.

        Shape: [1 + layers, B, T, D].
        """
        return jnp.concatenate([x[None], *self._run(x, key, angles=angles, collect=True)[1]])

    def _run(self, x, key=None, last=None, angles=None, sources=None, *, collect: bool = False):
        """Return what a call does, and a list of the outputs of all blocks [n, ...] if it should `collect` them."""
        rates = [self.droppath * i / max(1, self.layers - 1) for i in range(self.layers)]
        keys = None if key is None else jax.random.split(key, self.layers)

        def layer(x, block, rate, key, last, source):
            beside = angles if source is None else source
            return gather_params(block)(x, 0.0 if rate is None else rate, key, last, beside)

        if self.remat or self.scan:
            policy = None if self.remat else jax.checkpoint_policies.save_only_these_names(*KEPT)
            layer = jax.checkpoint(layer, static_argnums=4, policy=policy, prevent_cse=not self.scan)
        scanned = (self.layers if last is None else self.layers - 1) if self.scan else 0
        first, rest = unstack(self.blocks, scanned, self.layers)
        states = []
        if scanned:
            rising = jnp.asarray(rates)[:scanned] if self.droppath else None
            stack = first, rising, *(None if each is None else each[:scanned] for each in (keys, sources))

            def step(x, xs):
                block, rate, own, source = xs
                x = layer(x, block, rate, own, None, source)
                return x, x if collect else None

            x, outputs = jax.lax.scan(step, x, stack)
            states += [outputs] if collect else []
        for i, block in enumerate(rest, scanned):
            own, source = (None if each is None else each[i] for each in (keys, sources))
            x = layer(x, block, rates[i], own, last if i == self.layers - 1 else None, source)
            states += [x[None]] if collect else []
        return x, states

    def block(self, i: int) -> Block:
        """Return layer i of the stack."""
        return jax.tree.map(operator.itemgetter(i), self.blocks)
