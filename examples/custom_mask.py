"""Hide patches by a function of your own: here the border of an image is seen, and its middle is predicted."""

import jax
import jax.numpy as jnp
import numpy as np

import maejax
from maejax.data import fashion_mnist


def border_first(key: jax.Array, batch: int, grid: tuple[int, int]) -> jax.Array:
    """Order the patches of a (rows, columns) grid, int32 [batch, N]: those that stay visible come first."""
    middle = jnp.zeros(grid).at[1:-1, 1:-1].set(1).reshape(1, -1)
    return jnp.argsort(middle + jax.random.uniform(key, (batch, grid[0] * grid[1])), axis=1)


def main(steps: int = 400, count: int = 2000) -> maejax.MaskedAutoencoder:
    """Pre-train with this mask; a quarter of the patches stays visible, whichever come first."""
    return maejax.train(
        train_dataset_shards=np.load(fashion_mnist.path("train"))["images"][:count],
        mask=border_first,
        name="border",
        image_size=28,
        patch_size=7,
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
