"""Decode by a module of your own: here the mean of what is seen and the place of a patch go through two layers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import maejax
from maejax.data import fashion_mnist


class MeanDecoder(nnx.Module):
    """A decoder without attention. `config` describes the whole model, and `rngs` give the fresh weights.

    Its parameters are `nnx.Param`. It holds nothing random: what is random comes from `key`, None without training.
    """

    def __init__(self, config, rngs: nnx.Rngs):
        width = config.decoder.dim  # --dec-dim
        self.embed = nnx.Linear(config.encoder.dim, width, rngs=rngs)
        self.places = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.encoder.patches, width)))
        self.predict = nnx.Linear(width, config.values, rngs=rngs)

    def __call__(self, latent: jax.Array, order: jax.Array, key: jax.Array | None, predicted: int) -> jax.Array:
        """Predict the last M = `predicted` patches of the order [B, N] from the encoder's tokens: [B, M, P].

        `latent` [B, T, D] has the cls token first, then the K visible patches in the order.
        """
        seen = self.embed(latent).mean(axis=1, keepdims=True)
        return self.predict(jax.nn.gelu(seen + jnp.take(self.places[...], order[:, -predicted:], axis=0)))


def main(steps: int = 400, count: int = 2000) -> maejax.MaskedAutoencoder:
    """Pre-train with this decoder."""
    return maejax.train(
        train_dataset_shards=np.load(fashion_mnist.path("train"))["images"][:count],
        decoder=MeanDecoder,
        name="mean-decoder",
        image_size=28,
        patch_size=7,
        channels=1,
        layers=2,
        dim=64,
        heads=2,
        dec_dim=32,
        training_steps=steps,
        warmup_steps=steps // 10,
        train_batch_size=64,
        learning_rate=2e-3,
    ).model


if __name__ == "__main__":
    main()
    maejax.load("runs/mean-decoder", decoder=MeanDecoder)  # without it the encoder alone is read
