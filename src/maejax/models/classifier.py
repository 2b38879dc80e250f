"""An encoder with a linear head: what fine-tuning trains (He et al. 2022, section A.1)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from maejax.models.vit import VisionTransformer, layer_norm, pooled

HEAD_STD = 2e-5  # authors' fine-tuning code


class Classifier(nnx.Module):
    """A vision transformer and a linear layer on its pooled tokens.

    Args:
        labels: number of classes.
        pooling: "cls" (normalised cls token) or "gap" (mean of the patch tokens, then a norm of its own; the cls token
            stays in the sequence), as in the authors' code.
        encoder: keyword arguments of `VisionTransformer`.

    Raises:
        ValueError: unknown pooling, or a size of the encoder does not fit.

    """

    def __init__(self, *, labels: int, pooling: str = "cls", rngs: nnx.Rngs, **encoder):
        if pooling not in ("cls", "gap"):
            raise ValueError(f"pooling is cls or gap, not {pooling}")
        self.pooling = pooling
        self.encoder = VisionTransformer(**encoder, final_norm=pooling == "cls", rngs=rngs)
        self.norm = layer_norm(self.encoder.dim, rngs) if pooling == "gap" else None
        head_init = nnx.initializers.truncated_normal(HEAD_STD)
        self.head = nnx.Linear(self.encoder.dim, labels, kernel_init=head_init, dtype=jnp.float32, rngs=rngs)

    def normalize(self, images: jax.Array) -> jax.Array:
        """As `VisionTransformer.normalize`."""
        return self.encoder.normalize(images)

    def encode(self, x: jax.Array, pool: str | None = "cls", layers: Sequence[int] | None = None) -> jax.Array:
        """As `VisionTransformer.encode`; the encoder of a "gap" classifier has no final norm."""
        return self.encoder.encode(x, pool, layers)

    def attention(self, x: jax.Array, layer: int = -1) -> jax.Array:
        """As `VisionTransformer.attention`."""
        return self.encoder.attention(x, layer)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Compute the logits [B, labels], float32, of normalised images x [B, H, W, C]."""
        tokens = self.encoder(x, key=key).astype(jnp.float32)
        if self.norm is None:
            return self.head(pooled(tokens, "cls"))
        return self.head(self.norm(pooled(tokens, "mean")))
