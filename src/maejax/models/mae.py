"""The masked autoencoder (He et al. 2022, sections 3 and A.1).

The decoder does not care in which order its tokens come, since every token carries its position. So the patches are
shuffled once, visible ones first, and stay shuffled: encode the visible ones, append a mask token for every hidden one,
decode, and score the last N - K tokens. This is the published algorithm without its un-shuffle.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from maejax.models.masking import visible_patches
from maejax.models.patches import take_patches
from maejax.models.vit import Transformer, VisionTransformer, frozen_if_constant, positions, token
from maejax.ops.dense import layer_norm, linear


class Output(NamedTuple):
    """What a forward pass gives: `loss` [B], the mean over hidden patches, and `prediction` [B, N - K, P]."""

    loss: jax.Array
    prediction: jax.Array


class MaskedAutoencoder(nnx.Module):
    """An encoder that sees a quarter of an image and a small decoder that predicts the pixels of the rest.

    Args:
        mask_ratio: share of patches that is hidden; exactly int(N * (1 - mask_ratio)) stay visible.
        norm_pix_loss: predict each patch normalised by its own mean and standard deviation (section 3).
        dec_dim, dec_layers, dec_heads, dec_posemb, dec_layerscale, dec_dropout, dec_droppath: the decoder's geometry.
        encoder: keyword arguments of `VisionTransformer`.

    Raises:
        ValueError: a size does not fit, or nothing would be visible or hidden.

    """

    def __init__(
        self,
        *,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        dec_dim: int = 512,
        dec_layers: int = 8,
        dec_heads: int = 16,
        dec_posemb: str = "sincos2d",
        dec_layerscale: bool = False,
        dec_dropout: float = 0.0,
        dec_droppath: float = 0.0,
        rngs: nnx.Rngs,
        **encoder,
    ):
        self.encoder = VisionTransformer(**encoder, rngs=rngs)
        self.mask_ratio, self.norm_pix = mask_ratio, norm_pix_loss
        self.visible = visible_patches(self.encoder.patches, mask_ratio)
        if not 0 < self.visible < self.encoder.patches:
            raise ValueError(f"mask ratio {mask_ratio} leaves {self.visible} of {self.encoder.patches} patches visible")
        dtype, dim = self.encoder.dtype, self.encoder.dim
        self.dec_embed = linear(dim, dec_dim, dtype, rngs)
        self.mask_token = token(dec_dim, rngs)
        self.dec_positions = positions(dec_posemb, self.encoder.grid, dec_dim, rngs)
        self.decoder = Transformer(
            dec_layers,
            dec_dim,
            dec_heads,
            layerscale=dec_layerscale,
            dropout=dec_dropout,
            droppath=dec_droppath,
            remat=self.encoder.transformer.remat,
            scan=self.encoder.transformer.scan,
            dtype=dtype,
            rngs=rngs,
            gelu=self.encoder.gelu,
            attention=self.encoder.transformer.blocks.attention.form,
        )
        self.dec_norm = layer_norm(dec_dim, rngs)
        self.predict = linear(dec_dim, self.patch_size**2 * self.encoder.channels, dtype, rngs)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.encoder.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.encoder.grid

    @property
    def patches(self) -> int:
        """N, the number of patches of an image."""
        return self.encoder.patches

    @property
    def mean(self) -> tuple[float, ...]:
        """The C channel means on the 0..1 scale."""
        return self.encoder.mean

    @property
    def std(self) -> tuple[float, ...]:
        """The C channel standard deviations on the 0..1 scale."""
        return self.encoder.std

    def normalize(self, images: jax.Array) -> jax.Array:
        """As `VisionTransformer.normalize`."""
        return self.encoder.normalize(images)

    def encode(self, x: jax.Array, pool: str | None = "cls", layers: Sequence[int] | None = None) -> jax.Array:
        """As `VisionTransformer.encode`: features of whole images."""
        return self.encoder.encode(x, pool, layers)

    def attention(self, x: jax.Array, layer: int = -1) -> jax.Array:
        """As `VisionTransformer.attention`: who reads whom in whole images."""
        return self.encoder.attention(x, layer)

    def __call__(self, x: jax.Array, order: jax.Array, key: jax.Array | None = None) -> Output:
        """Hide, predict and score: x [B, H, W, C] uint8 or normalised, order [B, N] int32, the first K are visible."""
        encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
        latent = self.encoder(x, order[:, : self.visible], encoder_key)
        prediction = self.decode(latent, order, decoder_key)
        error = (prediction - self.target(x, order)) ** 2
        return Output(error.mean(axis=(1, 2)), prediction)

    def decode(self, latent: jax.Array, order: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Predict the hidden patches [B, N - K, P], float32, from the visible tokens [B, 1 + K, D] and their order."""
        hidden = self.patches - self.visible
        table = frozen_if_constant(self.dec_positions)
        places = take_patches(table[:, 1:], order)
        seen = self.dec_embed(latent)
        # Rounded last, as in `VisionTransformer.tokens`.
        cls, seen = seen[:, :1] + table[:, :1], seen[:, 1:] + places[:, : self.visible]
        guessed = self.mask_token[...] + places[:, self.visible :]
        tokens = jnp.concatenate([cls, seen, guessed], axis=1).astype(self.encoder.dtype)
        # In the last block only the hidden tokens need queries, MLP and head; they attend to all.
        tokens = self.decoder(tokens, key, tail=hidden)
        return self.predict(self.dec_norm(tokens)).astype(jnp.float32)

    def target(self, x: jax.Array, order: jax.Array) -> jax.Array:
        """Cut out the pixels of the hidden patches [B, N - K, P], normalised per patch if `norm_pix` (float32)."""
        target = self.encoder.cut(x, order[:, self.visible :]).astype(jnp.float32)
        if not self.norm_pix:
            return target
        mean, variance = target.mean(-1, keepdims=True), target.var(-1, ddof=1, keepdims=True)
        return (target - mean) / jnp.sqrt(variance + 1e-6)
