"""The vision transformer (Dosovitskiy et al. 2021), pre-norm, as the MAE paper and its authors' code use it.

Shapes: B batch, H W C image, N patches, T tokens, D width, P values of a patch. Parameters are float32; `dtype` is the
type of the matrix products; normalisation and softmax are always float32. No `key` means evaluation.
"""

import operator
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from maejax.models.patches import patchify, sincos_table, take_patches
from maejax.ops.attention import attend, attend_packed, attention_weights, check_form
from maejax.ops.dense import Dtype, activation, dropout, layer_norm, linear, mlp

LAYERSCALE_INIT = 1e-4  # as in the original
TOKEN_STD = 0.02  # cls and mask token, authors' code

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# What `remat="named"` keeps of a block beside what enters it: the results of its matrix products, but for the attention
# weights, which are large, and what is added at once.
KEPT = ("qkv", "attended", "between", "hidden")

Remat = bool | Literal["named"]


class Constant(nnx.Variable):
    """An array that is saved with the model and never trained."""


class Attention(nnx.Module):
    """Multi-head self-attention with one packed projection to queries, keys and values; `form` as in `attend`."""

    def __init__(self, dim: int, heads: int, *, dtype: Dtype, rngs: nnx.Rngs, form: str = "auto"):
        check_form(form)
        self.heads, self.form = heads, form
        self.qkv = linear(dim, 3 * dim, dtype, rngs)
        self.proj = linear(dim, dim, dtype, rngs)

    def __call__(self, x: jax.Array, tail: int | None = None) -> jax.Array:
        """Attend over x [B, T, D]; with `tail`, only the last `tail` tokens ask and are returned [B, tail, D]."""
        if tail is None:
            attended = attend_packed(checkpoint_name(self.qkv(x), "qkv"), self.heads, self.form)
        else:
            attended = attend(*self.project(x, tail), self.heads, self.form)
        return self.proj(checkpoint_name(attended, "attended"))

    def project(self, x: jax.Array, tail: int | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Compute the queries of all or the last `tail` tokens of x [B, T, D], and the keys and values of all."""
        dim = x.shape[-1]
        q = checkpoint_name(self.qkv(x if tail is None else x[:, -tail:], slice(dim)), "qkv")
        k, v = jnp.split(checkpoint_name(self.qkv(x, slice(dim, None)), "qkv"), 2, axis=-1)
        return q, k, v

    def weights(self, x: jax.Array) -> jax.Array:
        """Compute how much each token of x [B, T, D] attends to each, float32 [B, heads, T, T]."""
        q, k, _ = self.project(x)
        return attention_weights(q, k, self.heads)


class Block(nnx.Module):
    """One pre-norm layer: attention, then an MLP, each added to what came in."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        layerscale: bool,
        dropout: float,
        dtype: Dtype,
        rngs: nnx.Rngs,
        gelu: str = "erf",
        attention: str = "auto",
    ):
        activation(gelu)  # refuses an unknown one
        self.dropout, self.gelu = dropout, gelu
        self.norm1 = layer_norm(dim, rngs)
        self.attention = Attention(dim, heads, dtype=dtype, rngs=rngs, form=attention)
        self.norm2 = layer_norm(dim, rngs)
        self.fc1 = linear(dim, 4 * dim, dtype, rngs)
        self.fc2 = linear(4 * dim, dim, dtype, rngs)
        self.scale1 = nnx.Param(jnp.full((1, 1, dim), LAYERSCALE_INIT, jnp.float32)) if layerscale else None
        self.scale2 = nnx.Param(jnp.full((1, 1, dim), LAYERSCALE_INIT, jnp.float32)) if layerscale else None

    def __call__(self, x, drop_path: float | jax.Array = 0.0, key=None, tail: int | None = None):
        """Transform x [B, T, D]; `drop_path` is this layer's rate; `tail` as in `Attention`."""
        keys = [None] * 5 if key is None else list(jax.random.split(key, 5))

        def add(x, branch, scale, path_key):
            branch = branch if scale is None else (branch * scale[...]).astype(branch.dtype)
            return x + dropout(branch, drop_path, path_key, (x.shape[0], 1, 1))

        attended = dropout(self.attention(self.norm1(x), tail), self.dropout, keys[0])
        x = checkpoint_name(add(x if tail is None else x[:, -tail:], attended, self.scale1, keys[1]), "between")
        branch = mlp(self.norm2(x), self.fc1, self.fc2, self.gelu, self.dropout, keys[2])
        return add(x, dropout(branch, self.dropout, keys[3]), self.scale2, keys[4])


@jax.custom_vjp
def whole(block: Block) -> Block:
    """Gather the weights of a layer that is split over the devices of the mesh, if one is set: one layer at a time.

    Nothing is said of how their gradients lie: a sum that each device needs whole could not be scattered.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return block
    return jax.lax.with_sharding_constraint(block, PartitionSpec())


whole.defvjp(lambda block: (whole(block), None), lambda _, gradient: (gradient,))


def take_apart(stack: Block, count: int, layers: int) -> tuple[Block | None, list[Block]]:
    """Take the first `layers` of a stack apart: the first `count` as one, the others each by itself.

    It is split at once: the gradient of that is put together from those of the parts, where the gradient of single
    indices is a sum of arrays as large as the stack.
    """
    leaves, tree = jax.tree.flatten(stack)
    columns = [jnp.split(leaf, tuple(range(max(count, 1), len(leaf)))) for leaf in leaves]
    parts = [jax.tree.unflatten(tree, row) for row in zip(*columns, strict=True)]
    first = parts.pop(0) if count else None
    return first, [jax.tree.map(lambda a: a[0], part) for part in parts[: layers - count]]


class Transformer(nnx.Module):
    """A stack of blocks: one Block whose arrays carry a leading depth axis.

    Stacked arrays keep dispatch, checkpoints and sharding rules independent of the depth. `scan` chooses how the stack
    runs: unrolled is faster on CPU and leaner on TPU up to ViT-B, a scan compiles faster. `droppath` rises linearly
    from 0 to its value over the depth.

    `remat` says what is kept of each block for the backward pass, where the rest is computed again: all (False), what
    enters it and `KEPT` ("named"; False too in a scan, which would copy all of it), or only what enters it (True).
    Weights that are split over devices are kept whole with False alone; otherwise each layer's are gathered again.
    """

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        *,
        layerscale: bool,
        dropout: float,
        droppath: float,
        remat: Remat,
        scan: bool,
        dtype: Dtype,
        rngs: nnx.Rngs,
        gelu: str = "erf",
        attention: str = "auto",
    ):
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        self.layers, self.droppath, self.scan = layers, droppath, scan
        self.remat: Remat = remat

        def block(key):
            return Block(
                dim,
                heads,
                layerscale=layerscale,
                dropout=dropout,
                dtype=dtype,
                rngs=nnx.Rngs(key),
                gelu=gelu,
                attention=attention,
            )

        self.blocks = jax.vmap(block)(jax.random.split(rngs.params(), layers))

    def __call__(self, x: jax.Array, key: jax.Array | None = None, tail: int | None = None) -> jax.Array:
        """Run x [B, T, D] through the blocks; with `tail`, the last block computes only the last `tail` tokens."""
        rates = [self.droppath * i / max(1, self.layers - 1) for i in range(self.layers)]
        keys = None if key is None else jax.random.split(key, self.layers)

        def layer(x, block, rate, key, tail):
            return whole(block)(x, 0.0 if rate is None else rate, key, tail)

        remat = self.remat or (self.scan and "named")
        if remat:
            policy = jax.checkpoint_policies.save_only_these_names(*KEPT) if remat == "named" else None
            layer = jax.checkpoint(layer, static_argnums=4, policy=policy, prevent_cse=not self.scan)
        scanned = (self.layers if tail is None else self.layers - 1) if self.scan else 0
        first, rest = take_apart(self.blocks, scanned, self.layers)
        if scanned:
            rising = jnp.asarray(rates)[:scanned] if self.droppath else None
            stack = first, rising, None if keys is None else keys[:scanned]
            x, _ = jax.lax.scan(lambda x, xs: (layer(x, xs[0], xs[1], xs[2], None), None), x, stack)
        for i, block in enumerate(rest, scanned):
            x = layer(x, block, rates[i], None if keys is None else keys[i], tail if i == self.layers - 1 else None)
        return x

    def states(self, x: jax.Array) -> list[jax.Array]:
        """Run x [B, T, D] through the blocks as in evaluation; return what enters each, and what leaves the last."""
        states = [x]
        for i in range(self.layers):
            states.append(self.block(i)(states[-1]))
        return states

    def block(self, i: int) -> Block:
        """Take layer i out of the stack."""
        return jax.tree.map(operator.itemgetter(i), self.blocks)


class VisionTransformer(nnx.Module):
    """The encoder: patches and a cls token to tokens.

    Args:
        image_size: (H, W) in pixels, each a multiple of `patch_size`.
        patch_size: side of a square patch in pixels.
        channels: C, any number; `mean` and `std` (on the 0..1 scale) have one value per channel.
        dim, layers, heads: width, depth and attention heads.
        posemb: "sincos2d" (fixed) or "learnable".
        layerscale, dropout, droppath, remat, scan: see `Transformer`.
        final_norm: whether the tokens are normalised at the end; not for a classifier with mean pooling.
        dtype: type of the matrix products, float32 or bfloat16.
        gelu: "erf" or "tanh", see `activation`.
        attention: the form of attention, see `attend`.

    Raises:
        ValueError: a size does not fit: patch and image, heads and width, mean and channels.

    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int] = (224, 224),
        patch_size: int = 16,
        channels: int = 3,
        dim: int = 768,
        layers: int = 12,
        heads: int = 12,
        posemb: str = "sincos2d",
        layerscale: bool = False,
        dropout: float = 0.0,
        droppath: float = 0.0,
        remat: Remat = False,
        scan: bool = False,
        final_norm: bool = True,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        dtype: Dtype = jnp.float32,
        gelu: str = "erf",
        attention: str = "auto",
        rngs: nnx.Rngs,
    ):
        height, width = image_size
        if height % patch_size or width % patch_size:
            raise ValueError(f"patches of {patch_size} pixels do not divide an image of {height} x {width}")
        if not len(mean) == len(std) == channels:
            raise ValueError(f"{channels} channels need as many means and standard deviations: {mean}, {std}")
        self.patch_size, self.channels, self.dim, self.dropout = patch_size, channels, dim, dropout
        self.grid = (height // patch_size, width // patch_size)
        self.mean, self.std, self.dtype, self.gelu = tuple(mean), tuple(std), dtype, gelu
        self.embed = linear(patch_size**2 * channels, dim, dtype, rngs)
        self.cls_token = token(dim, rngs)
        self.positions = positions(posemb, self.grid, dim, rngs)
        self.transformer = Transformer(
            layers,
            dim,
            heads,
            layerscale=layerscale,
            dropout=dropout,
            droppath=droppath,
            remat=remat,
            scan=scan,
            dtype=dtype,
            rngs=rngs,
            gelu=gelu,
            attention=attention,
        )
        self.norm = layer_norm(dim, rngs) if final_norm else None

    @property
    def patches(self) -> int:
        """N, the number of patches of an image."""
        return self.grid[0] * self.grid[1]

    def normalize(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Turn uint8 images [B, H, W, C] into float32 of about zero mean and unit variance, by `mean` and `std`."""
        return normalize(images, self.mean, self.std)

    def cut(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """Cut images x [B, H, W, C] into flattened patches [B, N, P], or into those of `keep` [B, K]: [B, K, P].

        uint8 images are normalised last: bytes are moved at a quarter of the cost.
        """
        patches = patchify(x, self.patch_size)
        patches = patches if keep is None else take_patches(patches, keep)
        if x.dtype != jnp.uint8:
            return patches
        pixels = self.patch_size**2
        return normalize(patches, self.mean * pixels, self.std * pixels)

    def __call__(self, x: jax.Array, keep: jax.Array | None = None, key: jax.Array | None = None) -> jax.Array:
        """Encode images x [B, H, W, C], uint8 or normalised, to tokens [B, 1 + N, D], the cls token first.

        With `keep` [B, K] only those patches enter, and the result is [B, 1 + K, D] in their order. Pixels are picked
        before they are embedded: no gradient flows to pixels, so the gather has no backward pass.
        """
        embed_key, stack_key = (None, None) if key is None else jax.random.split(key)
        tokens = self.transformer(self.tokens(x, keep, embed_key), stack_key)
        return tokens if self.norm is None else self.norm(tokens)

    def tokens(self, x: jax.Array, keep: jax.Array | None = None, key: jax.Array | None = None) -> jax.Array:
        """Embed images as what enters the first block; arguments and shape as of a call."""
        table = frozen_if_constant(self.positions)
        patches, places = self.cut(x, keep), table[:, 1:]
        places = places if keep is None else take_patches(places, keep)
        # What all samples share is rounded only after it met them: its gradient, a sum over them, is then float32.
        tokens = (self.embed(patches) + places).astype(self.dtype)
        cls = jnp.broadcast_to(self.cls_token[...] + table[:, :1], (x.shape[0], 1, self.dim)).astype(self.dtype)
        return dropout(jnp.concatenate([cls, tokens], axis=1), self.dropout, key)

    def encode(self, x: jax.Array, pool: str | None = "cls", layers: Sequence[int] | None = None) -> jax.Array:
        """Compute features of images x [B, H, W, C], uint8 or normalised, without a mask: float32.

        `pool`: "cls" (the cls token) or "mean" (of the patch tokens) give [B, D]; None gives all tokens [B, 1 + N, D].
        With `layers` (0 is the first block, -1 the last) the features after each of these blocks, through the final
        norm as after the last one: [B, L, D] or [B, L, 1 + N, D].

        Raises:
            ValueError: unknown pooling, no layers, or there is no such layer.

        """
        if layers is None:
            return pooled(self(x).astype(jnp.float32), pool)
        if not len(layers):
            raise ValueError("layers names no layer; give at least one, -1 for the last")
        states = self.transformer.states(self.tokens(x))[1:]
        chosen = [states[self.layer_number(i)] for i in layers]
        normed = [tokens if self.norm is None else self.norm(tokens) for tokens in chosen]
        return jnp.stack([pooled(tokens.astype(jnp.float32), pool) for tokens in normed], axis=1)

    def attention(self, x: jax.Array, layer: int = -1) -> jax.Array:
        """Compute the attention of one block, the last by default, on images x [B, H, W, C] without a mask.

        Images are uint8 or normalised. Returns float32 [B, heads, 1 + N, 1 + N]: how much each token (row; the first is
        cls) reads of each; rows sum to 1.

        Raises:
            ValueError: there is no such layer.

        """
        number = self.layer_number(layer)
        x = self.tokens(x)
        for i in range(number):
            x = self.transformer.block(i)(x)
        block = self.transformer.block(number)
        return block.attention.weights(block.norm1(x))

    def layer_number(self, layer: int) -> int:
        """Count a layer from the front: -1 is the last."""
        count = self.transformer.layers
        if not -count <= layer < count:
            raise ValueError(f"there is no layer {layer}: the encoder has {count}, 0 to {count - 1}")
        return layer % count


def normalize(images: jax.Array | np.ndarray, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Turn uint8 images [..., C] into float32 by a mean and standard deviation per channel on the 0..1 scale."""
    shape = (*[1] * (np.ndim(images) - 1), len(mean))
    scale, offset = jnp.asarray(std).reshape(shape), jnp.asarray(mean).reshape(shape)
    return (jnp.asarray(images, jnp.float32) / 255 - offset) / scale


def pooled(tokens: jax.Array, pool: str | None) -> jax.Array:
    """Reduce tokens [B, 1 + N, D] to [B, D]: the "cls" token or the "mean" of the others; None changes nothing."""
    if pool is None:
        return tokens
    if pool not in ("cls", "mean"):
        raise ValueError(f'pool must be "cls", "mean" or None, not {pool!r}')
    return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(axis=1)


def token(dim: int, rngs: nnx.Rngs) -> nnx.Param:
    """Make a learned token [1, 1, D], normal with standard deviation .02."""
    return nnx.Param(TOKEN_STD * jax.random.normal(rngs.params(), (1, 1, dim)))


def positions(kind: str, grid: tuple[int, int], dim: int, rngs: nnx.Rngs) -> nnx.Variable:
    """Make a position table [1, 1 + N, D]: fixed "sincos2d" (a `Constant`) or "learnable" (a `Param`, std .02)."""
    if kind == "sincos2d":
        return Constant(jnp.asarray(sincos_table(grid, dim))[None])
    if kind == "learnable":
        return nnx.Param(TOKEN_STD * jax.random.normal(rngs.params(), (1, 1 + grid[0] * grid[1], dim)))
    raise ValueError(f"positions are sincos2d or learnable, not {kind}")


def frozen_if_constant(variable: nnx.Variable) -> jax.Array:
    """Read a variable; no gradient reaches it if it is a `Constant`."""
    value = variable[...]
    return jax.lax.stop_gradient(value) if isinstance(variable, Constant) else value
