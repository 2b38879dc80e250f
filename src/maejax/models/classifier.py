"""An encoder with a linear head, for fine-tuning and linear probing (He et al. 2022, section A.1)."""

import jax
import jax.numpy as jnp
from flax import nnx

from maejax.models.description import Classifier, Compute
from maejax.models.pooling import Pool
from maejax.models.tokens import Constant
from maejax.models.trees import named_arrays, with_arrays
from maejax.models.vit import Model, VisionTransformer
from maejax.ops.dense import layer_norm

HEAD_STD, PROBE_STD = 2e-5, 0.01  # authors' code, fine-tuning and linear probing
BATCH_NORM_EPS = 1e-6  # authors' linear probing
POOL: dict[str, Pool] = {"cls": "cls", "gap": "mean", "avg": "mean", "cls+avg": "cls+mean", "map": "map"}
BATCH_NORM_MOMENTUM = 0.1  # weight of the newest batch in the running statistics, as in PyTorch


class FeatureNorm(nnx.Module):
    """Batch normalisation of features [B, D] without scale and bias (paper, A.1: before the head of a linear probe).

    The running `mean` and `var` [D] are part of the model: saved with it, never trained. Statistics of a batch are
    those of its valid rows over all devices.
    """

    def __init__(self, dim: int, eps: float):
        self.eps = eps
        self.mean, self.var = Constant(jnp.zeros(dim)), Constant(jnp.ones(dim))

    def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Normalise x [B, D] by the running statistics; in training, with `valid` [B], by those of the batch."""
        if valid is None:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var, _ = moments(x, valid)
        return (x - mean.reshape(1, -1)) * jax.lax.rsqrt(var + self.eps).reshape(1, -1)

    def new_stats(self, x: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
        """Compute the running statistics after a training batch x [B, D]; its variance is the unbiased one."""
        mean, var, count = moments(x, valid)
        new = {"mean": mean, "var": var * count / jnp.maximum(1, count - 1)}
        old = {"mean": self.mean[...], "var": self.var[...]}
        average = {name: old[name] + BATCH_NORM_MOMENTUM * (new[name] - old[name]) for name in old}
        return {name: jnp.where(count > 0, average[name], old[name]) for name in old}


def moments(x: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute mean [D], biased variance [D] and number of the valid rows of x [B, D]."""
    weight = valid.astype(x.dtype).reshape(-1, 1)
    count = weight.sum()
    mean = (x * weight).sum(0) / jnp.maximum(1, count)
    var = ((x - mean.reshape(1, -1)) ** 2 * weight).sum(0) / jnp.maximum(1, count)
    return mean, var, count


class ImageClassifier(Model):
    """A vision transformer and a linear layer on its pooled tokens; `classes` names its outputs, if they are known."""

    config: Classifier
    classes: tuple[str, ...] = ()

    def __init__(self, config: Classifier, compute: Compute, rngs: nnx.Rngs):
        self.config, self.compute, dim = config, compute, config.features
        self.encoder = VisionTransformer(config.encoder, compute, rngs)
        self.norm = layer_norm(dim, rngs, config.encoder.norm_eps) if config.pooling == "gap" else None
        self.head_norm = FeatureNorm(dim, config.head_norm) if config.head_norm else None
        head_init = nnx.initializers.truncated_normal(PROBE_STD if config.head_norm else HEAD_STD)
        self.head = nnx.Linear(dim, config.labels, kernel_init=head_init, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Compute the logits [B, labels], float32, of images x [B, H, W, C], uint8 or normalised."""
        return self.classify(self.features(x, key))

    def features(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Compute the input of the head, float32 [B, D] or [B, 2 D], of images x [B, H, W, C], uint8 or normalised."""
        features = self.encoder.pooled(self.encoder(x, key=key).astype(jnp.float32), POOL[self.config.pooling])
        return features if self.norm is None else self.norm(features)

    def classify(self, features: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Compute the logits [B, labels] of features [B, D]; `valid` [B] is given in training, see `FeatureNorm`."""
        if self.head_norm is not None:
            features = self.head_norm(features, valid)
        return self.head(features)

    def update_stats(self, features: jax.Array, valid: jax.Array) -> "ImageClassifier":
        """Return the model with the running statistics after a training batch of features [B, D]."""
        if self.head_norm is None:
            return self
        stats = {f"head_norm.{name}": value for name, value in self.head_norm.new_stats(features, valid).items()}
        return with_arrays(self, named_arrays(self) | stats)
