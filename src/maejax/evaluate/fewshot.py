"""Few-shot evaluation: ridge regression on a few images of each class, over several draws."""

import numpy as np

from maejax.evaluate.probe import check_labels, standardise

_STRENGTHS = 10.0 ** np.arange(-4, 4)  # of the penalty, in units of the mean square length of a feature


def few_shot(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    shots: int,
    draws: int = 10,
    seed: int = 0,
) -> tuple[float, float]:
    """Fit ridge regression to `shots` images of each class, several times; return mean accuracy and spread in percent.

    Features [n, D] are standardised by all of `train_x`, since unlabelled images are plenty. Targets are +1 for the
    class and -1 for the others, with a free offset (Dosovitskiy et al. 2021, section 4.1). The penalty is the one with
    the smallest leave-one-out error on the drawn images; test labels decide nothing. The spread is the standard
    deviation (n - 1) over draws, 0 for one draw.

    Raises ValueError if features and labels differ in number, or a class has fewer images than `shots`.
    """
    check_labels(train_x, train_y, test_x, test_y)
    classes, y = np.unique(train_y, return_inverse=True)
    smallest = int(np.bincount(y).min())
    if not 1 <= shots <= smallest:
        raise ValueError(f"{shots} images of each class cannot be drawn: one class has {smallest}")
    x, test = standardise(train_x, test_x)
    rng = np.random.default_rng(seed)
    accuracies = []
    for _ in range(draws):
        members = [rng.choice(np.flatnonzero(y == c), shots, replace=False) for c in range(len(classes))]
        drawn = np.concatenate(members)
        scores = _fit_and_score(x[drawn], 2.0 * np.eye(len(classes))[y[drawn]] - 1, test)
        accuracies.append(100 * float(np.mean(classes[np.argmax(scores, axis=1)] == test_y)))
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1)) if draws > 1 else 0.0


def _fit_and_score(x: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
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
