"""Other targets than pixels: principal components of patches, and features of a teacher.

Shapes: B batch, N patches, P values of a patch, C coefficients, D width of the teacher.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maejax.models.code import given_code
from maejax.models.description import MAE
from maejax.models.normalization import Normalized, normalize
from maejax.models.tokens import Constant


class Components(nnx.Module):
    """The largest principal components of normalised patches (paper, Table 1d: 96). They are set before training."""

    def __init__(self, pixels: int, count: int):
        self.mean = Constant(jnp.zeros(pixels, jnp.float32))
        self.basis = Constant(jnp.zeros((pixels, count), jnp.float32))

    def coefficients(self, patches: jax.Array) -> jax.Array:
        """Compute the coefficients [..., C] of normalised patches [..., P]."""
        mean, basis = jax.lax.stop_gradient((self.mean[...], self.basis[...]))
        shifted = patches - mean.reshape(*[1] * (patches.ndim - 1), -1)
        return jnp.matmul(shifted, basis, precision="highest")

    def patches(self, coefficients: jax.Array) -> jax.Array:
        """Compute normalised patches [..., P] from their coefficients [..., C]."""
        mean = self.mean[...].reshape(*[1] * (coefficients.ndim - 1), -1)
        return jnp.matmul(coefficients, self.basis[...].T, precision="highest") + mean


def features(teacher: Any, x: Any, config: MAE) -> jax.Array:
    """Compute the features of all patches of images x, as of `MaskedAutoencoder`, by a teacher: float32 [B, N, D].

    They are its final tokens, or the mean of the outputs of its last `teacher_blocks` blocks, each output normalised
    (Baevski et al. 2022, section 3.3). The result is normalised; no gradient passes.
    """
    x = images_for(teacher.config, x, config.encoder)
    if config.teacher_blocks:
        states = teacher.states(x)[-config.teacher_blocks :].astype(jnp.float32)
        tokens = standardized(states).mean(axis=0)
    else:
        tokens = teacher(x).astype(jnp.float32)
    return jax.lax.stop_gradient(standardized(tokens[:, teacher.config.prefix :]))


def custom_values(config: MAE, x: jax.Array) -> jax.Array:
    """Compute what the user's `custom_target` makes of normalised images [B, H, W, C]: float32 [B, N, P].

    No gradient passes. Raises ValueError if its code was not given, or if the shape is another one.
    """
    values = given_code(config.custom_target, "target")(x)
    wanted = (x.shape[0], config.encoder.patches, config.values)
    if values.shape != wanted:
        raise ValueError(f"a target returns [B, N, P], here {list(wanted)}, not {list(values.shape)}")
    return jax.lax.stop_gradient(values.astype(jnp.float32))


def images_for(wanted: Any, x: Any, own: Any) -> Any:
    """Return images as a teacher normalises them, at the size at which it has the same grid of patches."""
    if isinstance(x, Normalized) or x.dtype != own.image_type:
        images = x.images if isinstance(x, Normalized) else x
        mean, std = (jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1) for values in (own.mean, own.std))
        new_mean, new_std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (wanted.mean, wanted.std))
        scaled = (images * std + mean - new_mean) / new_std
    else:
        scaled = normalize(x, wanted.mean, wanted.std, own.image_type, own.no_data)
    if wanted.image_size != own.image_size:
        shape = (scaled.shape[0], *wanted.image_size, scaled.shape[-1])
        scaled = jax.image.resize(scaled, shape, "cubic")
    return Normalized(scaled) if wanted.image_type.startswith("float") else scaled


def standardized(tokens: jax.Array) -> jax.Array:
    """Normalise each token [..., D] to zero mean and unit variance."""
    mean, variance = tokens.mean(axis=-1, keepdims=True), tokens.var(axis=-1, keepdims=True)
    return (tokens - mean) * jax.lax.rsqrt(variance + 1e-6)
