"""Train with maejax's encoder inside a loop of your own, in plain Flax and Optax: a classifier of clothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import maejax
from maejax.data import fashion_mnist


class Classifier(nnx.Module):
    """An encoder and a linear layer on the mean of its patch tokens."""

    def __init__(self, encoder: maejax.VisionTransformer, classes: int, rngs: nnx.Rngs):
        self.encoder = encoder
        self.head = nnx.Linear(encoder.config.dim, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Compute logits [B, classes] of images uint8 [B, H, W, C]."""
        return self.head(self.encoder.encode(images, pool="mean"))


@nnx.jit
def step(model: Classifier, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Make one update, and return the loss."""

    def loss_of(model: Classifier) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def main(steps: int = 400, count: int = 2000, weights: str = "") -> list[float]:
    """Train on labelled images, and return the losses; `weights` is anything that `maejax.load` reads."""
    train = np.load(fashion_mnist.path("train"))
    images, labels = jnp.asarray(train["images"][:count, ..., None]), jnp.asarray(train["labels"][:count], jnp.int32)
    sizes = maejax.create(image_size=28, patch_size=7, layers=2, dim=64, heads=2, dec_layers=1, dec_dim=32, channels=1)
    encoder = maejax.load(weights).encoder if weights else sizes.encoder

    model = Classifier(encoder, 10, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)  # fixed positions are no nnx.Param
    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        rows = rng.integers(0, count, 64)
        losses.append(float(step(model, optimizer, images[rows], labels[rows])))
    return losses


if __name__ == "__main__":
    print("losses", *main()[::40])
