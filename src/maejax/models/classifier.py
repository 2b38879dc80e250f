"""An encoder with a linear head: what fine-tuning trains, and linear probing in part (He et al. 2022, section A.1)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from maejax.models.trees import named_arrays, with_arrays
from maejax.models.vit import Constant, VisionTransformer, pooled
from maejax.ops.dense import layer_norm

HEAD_STD, PROBE_STD = 2e-5, 0.01  # authors' code, fine-tuning and linear probing
BATCH_NORM_EPS = 1e-6  # authors' linear probing
BATCH_NORM_MOMENTUM = 0.1  # the share of the newest batch in the running statistics, as in PyTorch


class FeatureNorm(nnx.Module):
    """Batch normalisation of features [B, D] without scale and bias (paper, A.1: before the head of a linear probe).

    The running `mean` and `var` [D] are part of the model: saved with it, never trained. Statistics of a batch are
    those of its valid rows over all devices.
    """

    def __init__(self, dim: int, eps: float):
        self.eps = eps
        self.mean, self.var = Constant(jnp.zeros(dim)), Constant(jnp.ones(dim))

    def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Normalise x [B, D] by the running statistics; in training, where `valid` [B] is given, by the batch's own."""
        if valid is None:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var, _ = moments(x, valid)
        return (x - mean.reshape(1, -1)) * jax.lax.rsqrt(var + self.eps).reshape(1, -1)

    def moved(self, x: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
        """Compute the running statistics after a training batch x [B, D], its variance taken as the unbiased one."""
        mean, var, count = moments(x, valid)
        var = var * count / jnp.maximum(1, count - 1)

        def move(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(count > 0, old + BATCH_NORM_MOMENTUM * (new - old), old)

        return {"mean": move(self.mean[...], mean), "var": move(self.var[...], var)}


def moments(x: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute mean [D], biased variance [D] and number of the valid rows of x [B, D]."""
    weight = valid.astype(x.dtype).reshape(-1, 1)
    count = weight.sum()
    mean = (x * weight).sum(0) / jnp.maximum(1, count)
    var = ((x - mean.reshape(1, -1)) ** 2 * weight).sum(0) / jnp.maximum(1, count)
    return mean, var, count


class Classifier(nnx.Module):
    """A vision transformer and a linear layer on its pooled tokens.

    Args:
        labels: number of classes.
        pooling: "cls" (normalised cls token) or "gap" (mean of the patch tokens, then a norm of its own; the cls token
            stays in the sequence), as in the authors' code.
        head_norm: eps of a batch normalisation before the linear layer, as a linear probe has; 0 for none.
        encoder: keyword arguments of `VisionTransformer`.

    Raises:
        ValueError: unknown pooling, no class, or a size of the encoder does not fit.

    """

    def __init__(self, *, labels: int, pooling: str = "cls", head_norm: float = 0.0, rngs: nnx.Rngs, **encoder):
        if pooling not in ("cls", "gap"):
            raise ValueError(f"pooling is cls or gap, not {pooling}")
        if labels < 1:
            raise ValueError(f"a classifier needs at least 1 class, not {labels}")
        self.pooling, self.labels = pooling, labels
        self.encoder = VisionTransformer(**encoder, final_norm=pooling == "cls", rngs=rngs)
        self.norm = layer_norm(self.encoder.dim, rngs) if pooling == "gap" else None
        self.head_norm = FeatureNorm(self.encoder.dim, head_norm) if head_norm else None
        head_init = nnx.initializers.truncated_normal(PROBE_STD if head_norm else HEAD_STD)
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
        return self.classify(self.features(x, key))

    def features(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Compute what the head reads, [B, D] float32, of normalised images x [B, H, W, C]."""
        tokens = self.encoder(x, key=key).astype(jnp.float32)
        return pooled(tokens, "cls") if self.norm is None else self.norm(pooled(tokens, "mean"))

    def classify(self, features: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Compute the logits [B, labels] of features [B, D]; `valid` [B] is given in training, see `FeatureNorm`."""
        if self.head_norm is not None:
            features = self.head_norm(features, valid)
        return self.head(features)

    def observed(self, features: jax.Array, valid: jax.Array) -> "Classifier":
        """Return the model after it saw the features [B, D] of a training batch: with moved running statistics."""
        if self.head_norm is None:
            return self
        moved = {f"head_norm.{name}": value for name, value in self.head_norm.moved(features, valid).items()}
        return with_arrays(self, named_arrays(self) | moved)
