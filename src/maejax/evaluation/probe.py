"""Linear probes of frozen features: logistic regression with all labels or a few, ridge regression with a few."""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

Array = np.ndarray

# Of the L2 penalty, from 1 to 1e-4. On 60 to 1,000 photos of clothing, 1 adds 0 to 1.3 points to a range that begins at
# 0.1 and takes none; 10 takes some.
_STRENGTHS = 10.0 ** np.arange(0, -5, -1)
MANY = 5000  # images
_FEW_LABEL_STRENGTH = 0.1
_RIDGES = 10.0 ** np.arange(-4, 4)  # penalties of ridge regression, in units of the mean square length of a feature
# Relative gain of a step at which L-BFGS stops. Against 1e-6, test accuracies change by less than 0.1 and 0.7 points
# (raw pixels and a pre-trained encoder on Fashion-MNIST), at a half and a quarter of the passes.
_CONVERGED, _NEARLY = 1e-5, 1e-4


def linear_probe(train_x: Array, train_y: Array, test_x: Array, test_y: Array, seed: int = 0) -> float:
    """Train a linear classifier on frozen features with all labels; return its test accuracy in percent.

    `train_x` [n, D] and `test_x` [m, D] are real numbers of any scale, `train_y` [n] and `test_y` [m] integer labels.
    Features are standardised by `train_x`. The classifier is multinomial logistic regression, optimised to convergence.
    Its L2 strength is the best of five-fold cross-validation on the training data, split by `seed`. From `MANY` images
    on, the first fold alone decides. The final fit uses all of them, and test labels decide nothing. Raises ValueError
    as `check_labels`, or with fewer than five images.
    """
    check_labels(train_x, train_y, test_x, test_y)
    if len(train_x) < 5:
        raise ValueError(f"a linear probe needs at least 5 training images, not {len(train_x)}")
    classes, y = np.unique(train_y, return_inverse=True)
    x, test = standardise(train_x, test_x)
    folds = np.array_split(np.random.default_rng(seed).permutation(len(x)), 5)
    if large := len(x) >= MANY:  # a fifth of these tells enough, and takes a fifth of the time
        folds = folds[:1]
    rest = [np.setdiff1d(np.arange(len(x)), held) for held in folds]
    fits = [_solutions(x[kept], y[kept], len(classes), _STRENGTHS, _NEARLY) for kept in rest]
    best, strength = -1.0, _STRENGTHS[0]
    for l2, *solutions in zip(_STRENGTHS, *fits, strict=True):
        found = [_accuracy(x[i], train_y[i], w, bias, classes) for i, (w, bias) in zip(folds, solutions, strict=True)]
        accuracy = float(np.average(found, weights=[len(held) for held in folds]))
        if large and accuracy < best - 1:
            break  # it overfits, and weaker penalties would only do so more
        if accuracy > best:
            best, strength = accuracy, l2
    solution = next(_solutions(x, y, len(classes), [strength]))
    return _accuracy(test, test_y, *solution, classes)


def few_label_probe(
    train_x: Array, train_y: Array, test_x: Array, test_y: Array, labels: int = 100, draws: int = 10, seed: int = 0
) -> tuple[float, float]:
    """Train a linear classifier on a few labels, several times; return mean accuracy and spread in percent.

    Every draw takes `labels // classes` training images of each class at random. Features are standardised by all of
    `train_x` [n, D], since unlabelled images are plenty. The L2 strength is always 0.1: a hundred labels are too few to
    hold some out, and from 0.3 to 0.01 accuracy stays within 1.5 points (pixels, random features and an encoder on
    Fashion-MNIST). Raises ValueError as `check_labels`, or if a class has too few images for a draw, or a draw for it.
    """
    check_labels(train_x, train_y, test_x, test_y)
    classes, y = np.unique(train_y, return_inverse=True)
    each, smallest = labels // len(classes), int(np.bincount(y).min())
    if not 1 <= each <= smallest:
        raise ValueError(f"{labels} labels are {each} for each of {len(classes)} classes; one class has {smallest}")
    x, test = standardise(train_x, test_x)

    def guess(rows: Array) -> Array:
        weights, bias = next(_solutions(x[rows], y[rows], len(classes), [_FEW_LABEL_STRENGTH]))
        return classes[np.argmax(test @ weights + bias, axis=1)]

    return _accuracy_over_draws(guess, test_y, y, each, draws, seed)


def few_shot(
    train_x: Array, train_y: Array, test_x: Array, test_y: Array, shots: int, draws: int = 10, seed: int = 0
) -> tuple[float, float]:
    """Fit ridge regression to `shots` images of each class, several times; return mean accuracy and spread in percent.

    Features [n, D] are standardised by all of `train_x`, since unlabelled images are plenty. Targets are +1 for the
    class and -1 for the others, with a free offset (Dosovitskiy et al. 2021, section 4.1). The penalty is the one with
    the smallest leave-one-out error on the drawn images; test labels decide nothing. The spread is that of
    `_accuracy_over_draws`. Raises ValueError as `check_labels`, or if a class has fewer images than `shots`.
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

    return _accuracy_over_draws(guess, test_y, y, shots, draws, seed)


def _solutions(
    x: Array, y: Array, classes: int, strengths: Iterable[float], tolerance: float = _CONVERGED
) -> Iterator[tuple[Array, Array]]:
    """Yield weights [D, classes] and bias [classes] for each L2 strength, each starting from the one before.

    The loss is mean cross-entropy + l2 / 2 |W|^2, without a penalty on the bias; it is convex. L-BFGS runs in the
    principal axes of the features, scaled by the curvature expected on each. That saves most of the passes.
    """
    n, d = x.shape
    if n < d:
        _, singular, rows = np.linalg.svd(x, full_matrices=False)
        axes, variance = rows.T, singular**2 / n
    else:
        variance, axes = np.linalg.eigh(x.T @ x / n)
    rotated, targets = jnp.asarray(x @ axes), jax.nn.one_hot(y, classes)
    shape = (axes.shape[1] + 1, classes)  # the last row is the bias
    w = np.zeros(shape)
    for l2 in strengths:
        # Curvature: the variance times p (1 - p), a fifth for a classifier that has learnt a little.
        scale = np.append(1 / np.sqrt(np.maximum(variance, 0) / 5 + l2), 1)[:, None]

        def objective(u: Array, scale=scale, l2=l2) -> tuple[float, Array]:
            value, gradient = _loss(jnp.asarray(u.reshape(shape) * scale, jnp.float32), rotated, targets, l2)
            return float(value), (np.asarray(gradient, np.float64) * scale).ravel()

        options = {"maxiter": 1000, "maxcor": 30, "ftol": tolerance, "gtol": 1e-5}
        found = minimize(objective, (w / scale).ravel(), jac=True, method="L-BFGS-B", options=options)
        w = found.x.reshape(shape) * scale
        yield axes @ w[:-1], w[-1]


@jax.jit
@jax.value_and_grad
def _loss(w: jax.Array, x: jax.Array, targets: jax.Array, l2: float) -> jax.Array:
    logits = jnp.matmul(x, w[:-1], precision="highest") + w[-1:]
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * targets, axis=1)) + l2 / 2 * jnp.sum(w[:-1] ** 2)


def _accuracy(x: Array, y: Array, weights: Array, bias: Array, classes: Array) -> float:
    return 100 * float(np.mean(classes[np.argmax(x @ weights + bias, axis=1)] == y))


def standardise(train: Array, test: Array) -> tuple[Array, Array]:
    """Flatten features and scale each to mean 0 and standard deviation 1 in `train`."""
    train, test = (np.asarray(x, np.float32).reshape(len(x), -1) for x in (train, test))
    mean, std = train.mean(axis=0), train.std(axis=0)
    # A feature that is constant in training becomes 0.
    scale = np.where(std > 1e-6 * np.abs(mean), 1 / np.maximum(std, 1e-30), 0).astype(np.float32)
    return (train - mean) * scale, (test - mean) * scale


def check_labels(train_x: Array, train_y: Array, test_x: Array, test_y: Array, least_classes: int = 2) -> None:
    """Raise ValueError if features and labels differ in number, or with too few classes or no test image."""
    if len(train_x) != len(train_y) or len(test_x) != len(test_y):
        counts = f"train {len(train_x)} and {len(train_y)}, test {len(test_x)} and {len(test_y)}"
        raise ValueError(f"features and labels differ in number: {counts}")
    if len(test_x) == 0 or len(np.unique(train_y)) < least_classes:
        least = "two classes" if least_classes == 2 else "one image"
        raise ValueError(f"evaluation needs at least {least} to train on and one image to test")


def _accuracy_over_draws(
    guess: Callable[[Array], Array], test_y: Array, y: Array, each: int, draws: int, seed: int
) -> tuple[float, float]:
    """Draw `each` rows of every class of y [n] several times; return mean and spread of the accuracy in percent.

    `guess` labels the test images from row numbers. The spread is the standard deviation (n - 1), 0 for one draw.
    """
    rng, accuracies = np.random.default_rng(seed), []
    for _ in range(draws):
        members = [rng.choice(np.flatnonzero(y == c), each, replace=False) for c in range(y.max() + 1)]
        accuracies.append(100 * float(np.mean(guess(np.concatenate(members)) == test_y)))
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1)) if draws > 1 else 0.0


def padded_accuracy(guess: Callable[[Array], Array], x: Array, y: Array, rows: int) -> float:
    """Return the accuracy in percent of `guess`, which labels `rows` of x [n, ...] at a time, padded to one shape."""
    rows, correct = min(rows, len(x)), 0
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        padded = np.pad(part, [(0, rows - len(part)), *[(0, 0)] * (x.ndim - 1)])
        correct += int(np.sum(guess(padded)[: len(part)] == y[start : start + rows]))
    return 100 * correct / len(x)


def _fit_and_score(x: Array, targets: Array, test: Array) -> Array:
    """Return the scores [m, classes] of test features by ridge regression from x [n, D] to targets [n, classes]."""
    n = len(x)
    centre, offset = x.mean(axis=0), targets.mean(axis=0)
    x, targets = (x - centre).astype(np.float64), targets - offset
    values, axes = np.linalg.eigh(x @ x.T)  # [n, n]: drawn images are few, features may be many
    values, rotated = np.maximum(values, 0), axes.T @ targets
    best, chosen = np.inf, 0.0
    for strength in _RIDGES * max(values.sum() / n, 1e-12):
        shrunk = values / (values + strength)
        leverage = (axes**2 * shrunk).sum(axis=1) + 1 / n  # 1 / n: the offset is fitted too
        error = np.sum(((targets - axes @ (shrunk[:, None] * rotated)) / np.maximum(1 - leverage, 1e-9)[:, None]) ** 2)
        if error < best:
            best, chosen = error, strength
    return (test - centre) @ (x.T @ (axes @ (rotated / (values + chosen)[:, None]))) + offset
