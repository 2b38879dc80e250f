"""Mixup and cutmix of a global batch, on the devices: a new lambda and a new box at every step, as timm's `Mixup`.

Rows are paired from both ends, the first with the last; they arrive in a new random order at every step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

SWITCH = 0.5  # probability of cutmix if mixup is on too: timm's switch_prob


class Mixture(NamedTuple):
    """Weights of an image in a mixture with its partner, whose weights are 1 minus these.

    `pixels` float32 [H, W], 0..1: at each pixel. `target` float32 scalar, 0..1: of its targets, the mean of `pixels`.
    """

    pixels: jax.Array
    target: jax.Array


def mix(
    images: jax.Array, targets: jax.Array, valid: jax.Array, step: jax.Array, *, seed: int, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Mix images and targets with those of their partners by the mixture of a step; if both are 0, nothing changes."""
    if not mixup and not cutmix:
        return images, targets
    size = images.shape[1], images.shape[2]
    return blend(images, targets, valid, draw_mixture(step, seed=seed, size=size, mixup=mixup, cutmix=cutmix))


def draw_mixture(step: jax.Array, *, seed: int, size: tuple[int, int], mixup: float, cutmix: float) -> Mixture:
    """Draw a step's mixture of images of `size` (H, W): mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019).

    `mixup` and `cutmix` are the alphas of lambda ~ Beta(alpha, alpha), 0 for none; with both, each has half the steps.
    """
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 4)
    mixed = drawn = None
    if mixup:
        lam = jax.random.beta(keys[0], mixup, mixup)
        mixed = Mixture(jnp.full(size, lam), lam)
    if cutmix:
        lam = jax.random.beta(keys[1], cutmix, cutmix)
        row, column = jax.random.randint(keys[2], (2,), 0, jnp.array(size))
        drawn = cut_box(lam, row, column, size)
    if mixed is None or drawn is None:
        return mixed or drawn  # type: ignore[return-value]
    cuts = jax.random.uniform(keys[3]) < SWITCH
    return jax.tree.map(lambda cut, whole: jnp.where(cuts, cut, whole), drawn, mixed)


def cut_box(lam: jax.Array, row: jax.Array, column: jax.Array, size: tuple[int, int]) -> Mixture:
    """Cut a box of 1 - `lam` of the area around a pixel out of images of `size` (H, W), which it may leave in part."""
    inside = []
    for centre, length in zip((row, column), size, strict=True):
        cut, at = (length * jnp.sqrt(1 - lam)).astype(jnp.int32), jnp.arange(length)
        inside.append((at >= centre - cut // 2) & (at < centre + (cut + 1) // 2))
    pixels = 1.0 - (inside[0][:, None] & inside[1][None, :])
    return Mixture(pixels, pixels.mean())


def blend(images: jax.Array, targets: jax.Array, valid: jax.Array, mixture: Mixture) -> tuple[jax.Array, jax.Array]:
    """Mix rows with their partners: images [B, H, W, C], uint8 or float, and targets [B, labels] become float32.

    A row is not changed if it or its partner is not `valid` [B]. Mixing is linear: it may come before normalisation.
    """
    pairs = (valid & valid[::-1])[:, None]
    weight = jnp.where(pairs[..., None, None], mixture.pixels[None, :, :, None], 1.0)
    images = images.astype(jnp.float32)
    part = jnp.where(pairs, mixture.target, 1.0)
    return weight * images + (1 - weight) * images[::-1], part * targets + (1 - part) * targets[::-1]


def soft_targets(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """Turn labels [B] int32, -1 for none, into smoothed targets [B, classes] float32 (Szegedy et al. 2016)."""
    return (1 - smoothing) * jax.nn.one_hot(labels, classes) + smoothing / classes
