"""An attentive probe: cross-attention from one learned query to the frozen tokens, then a linear classifier.

`train_probe` trains any pooling of tokens with a linear classifier, that of `efficient.py` too.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maejax.evaluation.probe import Array, check_labels, padded_accuracy

DECAY = 0.05  # of kernels
WARMUP = 0.1  # fraction of the steps
ROWS = 512  # test images at a time
Weights = dict[str, jax.Array]


class Recipe(NamedTuple):
    """How a probe is trained: AdamW's peak rate, images of a batch, epochs, and the least steps of a small set."""

    rate: float
    batch: int
    epochs: int
    least_steps: int


# On 146 images, 30 steps stay behind nearest neighbours, and 1,200 add a point at most.
RECIPE = Recipe(rate=1e-3, batch=128, epochs=30, least_steps=600)


def attentive_probe(
    train_x: Array, train_y: Array, test_x: Array, test_y: Array, heads: int = 4, seed: int = 0, recipe: Recipe = RECIPE
) -> float:
    """Train cross-attention pooling and a linear classifier on frozen tokens; return the test accuracy in percent.

    Tokens, labels and training are as of `train_probe`. Keys and values are linear in the normalised tokens. One query
    for all images attends to them in `heads` heads; the result is projected, normalised and classified (the attentive
    classifier of CAE, Chen et al. 2022, section 4.1, and of V-JEPA). Raises ValueError as `check_labels`, or if the
    heads do not divide D.
    """
    dim = train_x.shape[-1]
    if dim % heads:
        raise ValueError(f"{heads} heads do not divide a width of {dim}")
    rng = np.random.default_rng(seed)
    weights = {
        "query": 0.02 * rng.standard_normal((1, 1, dim)),
        "read_kernel": xavier(rng, dim, 2 * dim),
        "read_bias": np.zeros((1, 1, 2 * dim)),
        "proj_kernel": xavier(rng, dim, dim),
        "proj_bias": np.zeros((1, dim)),
    }
    return train_probe(partial(_pool, heads=heads), weights, recipe, train_x, train_y, test_x, test_y, seed)[0]


def train_probe(
    pool: Callable[[Weights, jax.Array, bool], tuple[jax.Array, Weights]],
    weights: dict[str, Array],
    recipe: Recipe,
    train_x: Array,
    train_y: Array,
    test_x: Array,
    test_y: Array,
    seed: int = 0,
) -> tuple[float, Weights]:
    """Train a pooling and a linear classifier on frozen tokens; return the test accuracy in percent and the weights.

    `train_x` [n, T, D] and `test_x` [m, T, D] are tokens, in memory or mapped into it; `train_y` [n] and `test_y` [m]
    are integer labels. `pool` takes weights, tokens [B, T, D] and whether it is trained. It returns features [B, D] and
    weights to overwrite, such as running statistics. AdamW's rate is a cosine, the loss cross-entropy. A small set gets
    more epochs, for the least steps in all; test labels decide nothing. Raises ValueError as `check_labels`.
    """
    check_labels(train_x, train_y, test_x, test_y)
    classes, y = np.unique(train_y, return_inverse=True)
    size = min(recipe.batch, len(train_x))
    each = len(train_x) // size
    epochs = max(recipe.epochs, -(-recipe.least_steps // each))
    steps = epochs * each
    head = {"head_kernel": np.zeros((train_x.shape[-1], len(classes))), "head_bias": np.zeros((1, len(classes)))}
    state = {name: jnp.asarray(value, jnp.float32) for name, value in (weights | head).items()}
    schedule = optax.warmup_cosine_decay_schedule(0.0, recipe.rate, max(1, int(WARMUP * steps)), steps)
    optimizer = optax.adamw(schedule, b2=0.999, weight_decay=DECAY, mask={name: "kernel" in name for name in state})
    opt_state = optimizer.init(state)

    def logits(weights: Weights, tokens: jax.Array, training: bool) -> tuple[jax.Array, Weights]:
        features, new = pool(weights, tokens.astype(jnp.float32), training)
        return features @ weights["head_kernel"] + weights["head_bias"], new

    @jax.jit
    def step(weights, opt_state, tokens, labels):
        """Return weights and optimizer state after one batch."""

        def loss(weights):
            scores, new = logits(weights, tokens, True)
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean(), new

        gradients, new = jax.grad(loss, has_aux=True)(weights)
        updates, opt_state = optimizer.update(gradients, opt_state, weights)
        return optax.apply_updates(weights, updates) | new, opt_state

    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(train_x))
        for start in range(0, len(order) - size + 1, size):
            rows = np.sort(order[start : start + size])  # sorted, so that the file is read forwards
            state, opt_state = step(state, opt_state, train_x[rows], y[rows])
    score = jax.jit(lambda weights, tokens: logits(weights, tokens, False)[0].argmax(axis=1))
    accuracy = padded_accuracy(lambda tokens: classes[np.asarray(score(state, tokens))], test_x, test_y, ROWS)
    return accuracy, state


def xavier(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Draw a kernel [rows, columns] uniformly, of the range of Glorot and Bengio (2010)."""
    limit = (6 / (rows + columns)) ** 0.5
    return rng.uniform(-limit, limit, (rows, columns))


def _pool(weights: Weights, tokens: jax.Array, training: bool, heads: int) -> tuple[jax.Array, Weights]:
    tokens = _normed(tokens)
    batch, count, dim = tokens.shape
    read = (tokens @ weights["read_kernel"] + weights["read_bias"]).reshape(batch, count, 2, heads, dim // heads)
    query = weights["query"].reshape(heads, dim // heads) * (dim // heads) ** -0.5
    attention = jax.nn.softmax(jnp.einsum("hd,bthd->bht", query, read[:, :, 0]))
    pooled = jnp.einsum("bht,bthd->bhd", attention, read[:, :, 1]).reshape(batch, dim)
    return _normed(pooled @ weights["proj_kernel"] + weights["proj_bias"]), {}


def _normed(x: jax.Array) -> jax.Array:
    return (x - x.mean(axis=-1, keepdims=True)) * jax.lax.rsqrt(x.var(axis=-1, keepdims=True) + 1e-6)
