"""Predict something of your own in the place of pixels: here how steep the picture is, which leaves brightness out."""

import jax
import jax.numpy as jnp
import numpy as np

import maejax
from maejax.data import fashion_mnist

PATCH = 7


def slopes(images: jax.Array) -> jax.Array:
    """Return values of every patch, [B, N, P], for normalised images float32 [B, H, W, C]; here P is 2 * 7 * 7."""
    grey = images.mean(axis=-1)
    down, across = jnp.gradient(grey, axis=(1, 2))
    both = jnp.stack([down, across], axis=-1)  # [B, H, W, 2]
    rows, columns = grey.shape[1] // PATCH, grey.shape[2] // PATCH
    tiles = both.reshape(-1, rows, PATCH, columns, PATCH, 2).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(-1, rows * columns, 2 * PATCH**2)


def main(steps: int = 400, count: int = 2000) -> maejax.MaskedAutoencoder:
    """Pre-train to predict the slopes of the hidden patches."""
    return maejax.train(
        train_dataset_shards=np.load(fashion_mnist.path("train"))["images"][:count],
        target=slopes,
        name="slopes",
        image_size=28,
        patch_size=PATCH,
        channels=1,
        layers=2,
        dim=64,
        heads=2,
        dec_layers=1,
        dec_dim=32,
        training_steps=steps,
        warmup_steps=steps // 10,
        train_batch_size=64,
        learning_rate=2e-3,
    ).model


if __name__ == "__main__":
    main()
    maejax.load("runs/slopes", target=slopes)  # without it the model is read too, but has no loss
