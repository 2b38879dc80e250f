"""The vision transformer (Dosovitskiy et al. 2021), pre-norm, as the MAE paper and its authors' code use it.

Shapes: B batch, H W C image, N patches, T tokens, D width, P values of a patch. Parameters are float32. Matrix products
have the type of `Compute.dtype`; normalisation and softmax are always float32. No `key` means evaluation.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maejax.models.description import Compute, Network, ViT
from maejax.models.normalization import Normalized, normalize
from maejax.models.patches import patchify, rotary_angles, take_patches
from maejax.models.pooling import AttentionPool, Pool, pooled, pools
from maejax.models.tokens import frozen_if_constant, positions, token
from maejax.models.transformer import Transformer
from maejax.ops.dense import dropout, layer_norm, linear


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

    def encode(
        self, x: jax.Array | np.ndarray | Normalized, pool: Pool | None = "cls", layers: Sequence[int] | None = None
    ) -> jax.Array:
        """Compute features of images x [B, H, W, C], uint8 or normalised, without a mask: float32.

        `pool` as in `pooled`: [B, D], [B, 2 D] or, for None, [B, T, D]: cls, registers, patches. With `layers` (0 is
        the first block, -1 the last) the features after each of these blocks, through the final norm: [B, L, ...].
        Raises ValueError for an unknown pooling or layer, or for no layer.
        """
        encoder = self.encoder
        if layers is None:
            return encoder.pooled(encoder(x).astype(jnp.float32), pool)
        if not len(layers):
            raise ValueError("layers names no layer; give at least one, -1 for the last")
        states = encoder.states(x)
        chosen = [states[1 + self.layer_number(i)] for i in layers]
        normed = [tokens if encoder.norm is None else encoder.norm(tokens) for tokens in chosen]
        return jnp.stack([encoder.pooled(tokens.astype(jnp.float32), pool) for tokens in normed], axis=1)

    def attention(self, x: jax.Array, layer: int = -1) -> jax.Array:
        """Compute how much each token attends to each in one block, on images x [B, H, W, C] without a mask.

        Images are uint8 or normalised. Returns float32 [B, heads, T, T], cls and registers first; rows sum to 1. Raises
        ValueError if there is no such layer.
        """
        number, stack, angles = self.layer_number(layer), self.encoder.transformer, self.encoder.angles()
        x = self.encoder.tokens(x)
        for i in range(number):
            x = stack.block(i)(x, beside=angles)
        block = stack.block(number)
        return block.attention.weights(block.norm1(x), angles)

    def layer_number(self, layer: int) -> int:
        """Count a layer from the front: -1 is the last. Raises ValueError if there is no such layer."""
        count = self.encoder.transformer.layers
        if not -count <= layer < count:
            raise ValueError(f"there is no layer {layer}: the encoder has {count}, 0 to {count - 1}")
        return layer % count


Filler = tuple[jax.Array, int] | None


class VisionTransformer(Model):
    """The encoder: images to tokens, T = cls, registers and N patches, in this order."""

    config: ViT

    def __init__(self, config: ViT, compute: Compute, rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        self.embed = linear(config.pixels, config.dim, jnp.dtype(compute.dtype), rngs, bias=not config.pre_norm)
        self.cls_token = token(config.dim, rngs) if config.cls_token else None
        self.registers = token(config.dim, rngs, config.registers) if config.registers else None
        self.positions = positions(config.posemb, config.grid, config.dim, rngs, cls=config.cls_position)
        self.pre_norm = layer_norm(config.dim, rngs, config.norm_eps) if config.pre_norm else None
        self.transformer = Transformer(config, compute, rngs)
        self.norm = layer_norm(config.dim, rngs, config.norm_eps) if config.final_norm else None
        self.attention_pool = AttentionPool(config, compute, rngs) if config.attention_pool else None

    @property
    def encoder(self) -> "VisionTransformer":  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoder of the model: this itself."""
        return self

    def __call__(self, x: jax.Array, keep: jax.Array | None = None, key=None, filler: Filler = None) -> jax.Array:
        """Encode images x [B, H, W, C], uint8 or normalised, to tokens [B, T, D].

        With `keep` [B, K] only those patches enter, in their order. Pixels are picked before they are embedded: no
        gradient flows to pixels, so the gather has no backward pass. A `filler` is a token [1, 1, D] and a number: it
        stands for all patches of `keep` after so many.
        """
        embed_key, stack_key = (None, None) if key is None else jax.random.split(key)
        tokens = self.transformer(self.tokens(x, keep, embed_key, filler), stack_key, angles=self.angles(keep))
        return tokens if self.norm is None else self.norm(tokens)

    def states(self, x: jax.Array, keep: jax.Array | None = None, key: jax.Array | None = None) -> jax.Array:
        """Compute the input of the first block and the outputs of all, without the final norm: [1 + layers, B, T, D].

        Arguments as of a call.
        """
        embed_key, stack_key = (None, None) if key is None else jax.random.split(key)
        return self.transformer.states(self.tokens(x, keep, embed_key), stack_key, angles=self.angles(keep))

    def tokens(self, x: jax.Array, keep: jax.Array | None = None, key=None, filler: Filler = None) -> jax.Array:
        """Embed images as the input of the first block; arguments and shape as of a call."""
        config, dtype = self.config, jnp.dtype(self.compute.dtype)
        tokens = self.embed(self.cut(x, keep if filler is None or keep is None else keep[:, : filler[1]]))
        if filler is not None and keep is not None:
            rest = (keep.shape[0], keep.shape[1] - filler[1], config.dim)
            tokens = jnp.concatenate([tokens.astype(jnp.float32), jnp.broadcast_to(filler[0], rest)], axis=1)
        first = [part[...] for part in (self.cls_token, self.registers) if part]
        if self.positions is not None:
            pos_embed = frozen_if_constant(self.positions)
            if config.cls_position:
                first[0], pos_embed = first[0] + pos_embed[:, :1], pos_embed[:, 1:]
            # Arrays that all samples share are rounded only after the addition: their gradient, a sum, is then float32.
            tokens = tokens + (pos_embed if keep is None else take_patches(pos_embed, keep))
        shared = [jnp.broadcast_to(part, (x.shape[0], *part.shape[1:])).astype(dtype) for part in first]
        tokens = dropout(jnp.concatenate([*shared, tokens.astype(dtype)], axis=1), config.dropout, key)
        return tokens if self.pre_norm is None else self.pre_norm(tokens).astype(dtype)

    def angles(self, keep: jax.Array | None = None) -> jax.Array | None:
        """Compute the angles of rotary positions, [1, T, D / heads] or, for `keep` [B, K], [B, T, D / heads].

        Those of cls and registers are 0. None for other positions.
        """
        config = self.config
        if config.posemb != "rotary":
            return None
        angles = jnp.asarray(rotary_angles(config.grid, config.dim // config.heads))[None]
        angles = angles if keep is None else take_patches(angles, keep)
        return jnp.pad(angles, ((0, 0), (config.prefix, 0), (0, 0)))

    def pooled(self, tokens: Any, pool: Pool | None) -> Any:
        """Pool tokens [B, T, D] of a call: as `pooled` does, or "map" by the learned attention pooling, [B, D].

        Raises ValueError for a pooling that is unknown or that this encoder does not have.
        """
        if pool != "map":
            return pooled(tokens, pool, self.config)
        if self.attention_pool is None:
            raise ValueError(f'pool "map" is attention pooling, which this encoder lacks: take {pools(self.config)}')
        return self.attention_pool(tokens).astype(jnp.float32)

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

    def normalized(self, x: Any) -> jax.Array:
        """Return images x [B, H, W, C], of this encoder's type or normalised, as normalised float32."""
        self.check_images(x)
        if isinstance(x, Normalized):
            return x.images
        config = self.config
        done = x.dtype != config.image_type
        return x if done else normalize(x, self.mean, self.std, config.image_type, config.no_data)

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
