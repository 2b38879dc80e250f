"""Pooling: tokens of an image to one vector."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from maejax.models.description import Compute, ViT
from maejax.models.tokens import token
from maejax.ops.attention import attend_plainly
from maejax.ops.dense import layer_norm, linear, mlp

Pool = Literal["cls", "mean", "cls+mean", "map"]
POOLS = ("cls", "mean", "cls+mean", "map")


def pooled(tokens: Any, pool: Pool | None, config: ViT) -> Any:
    """Reduce tokens [..., T, D] to [..., D]: "cls" or the "mean" of the patches; "cls+mean" is both, [..., 2 D].

    None changes nothing. Raises ValueError for a pooling that is unknown or that needs a cls token where none is.
    """
    if pool is None:
        return tokens
    if pool not in pools(config):
        raise ValueError(f"pool is {', '.join(pools(config))} or None for this encoder, not {pool!r}")
    if pool == "cls+mean":
        return jnp.concatenate([pooled(tokens, "cls", config), pooled(tokens, "mean", config)], axis=-1)
    return tokens[..., 0, :] if pool == "cls" else tokens[..., config.prefix :, :].mean(axis=-2)


def pools(config: ViT) -> list[Pool]:
    """List the poolings that an encoder has, those of the published models of its kind first."""
    found: list[Pool] = ["cls", "mean", "cls+mean"] if config.cls_token else ["mean"]
    return ["map", *found] if config.attention_pool else found


class AttentionPool(nnx.Module):
    """Pooling by attention: a learned query attends to all tokens, and an MLP follows (Zhai et al. 2022)."""

    def __init__(self, config: ViT, compute: Compute, rngs: nnx.Rngs):
        dim, dtype, self.heads, self.activation = config.dim, jnp.dtype(compute.dtype), config.heads, config.activation
        self.query_token = token(dim, rngs)
        self.q, self.kv = linear(dim, dim, dtype, rngs), linear(dim, 2 * dim, dtype, rngs)
        self.proj = linear(dim, dim, dtype, rngs)
        self.norm = layer_norm(dim, rngs, config.norm_eps)
        self.fc1, self.fc2 = linear(dim, config.fc1_dim, dtype, rngs), linear(config.mlp_dim, dim, dtype, rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Pool tokens [B, T, D] to [B, D]."""
        q = jnp.broadcast_to(self.q(self.query_token[...]), (tokens.shape[0], 1, tokens.shape[-1]))
        k, v = jnp.split(self.kv(tokens), 2, axis=-1)
        x = self.proj(attend_plainly(q, k, v, self.heads))
        return (x + mlp(self.norm(x), self.fc1, self.fc2, self.activation, pieces=False))[:, 0]
