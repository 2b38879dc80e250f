"""The masked autoencoder (He et al. 2022, sections 3 and A.1).

The decoder does not care about the order of its tokens, since every token carries its position. So the patches are
shuffled once, visible ones first, and stay shuffled: encode the visible ones, append a mask token for every hidden one,
decode, and score the last N - K tokens. This is the published algorithm without its un-shuffle.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from maejax.models.description import MAE, Compute
from maejax.models.patches import take_patches
from maejax.models.tokens import frozen_if_constant, positions, token
from maejax.models.transformer import Transformer
from maejax.models.vit import Model, VisionTransformer
from maejax.ops.dense import layer_norm, linear


class Output(NamedTuple):
    """Result of a forward pass: `loss` [B], the mean over hidden pixels that exist, and `prediction` [B, N - K, P]."""

    loss: jax.Array
    prediction: jax.Array


class MaskedAutoencoder(Model):
    """An encoder that sees a quarter of an image and a small decoder that predicts the pixels of the rest."""

    config: MAE

    def __init__(self, config: MAE, compute: Compute, rngs: nnx.Rngs):
        self.config, self.compute, self.visible = config, compute, config.visible
        encoder, decoder, dtype = config.encoder, config.decoder, jnp.dtype(compute.dtype)
        self.encoder = VisionTransformer(encoder, compute, rngs)
        self.dec_embed = linear(encoder.dim, decoder.dim, dtype, rngs)
        self.mask_token = token(decoder.dim, rngs)
        self.dec_positions = positions(decoder.posemb, encoder.grid, decoder.dim, rngs, cls=encoder.cls_token)
        self.decoder = Transformer(decoder, compute, rngs)
        self.dec_norm = layer_norm(decoder.dim, rngs, decoder.norm_eps)
        self.predict = linear(decoder.dim, encoder.pixels, dtype, rngs)

    def __call__(self, x: jax.Array, order: jax.Array, key: jax.Array | None = None) -> Output:
        """Hide, predict and score: x [B, H, W, C] uint8 or normalised, order [B, N] int32, the first K are visible."""
        encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
        latent = self.encoder(x, order[:, : self.visible], encoder_key)
        prediction = self.decode(latent, order, decoder_key)
        target = self.target(x, order)
        if not self.encoder.config.may_miss:
            return Output(((prediction - target) ** 2).mean(axis=(1, 2)), prediction)
        there = ~jnp.isnan(target)
        error = (jnp.where(there, prediction, 0) - jnp.where(there, target, 0)) ** 2
        return Output(error.sum(axis=(1, 2)) / jnp.maximum(there.sum(axis=(1, 2)), 1), prediction)

    def decode(self, latent: jax.Array, order: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Predict the hidden patches [B, N - K, P], float32, from the visible tokens [B, T, D] and their order.

        Registers enter too, without a position.
        """
        cls, prefix = int(self.config.encoder.cls_token), self.config.encoder.prefix
        assert self.dec_positions is not None  # of a decoder they are never rotary
        pos_embed = frozen_if_constant(self.dec_positions)
        places = take_patches(pos_embed[:, cls:], order)
        seen = self.dec_embed(latent)
        # Rounded last, as in `VisionTransformer.tokens`.
        first = [seen[:, :cls] + pos_embed[:, :cls], seen[:, cls:prefix]]
        guessed = self.mask_token[...] + places[:, self.visible :]
        tokens = jnp.concatenate([*first, seen[:, prefix:] + places[:, : self.visible], guessed], axis=1)
        tokens = tokens.astype(self.compute.dtype)
        # In the last block only the hidden tokens need queries, MLP and head; they attend to all.
        tokens = self.decoder(tokens, key, last=self.patches - self.visible)
        return self.predict(self.dec_norm(tokens)).astype(jnp.float32)

    def target(self, x: jax.Array, order: jax.Array) -> jax.Array:
        """Cut out the pixels of the hidden patches [B, N - K, P], float32; normalised per patch if the loss asks so.

        Pixels that are missing are NaN, and count for no mean and deviation.
        """
        target = self.encoder.cut(x, order[:, self.visible :], missing=jnp.nan).astype(jnp.float32)
        if not self.config.norm_pix_loss:
            return target
        if not self.encoder.config.may_miss:
            mean, variance = target.mean(-1, keepdims=True), target.var(-1, ddof=1, keepdims=True)
        else:
            there = ~jnp.isnan(target)
            count = there.sum(-1, keepdims=True)
            mean = jnp.where(there, target, 0).sum(-1, keepdims=True) / jnp.maximum(count, 1)
            squares = jnp.where(there, target - mean, 0) ** 2
            variance = squares.sum(-1, keepdims=True) / jnp.maximum(count - 1, 1)
        return (target - mean) / jnp.sqrt(variance + 1e-6)
