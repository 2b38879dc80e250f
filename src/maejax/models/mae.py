"""The masked autoencoder (He et al. 2022, sections 3 and A.1).

The decoder does not care about the order of its tokens, since every token carries its position. So the patches are
shuffled once, visible ones first, and stay shuffled: encode the visible ones, append a mask token for every hidden one,
decode, and score the last N - K tokens. This is the published algorithm without its un-shuffle.

In a decoder of cross-attention (Fu et al. 2025), the mask tokens of the last M patches ask, and the visible tokens
answer.

Shapes: B batch, N patches, K of them visible, M predicted, T tokens of the encoder, D width, P values of a patch.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from maejax.models.description import MAE, Compute
from maejax.models.patches import take_patches
from maejax.models.targets import Components, custom_values, features
from maejax.models.tokens import frozen_if_constant, mixing_weights, positions, token
from maejax.models.transformer import Block, CrossBlock, Transformer
from maejax.models.vit import Model, VisionTransformer
from maejax.ops.dense import layer_norm, linear, mixed


class Output(NamedTuple):
    """Result of a forward pass: `loss` [B], the mean over predicted pixels that exist, and `prediction` [B, M, P]."""

    loss: jax.Array
    prediction: jax.Array


class MaskedAutoencoder(Model):
    """An encoder that sees a quarter of an image and a small decoder that predicts the pixels of the rest."""

    config: MAE

    def __init__(self, config: MAE, compute: Compute, rngs: nnx.Rngs):
        self.config, self.compute, self.visible = config, compute, config.visible
        encoder, decoder, dtype = config.encoder, config.decoder, jnp.dtype(compute.dtype)
        crosses = decoder.attention == "cross"
        self.encoder = VisionTransformer(encoder, compute, rngs)
        self.dec_embed = None if crosses else linear(encoder.dim, decoder.dim, dtype, rngs)
        self.mask_token = token(decoder.dim if config.mask_tokens == "decoder" else encoder.dim, rngs)
        self.dec_positions = positions(decoder.posemb, encoder.grid, decoder.dim, rngs, cls=encoder.cls_token)
        block = partial(CrossBlock, width=encoder.dim) if crosses else Block
        self.decoder = Transformer(decoder, compute, rngs, block)
        self.dec_mix = mixing_weights(encoder.layers + (decoder.inputs == "all"), decoder.layers, rngs, decoder.mixes)
        self.dec_norm = layer_norm(decoder.dim, rngs, decoder.norm_eps, rounded=True)
        self.predict = linear(decoder.dim, config.values, dtype, rngs)
        self.components = Components(encoder.pixels, config.values) if config.target == "components" else None
        self.teacher = VisionTransformer(config.teacher, compute, rngs) if config.teacher else None

    def __call__(
        self, x: jax.Array, order: jax.Array, key=None, *, visible: int | None = None, every: bool = False
    ) -> Output:
        """Hide, predict and score: x [B, H, W, C] uint8 or normalised, order [B, N] int32, the first K are visible.

        K is that of the description, or `visible`. The last M of the order are predicted, or `every` hidden patch.
        """
        encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
        visible = visible or self.visible
        predicted = self.patches - visible if every else self.config.predicted_of(visible)
        latent = self.latent(x, order, visible, encoder_key)
        prediction = self.decode(latent, order, decoder_key, predicted)
        target = self.target(x, order[:, -predicted:])
        if not self.encoder.config.may_miss:
            return Output(((prediction - target) ** 2).mean(axis=(1, 2)), prediction)
        there = ~jnp.isnan(target)
        error = (jnp.where(there, prediction, 0) - jnp.where(there, target, 0)) ** 2
        return Output(error.sum(axis=(1, 2)) / jnp.maximum(there.sum(axis=(1, 2)), 1), prediction)

    def latent(self, x: jax.Array, order: jax.Array, visible: int | None = None, key=None) -> jax.Array:
        """Encode the first K patches of x in the order [B, N] for the decoder: [B, T, D]. K is `visible`, if given.

        With mask tokens in the encoder all N patches enter. For a decoder that mixes, the states of all blocks that it
        reads [S, B, T, D] are returned.
        """
        visible = visible or self.visible
        if self.config.mask_tokens == "encoder":
            return self.encoder(x, order, key, (self.mask_token[...], visible))
        keep = order[:, :visible]
        if not self.config.decoder.mixes:
            return self.encoder(x, keep, key)
        states = self.encoder.states(x, keep, key)
        return states if self.config.decoder.inputs == "all" else states[1:]

    def decode(self, latent: jax.Array, order: jax.Array, key=None, predicted: int | None = None) -> jax.Array:
        """Predict the last M patches of the order [B, N] from what `latent` returned: [B, M, P], float32.

        M is N - K of the description, or `predicted`.
        """
        assert self.dec_positions is not None  # of a decoder they are never rotary
        cls, pos_embed = int(self.config.encoder.cls_token), frozen_if_constant(self.dec_positions)
        visible = latent.shape[-2] - self.config.encoder.prefix
        predicted = predicted or self.config.hidden
        if self.dec_embed is None:
            tokens = self.mask_token[...] + take_patches(pos_embed[:, cls:], order[:, -predicted:])
            tokens = self.decoder(tokens.astype(self.compute.dtype), key, sources=self.sources(latent))
        else:
            tokens = self.tokens(latent, order, visible, pos_embed[:, :cls], pos_embed[:, cls:])
            # In the last block only the predicted tokens need queries, MLP and head; they attend to all.
            tokens = self.decoder(tokens, key, last=predicted)
        return self.predict(self.dec_norm(tokens)).astype(jnp.float32)

    def tokens(self, latent: jax.Array, order: jax.Array, visible: int, cls_place, places) -> jax.Array:
        """Embed the visible tokens [B, T, D] for a decoder of self-attention, and append a mask token for every other.

        Places are positions [1, 0 or 1, D] and [1, N, D]. Registers enter too, without a position.
        """
        assert self.dec_embed is not None
        cls, prefix = cls_place.shape[1], self.config.encoder.prefix
        places, seen = take_patches(places, order), self.dec_embed(latent)
        # Rounded last, as in `VisionTransformer.tokens`.
        parts = [seen[:, :cls] + cls_place, seen[:, cls:prefix], seen[:, prefix:] + places[:, :visible]]
        if visible < self.patches:  # else they went through the encoder
            parts.append(self.mask_token[...] + places[:, visible:])
        tokens = jnp.concatenate(parts, axis=1)
        return tokens.astype(self.compute.dtype)

    def sources(self, latent: jax.Array) -> jax.Array:
        """Return what each block of a cross-attention decoder reads of what `latent` returned: [layers, B, T, D]."""
        if self.dec_mix is None:
            return jnp.broadcast_to(latent, (self.decoder.layers, *latent.shape))
        return mixed(latent, self.dec_mix[...])

    def target(self, x: jax.Array, which: jax.Array) -> jax.Array:
        """Compute what is predicted of the patches `which` [B, M]: their pixels [B, M, P], or others, float32.

        Pixels are normalised if the loss asks so. Those that are missing are NaN, and count for no mean and deviation.
        """
        if self.teacher is not None:
            return take_patches(features(self.teacher, x, self.config), which)
        if self.config.custom_target is not None:
            return take_patches(custom_values(self.config, self.encoder.normalized(x)), which)
        target = self.encoder.cut(x, which, missing=jnp.nan).astype(jnp.float32)
        if self.components is not None:
            return self.components.coefficients(target)
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
