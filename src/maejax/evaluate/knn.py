"""k nearest neighbours: an evaluator without training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

_SIMILARITIES = 2**24  # computed at a time: 64 MiB in float32


def knn_accuracy(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Classify every test feature by a vote of its k nearest training features; return the accuracy in percent.

    `train_x` [n, D] and `test_x` [m, D] are real numbers of any scale, `train_y` [n] and `test_y` [m] integer labels.
    Neighbours are nearest by cosine similarity s and vote with weight exp(s / temperature), as in DINO (Caron et al.
    2021, appendix F.1; k = 20, temperature .07). Ties go to the earlier neighbour and the smaller label. With fewer
    than k training features, all vote.

    Raises ValueError if features and labels differ in number or either side is empty.
    """
    if len(train_x) != len(train_y) or len(test_x) != len(test_y):
        counts = f"train {len(train_x)} and {len(train_y)}, test {len(test_x)} and {len(test_y)}"
        raise ValueError(f"features and labels differ in number: {counts}")
    if not len(train_x) or not len(test_x):
        raise ValueError("nearest neighbours need at least one training and one test feature")
    classes, train_index = np.unique(train_y, return_inverse=True)
    train, index = _unit(train_x), jnp.asarray(train_index)
    test = _unit(test_x)
    rows = min(len(test), max(1, _SIMILARITIES // len(train)))
    correct = 0
    for start in range(0, len(test), rows):
        chunk = test[start : start + rows]
        padded = np.pad(chunk, [(0, rows - len(chunk)), (0, 0)])
        votes = _vote(train, index, padded, min(k, len(train)), temperature, len(classes))
        correct += int(np.sum(classes[np.asarray(votes)[: len(chunk)]] == test_y[start : start + rows]))
    return 100 * correct / len(test)


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32).reshape(len(x), -1)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnames=("k", "classes"))
def _vote(train: jax.Array, labels: jax.Array, test: jax.Array, k: int, temperature: float, classes: int) -> jax.Array:
    similarity = jnp.matmul(test, train.T, precision="highest")
    nearest, index = jax.lax.top_k(similarity, k)
    # Subtracting the largest similarity keeps the winner and avoids overflow at low temperatures. It is taken by max:
    # a slice [:, :1] of top_k makes XLA on CPU sort all similarities, 12 times slower.
    weights = jnp.exp((nearest - nearest.max(axis=1, keepdims=True)) / temperature)
    scores = jax.vmap(lambda w, y: jnp.zeros(classes).at[y].add(w))(weights, labels[index])
    return jnp.argmax(scores, axis=1)
