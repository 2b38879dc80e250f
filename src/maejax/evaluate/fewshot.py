"""Few-shot evaluation: ridge regression on a few images of each class, over several draws."""

import numpy as np

from maejax.evaluate.probe import Array, accuracy_over_draws, check_labels, standardise

_STRENGTHS = 10.0 ** np.arange(-4, 4)  # of the penalty, in units of the mean square length of a feature


def few_shot(
    train_x: Array, train_y: Array, test_x: Array, test_y: Array, shots: int, draws: int = 10, seed: int = 0
) -> tuple[float, float]:
    """Fit ridge regression to `shots` images of each class, several times; return mean accuracy and spread in percent.

    Features [n, D] are standardised by all of `train_x`, since unlabelled images are plenty. Targets are +1 for the
    class and -1 for the others, with a free offset (Dosovitskiy et al. 2021, section 4.1). The penalty is the one with
    the smallest leave-one-out error on the drawn images; test labels decide nothing. The spread is that of
    `accuracy_over_draws`. Raises ValueError as `check_labels`, or if a class has fewer images than `shots`.
    """
    check_labels(train_x, train_y, test_x, test_y)
    classes, y = np.unique(train_y, return_inverse=True)
    smallest = int(np.bincount(y).min())
    if not 1 <= shots <= smallest:
        raise ValueError(f"{shots} images of each class cannot be drawn: one class has {smallest}")
    x, test = standardise(train_x, test_x)
    targets = 2.0 * np.eye(len(classes))[y] - 1

    def guess(rows: Array) -> Array:
        return classes[np.argmax(_fit_and_score(x[rows], targets[rows], test), axis=1)]

    return accuracy_over_draws(guess, test_y, y, shots, draws, seed)


def _fit_and_score(x: Array, targets: Array, test: Array) -> Array:
    """Return the scores [m, classes] of test features by ridge regression from x [n, D] to targets [n, classes]."""
    n = len(x)
    centre, offset = x.mean(axis=0), targets.mean(axis=0)
    x, targets = (x - centre).astype(np.float64), targets - offset
    values, axes = np.linalg.eigh(x @ x.T)  # [n, n]: drawn images are few, features may be many
    values, rotated = np.maximum(values, 0), axes.T @ targets
    best, chosen = np.inf, 0.0
    for strength in _STRENGTHS * max(values.sum() / n, 1e-12):
        shrunk = values / (values + strength)
        leverage = (axes**2 * shrunk).sum(axis=1) + 1 / n  # 1 / n: the offset is fitted too
        error = np.sum(((targets - axes @ (shrunk[:, None] * rotated)) / np.maximum(1 - leverage, 1e-9)[:, None]) ** 2)
        if error < best:
            best, chosen = error, strength
    return (test - centre) @ (x.T @ (axes @ (rotated / (values + chosen)[:, None]))) + offset
