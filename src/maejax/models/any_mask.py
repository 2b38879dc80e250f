"""The masked autoencoder for masks of any number of patches, compiled once.

`MaskedAutoencoder` takes as many tokens as there are visible patches, so each number is compiled anew. Here all patches
enter the encoder, and none attends to a hidden one: what the visible ones become, and the prediction, are the same.

Shapes: B batch, N patches, P values of a patch, T tokens, D width.
"""

from typing import Any

import jax
import jax.numpy as jnp

from maejax.models.mae import MaskedAutoencoder, Output
from maejax.models.transformer import Block, Transformer
from maejax.ops.attention import attention_weights, by_head
from maejax.ops.dense import product


def fill_hidden(model: MaskedAutoencoder, x: Any, hidden: jax.Array) -> Output:
    """Predict all patches of images x [B, H, W, C], uint8 or normalised, from those not `hidden` (bool [B, N]).

    The prediction is [B, N, P]; that of visible patches means nothing. The loss [B] is the mean over hidden ones.
    """
    config, encoder = model.config, model.encoder
    prefix, angles = config.encoder.prefix, encoder.angles()
    every = jnp.broadcast_to(jnp.arange(model.patches), hidden.shape)
    seen = jnp.pad(~hidden, ((0, 0), (prefix, 0)), constant_values=True)
    tokens = encoder.tokens(x)
    if config.mask_tokens == "encoder":
        masks = encoder.tokens(x, every, filler=(model.mask_token[...], 0))
        tokens, seen = jnp.where(seen[..., None], tokens, masks), jnp.ones_like(seen)
    states = [tokens]
    for block in _blocks(encoder.transformer):
        block.attention = _Attending(block.attention, seen)
        states.append(block(states[-1], beside=angles))
    if config.decoder.mixes:
        latent = jnp.stack(states if config.decoder.inputs == "all" else states[1:])
    else:
        latent = states[-1] if encoder.norm is None else encoder.norm(states[-1])
    prediction = model.predict(model.dec_norm(_decoded(model, latent, hidden, seen, every))).astype(jnp.float32)
    error = (prediction - model.target(x, every)) ** 2
    loss = jnp.nanmean(jnp.where(hidden[..., None], error, jnp.nan), axis=(1, 2))
    return Output(loss, prediction)


def _decoded(
    model: MaskedAutoencoder, latent: jax.Array, hidden: jax.Array, seen: jax.Array, every: jax.Array
) -> jax.Array:
    """Return the decoder's tokens [B, N, D] of all patches."""
    assert model.dec_positions is not None  # of a decoder they are never rotary
    cls, prefix = int(model.config.encoder.cls_token), model.config.encoder.prefix
    places = model.dec_positions[...]
    if model.dec_embed is None:
        tokens = jnp.broadcast_to(model.mask_token[...] + places[:, cls:], (*hidden.shape, places.shape[-1]))
        for block, source in zip(_blocks(model.decoder), model.sources(latent), strict=True):
            block.attention = _Crossing(block.attention, seen)
            tokens = block(tokens.astype(model.compute.dtype), beside=source)
        return tokens
    tokens = model.tokens(latent, every, model.patches, places[:, :cls], places[:, cls:])
    if model.config.mask_tokens == "decoder":
        masks = jnp.pad(model.mask_token[...] + places[:, cls:], ((0, 0), (prefix, 0), (0, 0)))
        tokens = jnp.where(seen[..., None], tokens, masks.astype(tokens.dtype))
    return model.decoder(tokens)[:, prefix:]


def _blocks(stack: Transformer) -> list[Block]:
    return [stack.block(i) for i in range(stack.layers)]


class _Attending:
    """Self-attention of a block over the tokens that are `seen` [B, T]."""

    def __init__(self, attention: Any, seen: jax.Array):
        self.attention, self.seen = attention, seen

    def __call__(self, x: jax.Array, last: int | None = None, angles: jax.Array | None = None) -> jax.Array:
        return self.attend(*self.attention.project(x, last, angles))

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Attend as `ops.attention.attend` does, over the seen tokens, and project the result."""
        heads = self.attention.heads
        weights = attention_weights(q, k, heads, self.seen).astype(v.dtype)
        attended = product("bhqk,bkhd->bqhd", weights, by_head(v, heads)).reshape(q.shape)
        return self.attention.proj(attended.astype(v.dtype))


class _Crossing(_Attending):
    """Attention of a block's tokens over those of a source that are `seen` [B, T]."""

    def __call__(self, x: jax.Array, source: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.attend(self.attention.q(x), *jnp.split(self.attention.kv(source), 2, axis=-1))
