"""An attentive probe: cross-attention from one learned query to the frozen tokens, then a linear classifier."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maejax.evaluate.probe import Array, check_labels, padded_accuracy

BATCH, RATE, DECAY = 128, 1e-3, 0.05
LEAST_STEPS = 600  # of the optimizer: on 146 images, 30 stay behind nearest neighbours, and 1,200 add a point at most
WARMUP = 0.1  # fraction of the steps
ROWS = 512  # test images at a time


def attentive_probe(
    train_x: Array, train_y: Array, test_x: Array, test_y: Array, heads: int = 4, epochs: int = 30, seed: int = 0
) -> float:
    """Train cross-attention pooling and a linear classifier on frozen tokens; return the test accuracy in percent.

    `train_x` [n, T, D] and `test_x` [m, T, D] are tokens, in memory or mapped into it; `train_y` [n] and `test_y` [m]
    are integer labels. Keys and values are linear in the normalised tokens. One query for all images attends to them
    in `heads` heads; the result is projected, normalised and classified (the attentive classifier of CAE, Chen et al.
    2022, section 4.1, and of V-JEPA). AdamW's rate is a cosine from 1e-3, its weight decay .05, a batch 128. A small
    set gets more than `epochs`, for `LEAST_STEPS` in all; test labels decide nothing. Raises ValueError as
    `check_labels`, or if the heads do not divide D.
    """
    check_labels(train_x, train_y, test_x, test_y)
    dim = train_x.shape[-1]
    if dim % heads:
        raise ValueError(f"{heads} heads do not divide a width of {dim}")
    classes, y = np.unique(train_y, return_inverse=True)
    size = min(BATCH, len(train_x))
    each = len(train_x) // size
    epochs = max(epochs, -(-LEAST_STEPS // each))
    steps = epochs * each
    weights = _initial(jax.random.key(seed), dim, len(classes))
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, max(1, int(WARMUP * steps)), steps)
    optimizer = optax.adamw(schedule, b2=0.999, weight_decay=DECAY, mask={name: "kernel" in name for name in weights})
    opt_state = optimizer.init(weights)

    @jax.jit
    def step(weights, opt_state, tokens, labels):
        """Return weights and optimizer state after one batch."""

        def loss(weights):
            logits = _logits(weights, tokens, heads)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(weights), opt_state, weights)
        return optax.apply_updates(weights, updates), opt_state

    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(train_x))
        for start in range(0, len(order) - size + 1, size):
            rows = np.sort(order[start : start + size])  # sorted, so that the file is read forwards
            weights, opt_state = step(weights, opt_state, train_x[rows], y[rows])
    score = jax.jit(_logits, static_argnums=2)
    return padded_accuracy(
        lambda tokens: classes[np.asarray(score(weights, tokens, heads)).argmax(axis=1)], test_x, test_y, ROWS
    )


def _initial(key: jax.Array, dim: int, classes: int) -> dict[str, Any]:
    keys = jax.random.split(key, 3)
    xavier = jax.nn.initializers.xavier_uniform()
    return {
        "query": 0.02 * jax.random.normal(keys[0], (1, 1, dim)),
        "read_kernel": xavier(keys[1], (dim, 2 * dim)),
        "read_bias": jnp.zeros((1, 1, 2 * dim)),
        "proj_kernel": xavier(keys[2], (dim, dim)),
        "proj_bias": jnp.zeros((1, dim)),
        "head_kernel": jnp.zeros((dim, classes)),
        "head_bias": jnp.zeros((1, classes)),
    }


def _logits(weights: dict[str, Any], tokens: jax.Array, heads: int) -> jax.Array:
    tokens = _normed(tokens.astype(jnp.float32))
    batch, count, dim = tokens.shape
    read = (tokens @ weights["read_kernel"] + weights["read_bias"]).reshape(batch, count, 2, heads, dim // heads)
    query = weights["query"].reshape(heads, dim // heads) * (dim // heads) ** -0.5
    attention = jax.nn.softmax(jnp.einsum("hd,bthd->bht", query, read[:, :, 0]))
    pooled = jnp.einsum("bht,bthd->bhd", attention, read[:, :, 1]).reshape(batch, dim)
    pooled = _normed(pooled @ weights["proj_kernel"] + weights["proj_bias"])
    return pooled @ weights["head_kernel"] + weights["head_bias"]


def _normed(x: jax.Array) -> jax.Array:
    return (x - x.mean(axis=-1, keepdims=True)) * jax.lax.rsqrt(x.var(axis=-1, keepdims=True) + 1e-6)
