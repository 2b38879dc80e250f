import numpy as np
import pytest

from maejax.evaluation.attentive import RECIPE, attentive_probe
from maejax.evaluation.probe import _RIDGES, _fit_and_score, few_shot

from ..bounds import assert_close


def test_ridge_is_that_of_the_best_left_out_error():
    rng = np.random.default_rng(0)
    x, targets, test = rng.normal(size=(9, 4)), rng.normal(size=(9, 2)), rng.normal(size=(5, 4))

    def ridge(x, targets, test, strength):
        centre, offset = x.mean(axis=0), targets.mean(axis=0)
        centred = x - centre
        gram = centred.T @ centred + strength * np.eye(4)
        return (test - centre) @ np.linalg.solve(gram, centred.T @ (targets - offset)) + offset

    scale = ((x - x.mean(axis=0)) ** 2).sum() / 9
    errors = []
    for strength in _RIDGES * scale:
        kept = [np.arange(9) != i for i in range(9)]
        left_out = [ridge(x[k], targets[k], x[~k], strength) - targets[~k] for k in kept]
        errors.append(np.sum(np.square(left_out)))
    expected = ridge(x, targets, test, scale * _RIDGES[int(np.argmin(errors))])
    assert_close(_fit_and_score(x, targets, test), expected, 1e-8)  # in float64


def test_shots_and_draws_count():
    rng = np.random.default_rng(0)
    y = np.repeat([3, 5, 9], 40)
    x = np.eye(3)[np.repeat([0, 1, 2], 40)] @ rng.normal(size=(3, 6)) + 0.8 * rng.normal(size=(120, 6))
    one, ten = (few_shot(x[::2], y[::2], x[1::2], y[1::2], shots, draws=8) for shots in (1, 10))
    assert 50 < one[0] < ten[0] < 100 and one[1] > ten[1] > 0
    with pytest.raises(ValueError, match="one class has 20"):
        few_shot(x[::2], y[::2], x[1::2], y[1::2], 21)


def test_the_attentive_probe_finds_what_one_token_says_and_the_mean_hides():
    rng = np.random.default_rng(0)
    n, tokens, dim = 400, 9, 16
    x = rng.normal(size=(n, tokens, dim)).astype(np.float32)
    y, place = rng.integers(0, 2, n), rng.integers(0, tokens, n)
    for i in range(n):  # the first channel marks the token, the sign of the next says the class
        x[i, place[i], :2] = 8, 8 * (2 * y[i] - 1)
    x -= x.mean(axis=1, keepdims=True)  # nothing is left in the mean
    found = attentive_probe(x[:300], y[:300], x[300:], y[300:], heads=2)
    assert found > 90, found
    few = attentive_probe(x[:140], y[:140], x[300:], y[300:], heads=2, recipe=RECIPE._replace(epochs=1))
    assert few > 90, f"a small set gets few updates: {few}"
    with pytest.raises(ValueError, match="3 heads do not divide"):
        attentive_probe(x[:300], y[:300], x[300:], y[300:], heads=3)
