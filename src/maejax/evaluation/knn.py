"""k nearest neighbours: an evaluator without training."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maejax.evaluation.probe import Array, check_labels

_SIMILARITIES = 2**24  # computed at a time: 64 MiB in float32


def knn_accuracy(
    train_x: Array, train_y: Array, test_x: Array, test_y: Array, k: int = 20, temperature: float = 0.07
) -> float:
    """Classify every test feature by a vote of its k nearest training features; return the accuracy in percent.

    `train_x` [n, D] and `test_x` [m, D] are real numbers of any scale, `train_y` [n] and `test_y` [m] integer labels.
    Neighbours are nearest by cosine similarity s and vote with weight exp(s / temperature), as in DINO (Caron et al.
    2021, appendix F.1; k = 20, temperature .07). Ties go to the earlier neighbour and the smaller label. Of fewer than
    k training features all vote. Raises ValueError if features and labels differ in number or either side is empty.
    """
    return 100 * float(np.mean(vote(train_x, train_y, test_x, test_y, k, temperature).guess == test_y))


class Votes(NamedTuple):
    """Votes of the nearest neighbours of m features.

    `guess` [m] are labels, `share` [m] their parts of all votes, `nearest` [m, k] the numbers of the neighbours, the
    nearest first.
    """

    guess: np.ndarray
    share: np.ndarray
    nearest: np.ndarray


def vote(train_x: Array, train_y: Array, test_x: Array, test_y: Array, k: int = 20, temperature: float = 0.07) -> Votes:
    """Classify features as `knn_accuracy` does, and say how sure the vote is."""
    check_labels(train_x, train_y, test_x, test_y, least_classes=1)
    classes, train_index = np.unique(train_y, return_inverse=True)
    train, index, test, found = _unit(train_x), jnp.asarray(train_index), _unit(test_x), []
    rows = min(len(test), max(1, _SIMILARITIES // len(train)))
    for start in range(0, len(test), rows):
        part = test[start : start + rows]
        similarity = _similarity(train, np.pad(part, [(0, rows - len(part)), (0, 0)]))
        votes = _vote(similarity, index, min(k, len(train)), temperature, len(classes))
        found.append([np.asarray(each)[: len(part)] for each in votes])
    guess, share, nearest = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Votes(classes[guess], share, nearest)


def leave_one_out(x: Array, y: Array, k: int = 20, temperature: float = 0.07) -> float:
    """Classify every feature of `x` [n, D] by its k nearest others, as `knn_accuracy`; return the accuracy in percent.

    `y` [n] are integer labels; all similarities are in memory at once. Raises ValueError for fewer than two features.
    """
    check_labels(x, y, x, y, least_classes=1)
    if len(x) < 2:
        raise ValueError("one feature has no neighbour")
    classes, index = np.unique(y, return_inverse=True)
    unit = _unit(x)
    similarity = jnp.fill_diagonal(_similarity(unit, unit), -jnp.inf, inplace=False)
    guessed, *_ = _vote(similarity, jnp.asarray(index), min(k, len(x) - 1), temperature, len(classes))
    return float(100 * np.mean(np.asarray(guessed) == index))


def _unit(x: Array) -> Array:
    x = np.asarray(x, np.float32).reshape(len(x), -1)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


@jax.jit
def _similarity(train: jax.Array, test: jax.Array) -> jax.Array:
    return jnp.matmul(test, train.T, precision="highest")


@partial(jax.jit, static_argnames=("k", "classes"))
def _vote(similarity: jax.Array, labels: jax.Array, k: int, temperature: float, classes: int):
    nearest, index = jax.lax.top_k(similarity, k)
    # Subtracting the largest similarity keeps the winner and avoids overflow at low temperatures. It is taken by max:
    # a slice [:, :1] of top_k makes XLA on CPU sort all similarities, 12 times slower.
    weights = jnp.exp((nearest - nearest.max(axis=1, keepdims=True)) / temperature)
    scores = jax.vmap(lambda w, y: jnp.zeros(classes).at[y].add(w))(weights, labels[index])
    return jnp.argmax(scores, axis=1), scores.max(axis=1) / scores.sum(axis=1), index
