"""The vision transformer (Dosovitskiy et al. 2021), pre-norm, as the MAE paper and its authors' code use it.

Shapes: B batch, H W C image, N patches, T tokens, D width, P values of a patch. Parameters are float32. Matrix products
have the type of `Compute.dtype`; normalisation and softmax are always float32. No `key` means evaluation.
"""

import operator
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from maejax.models.description import Compute, Network, Stack, ViT
from maejax.models.normalization import Normalized, normalize
from maejax.models.patches import patchify, sincos_table, take_patches
from maejax.ops.attention import attend, attend_packed, attention_weights, by_head, check_form
from maejax.ops.dense import dropout, layer_norm, linear, mlp

LAYERSCALE_INIT = 1e-4  # as in the original
TOKEN_STD = 0.02  # cls and mask token, authors' code

# Kept of a scanned block for the backward pass, with its input: the results of products, but not attention weights.
KEPT = ("qkv", "attended", "between", "hidden")

Pool = Literal["cls", "mean", "cls+mean"]
POOLS = ("cls", "mean", "cls+mean")


class Constant(nnx.Variable):
    """An array that is saved with the model and never trained."""


class Attention(nnx.Module):
    """Multi-head self-attention with one packed projection to queries, keys and values."""

    def __init__(self, config: Stack, compute: Compute, rngs: nnx.Rngs):
        check_form(compute.attention)
        self.heads, self.form = config.heads, compute.attention
        self.qkv = linear(config.dim, 3 * config.dim, jnp.dtype(compute.dtype), rngs)
        self.proj = linear(config.dim, config.dim, jnp.dtype(compute.dtype), rngs)
        head = config.dim // config.heads
        self.q_norm, self.k_norm = (layer_norm(head, rngs) if config.qk_norm else None for _ in range(2))

    def __call__(self, x: jax.Array, last: int | None = None) -> jax.Array:
        """Attend over x [B, T, D]; with `last`, only the last `last` tokens have queries: [B, last, D]."""
        if last is not None:
            attended = attend(*self.project(x, last), self.heads, self.form)
        elif self.q_norm is None:
            attended = attend_packed(checkpoint_name(self.qkv(x), "qkv"), self.heads, self.form)
        else:
            attended = attend_packed(jnp.concatenate(self.project(x), axis=-1), self.heads, self.form)
        return self.proj(checkpoint_name(attended, "attended"))

    def project(self, x: jax.Array, last: int | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Compute the queries of all or the last `last` tokens of x [B, T, D], and the keys and values of all."""
        dim = x.shape[-1]
        q = checkpoint_name(self.qkv(x if last is None else x[:, -last:], slice(dim)), "qkv")
        k, v = jnp.split(checkpoint_name(self.qkv(x, slice(dim, None)), "qkv"), 2, axis=-1)
        return self.normalize_heads(q, self.q_norm), self.normalize_heads(k, self.k_norm), v

    def normalize_heads(self, x: jax.Array, norm: nnx.LayerNorm | None) -> jax.Array:
        """Apply a layer norm to each head of queries or keys x [B, T, D]; identity without one."""
        return x if norm is None else norm(by_head(x, self.heads)).reshape(x.shape).astype(x.dtype)

    def weights(self, x: jax.Array) -> jax.Array:
        """Compute how much each token of x [B, T, D] attends to each, float32 [B, heads, T, T]."""
        q, k, _ = self.project(x)
        return attention_weights(q, k, self.heads)


class Block(nnx.Module):
    """One pre-norm layer: attention, then an MLP, each added to its input."""

    def __init__(self, config: Stack, compute: Compute, rngs: nnx.Rngs):
        dim, dtype = config.dim, jnp.dtype(compute.dtype)
        self.dropout, self.gelu, self.pieces = config.dropout, config.gelu, compute.pieces
        self.norm1 = layer_norm(dim, rngs)
        self.attention = Attention(config, compute, rngs)
        self.norm2 = layer_norm(dim, rngs)
        self.fc1 = linear(dim, 4 * dim, dtype, rngs)
        self.fc2 = linear(4 * dim, dim, dtype, rngs)
        scaled = config.layerscale
        self.scale1 = nnx.Param(jnp.full((1, 1, dim), LAYERSCALE_INIT, jnp.float32)) if scaled else None
        self.scale2 = nnx.Param(jnp.full((1, 1, dim), LAYERSCALE_INIT, jnp.float32)) if scaled else None

    def __call__(self, x, drop_path: float | jax.Array = 0.0, key=None, last: int | None = None):
        """Transform x [B, T, D]; `drop_path` is the rate of this layer; `last` as in `Attention`."""
        keys = [None] * 5 if key is None else list(jax.random.split(key, 5))

        def add(x, branch, scale, path_key):
            branch = branch if scale is None else (branch * scale[...]).astype(branch.dtype)
            return x + dropout(branch, drop_path, path_key, (x.shape[0], 1, 1))

        attended = dropout(self.attention(self.norm1(x), last), self.dropout, keys[0])
        x = checkpoint_name(add(x if last is None else x[:, -last:], attended, self.scale1, keys[1]), "between")
        branch = mlp(self.norm2(x), self.fc1, self.fc2, self.gelu, self.dropout, keys[2], self.pieces)
        return add(x, dropout(branch, self.dropout, keys[3]), self.scale2, keys[4])


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

    def __init__(self, config: Stack, compute: Compute, rngs: nnx.Rngs):
        self.layers, self.droppath, self.remat, self.scan = config.layers, config.droppath, compute.remat, compute.scan
        keys = jax.random.split(rngs.params(), config.layers)
        self.blocks = jax.vmap(lambda key: Block(config, compute, nnx.Rngs(key)))(keys)

    def __call__(self, x: jax.Array, key: jax.Array | None = None, last: int | None = None) -> jax.Array:
        """Run x [B, T, D] through the blocks; with `last`, the last block computes only the last `last` tokens."""
        rates = [self.droppath * i / max(1, self.layers - 1) for i in range(self.layers)]
        keys = None if key is None else jax.random.split(key, self.layers)

        def layer(x, block, rate, key, last):
            return gather_params(block)(x, 0.0 if rate is None else rate, key, last)

        if self.remat or self.scan:
            policy = None if self.remat else jax.checkpoint_policies.save_only_these_names(*KEPT)
            layer = jax.checkpoint(layer, static_argnums=4, policy=policy, prevent_cse=not self.scan)
        scanned = (self.layers if last is None else self.layers - 1) if self.scan else 0
        first, rest = unstack(self.blocks, scanned, self.layers)
        if scanned:
            rising = jnp.asarray(rates)[:scanned] if self.droppath else None
            stack = first, rising, None if keys is None else keys[:scanned]
            x, _ = jax.lax.scan(lambda x, xs: (layer(x, xs[0], xs[1], xs[2], None), None), x, stack)
        for i, block in enumerate(rest, scanned):
            x = layer(x, block, rates[i], None if keys is None else keys[i], last if i == self.layers - 1 else None)
        return x

    def states(self, x: jax.Array) -> list[jax.Array]:
        """Run x [B, T, D] through the blocks as in evaluation; return the input of each, and the output of the last."""
        states = [x]
        for i in range(self.layers):
            states.append(self.block(i)(states[-1]))
        return states

    def block(self, i: int) -> Block:
        """Return layer i of the stack."""
        return jax.tree.map(operator.itemgetter(i), self.blocks)


class Model(nnx.Module):
    """The part that all models share: features of images without a mask, from their `encoder`."""

    config: Network
    compute: Compute
    encoder: Any  # a VisionTransformer

    @property
    def mean(self) -> tuple[float, ...]:
        """The C channel means: of uint8 images on the 0..1 scale, of others in their own units."""
        return self.encoder.config.mean

    @property
    def std(self) -> tuple[float, ...]:
        """The C channel standard deviations, as `mean`."""
        return self.encoder.config.std

    @property
    def patches(self) -> int:
        """N, the number of patches of an image."""
        return self.encoder.config.patches

    def normalize(self, images: jax.Array | np.ndarray) -> Any:
        """Scale images [B, H, W, C] of the model's type to float32 of about zero mean and unit variance.

        Missing pixels become 0. A model of float images returns them as `Normalized`, and takes arrays for pixels.
        """
        config = self.encoder.config
        return self.as_normalized(normalize(images, self.mean, self.std, config.image_type, config.no_data))

    def as_normalized(self, x: jax.Array) -> Any:
        """Mark images [B, H, W, C] that are normalised already, where the model would take them for pixels."""
        return Normalized(x) if self.encoder.config.image_type.startswith("float") else x

    def encode(self, x: jax.Array, pool: Pool | None = "cls", layers: Sequence[int] | None = None) -> jax.Array:
        """Compute features of images x [B, H, W, C], uint8 or normalised, without a mask: float32.

        `pool` as in `pooled`: [B, D], [B, 2 D] or, for None, [B, 1 + N, D]. With `layers` (0 is the first block, -1 the
        last) the features after each of these blocks, through the final norm: [B, L, ...]. Raises ValueError for an
        unknown pooling or layer, or for no layer.
        """
        encoder = self.encoder
        if layers is None:
            return pooled(encoder(x).astype(jnp.float32), pool)
        if not len(layers):
            raise ValueError("layers names no layer; give at least one, -1 for the last")
        states = encoder.transformer.states(encoder.tokens(x))[1:]
        chosen = [states[self.layer_number(i)] for i in layers]
        normed = [tokens if encoder.norm is None else encoder.norm(tokens) for tokens in chosen]
        return jnp.stack([pooled(tokens.astype(jnp.float32), pool) for tokens in normed], axis=1)

    def attention(self, x: jax.Array, layer: int = -1) -> jax.Array:
        """Compute how much each token attends to each in one block, on images x [B, H, W, C] without a mask.

        Images are uint8 or normalised. Returns float32 [B, heads, 1 + N, 1 + N], the cls token first; rows sum to 1.
        Raises ValueError if there is no such layer.
        """
        number, stack = self.layer_number(layer), self.encoder.transformer
        x = self.encoder.tokens(x)
        for i in range(number):
            x = stack.block(i)(x)
        block = stack.block(number)
        return block.attention.weights(block.norm1(x))

    def layer_number(self, layer: int) -> int:
        """Count a layer from the front: -1 is the last. Raises ValueError if there is no such layer."""
        count = self.encoder.transformer.layers
        if not -count <= layer < count:
            raise ValueError(f"there is no layer {layer}: the encoder has {count}, 0 to {count - 1}")
        return layer % count


class VisionTransformer(Model):
    """The encoder: patches and a cls token to tokens."""

    config: ViT

    def __init__(self, config: ViT, compute: Compute, rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        self.embed = linear(config.pixels, config.dim, jnp.dtype(compute.dtype), rngs)
        self.cls_token = token(config.dim, rngs)
        self.positions = positions(config.posemb, config.grid, config.dim, rngs)
        self.transformer = Transformer(config, compute, rngs)
        self.norm = layer_norm(config.dim, rngs) if config.final_norm else None

    @property
    def encoder(self) -> "VisionTransformer":  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoder of the model: this itself."""
        return self

    def __call__(self, x: jax.Array, keep: jax.Array | None = None, key: jax.Array | None = None) -> jax.Array:
        """Encode images x [B, H, W, C], uint8 or normalised, to tokens [B, 1 + N, D], the cls token first.

        With `keep` [B, K] only those patches enter: [B, 1 + K, D], in their order. Pixels are picked before they are
        embedded: no gradient flows to pixels, so the gather has no backward pass.
        """
        embed_key, stack_key = (None, None) if key is None else jax.random.split(key)
        tokens = self.transformer(self.tokens(x, keep, embed_key), stack_key)
        return tokens if self.norm is None else self.norm(tokens)

    def tokens(self, x: jax.Array, keep: jax.Array | None = None, key: jax.Array | None = None) -> jax.Array:
        """Embed images as the input of the first block; arguments and shape as of a call."""
        config, dtype = self.config, jnp.dtype(self.compute.dtype)
        pos_embed = frozen_if_constant(self.positions)
        patches, places = self.cut(x, keep), pos_embed[:, 1:]
        places = places if keep is None else take_patches(places, keep)
        # Arrays that all samples share are rounded only after the addition: their gradient, a sum, is then float32.
        tokens = (self.embed(patches) + places).astype(dtype)
        cls = jnp.broadcast_to(self.cls_token[...] + pos_embed[:, :1], (x.shape[0], 1, config.dim)).astype(dtype)
        return dropout(jnp.concatenate([cls, tokens], axis=1), config.dropout, key)

    def cut(self, x: Any, keep: jax.Array | None = None, missing: float = 0.0) -> jax.Array:
        """Cut images x [B, H, W, C] into flattened patches [B, N, P], or into those of `keep` [B, K]: [B, K, P].

        Pixels that are missing become `missing`.
        """
        self.check_images(x)
        done, config = isinstance(x, Normalized) or x.dtype != self.config.image_type, self.config
        x = x.images if isinstance(x, Normalized) else x
        patches, pixels = patchify(x, config.patch_size), config.patch_size**2
        patches = patches if keep is None else take_patches(patches, keep)
        # Images are normalised last: moving bytes takes a quarter of the time.
        own = (self.mean * pixels, self.std * pixels, config.image_type, config.no_data, missing)
        return patches if done else normalize(patches, *own)

    def check_images(self, x: Any) -> None:
        """Raise ValueError if images are not [B, H, W, C] of this encoder, or neither of its type nor normalised."""
        wanted, found = (*self.config.image_size, self.config.channels), tuple(x.shape)
        if found[1:] != wanted or len(found) != 4:
            first = wanted[2], *wanted[:2]
            hint: dict[tuple[int, ...], str] = {
                wanted: "add a batch axis, images[None]",
                first: "put the channels last",
            }
            remedy = hint.get(found, hint.get(found[1:], "resize or crop them"))
            raise ValueError(f"images are [B, {', '.join(map(str, wanted))}] here, not {list(found)}: {remedy}")
        kind = self.config.image_type
        floats = jnp.issubdtype(x.dtype, jnp.floating) and not kind.startswith("float")
        if x.dtype != kind and not floats and not isinstance(x, Normalized):
            raise ValueError(f"images are {kind}, or normalised by `normalize`, not {x.dtype}")


def pooled(tokens: Any, pool: Pool | None) -> Any:
    """Reduce tokens [..., 1 + N, D] to [..., D]: "cls" or the "mean" of the patches; "cls+mean" is both, [..., 2 D].

    None changes nothing. Raises ValueError for an unknown pooling.
    """
    if pool is None:
        return tokens
    if pool not in POOLS:
        raise ValueError(f'pool is "cls", "mean", "cls+mean" or None, not {pool!r}')
    if pool == "cls+mean":
        return jnp.concatenate([pooled(tokens, "cls"), pooled(tokens, "mean")], axis=-1)
    return tokens[..., 0, :] if pool == "cls" else tokens[..., 1:, :].mean(axis=-2)


def token(dim: int, rngs: nnx.Rngs) -> nnx.Param:
    """Build a learned token [1, 1, D], normal with standard deviation .02."""
    return nnx.Param(TOKEN_STD * jax.random.normal(rngs.params(), (1, 1, dim)))


def positions(kind: str, grid: tuple[int, int], dim: int, rngs: nnx.Rngs) -> nnx.Variable:
    """Build positions [1, 1 + N, D]: fixed "sincos2d" (a `Constant`) or "learnable" (a `Param`, std .02)."""
    if kind == "sincos2d":
        return Constant(jnp.asarray(sincos_table(grid, dim))[None])
    return nnx.Param(TOKEN_STD * jax.random.normal(rngs.params(), (1, 1 + grid[0] * grid[1], dim)))


def frozen_if_constant(variable: nnx.Variable) -> jax.Array:
    """Read a variable; no gradient reaches it if it is a `Constant`."""
    value = variable[...]
    return jax.lax.stop_gradient(value) if isinstance(variable, Constant) else value
