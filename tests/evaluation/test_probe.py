import numpy as np
import pytest
from scipy.optimize import minimize

from maejax.evaluation import probe
from maejax.evaluation.probe import _solutions, few_label_probe, linear_probe


def clusters(n, spread, dimensions=20, seed=0):
    """Three Gaussian clusters: train features and labels, then as many for the test."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, dimensions))
    y = np.arange(2 * n) % 3
    x = centres[y] + spread * rng.normal(size=(2 * n, dimensions))
    labels = np.array([10, 20, 30])[y]
    return x[:n], labels[:n], x[n:], labels[n:]


@pytest.fixture(scope="module")
def hard():
    return clusters(300, spread=2.5)


def test_separable_classes_are_separated():
    data = clusters(150, spread=0.2)
    assert linear_probe(*data) == 100
    assert few_label_probe(*data, labels=9, draws=3) == (100, 0)


def test_scale_and_offset_of_a_feature_do_not_matter(hard):
    train_x, train_y, test_x, test_y = hard
    factor, offset = 10.0 ** np.linspace(-3, 3, 20), np.linspace(-1, 1, 20)
    moved = train_x * factor + offset, train_y, test_x * factor + offset, test_y
    assert linear_probe(*moved) == pytest.approx(linear_probe(*hard), abs=0.4)
    assert few_label_probe(*moved, labels=30, draws=2) == pytest.approx(
        few_label_probe(*hard, labels=30, draws=2), abs=0.4
    )


def test_constant_features_are_harmless(hard):
    train_x, train_y, test_x, test_y = hard
    wider = np.pad(train_x, [(0, 0), (0, 1)], constant_values=3), train_y, np.pad(test_x, [(0, 0), (0, 1)]), test_y
    assert linear_probe(*wider) == pytest.approx(linear_probe(*hard), abs=0.4)


def test_weak_features_among_many_need_the_penalty(hard):
    train_x, train_y, test_x, test_y = clusters(120, spread=2.5, dimensions=100)
    x = (train_x - train_x.mean(axis=0)) / train_x.std(axis=0)
    weights, bias = next(_solutions(x.astype(np.float32), train_y // 10 - 1, 3, [1e-6]))
    test = (test_x - train_x.mean(axis=0)) / train_x.std(axis=0)
    unpenalised = 100 * np.mean(np.argmax(test @ weights + bias, axis=1) == test_y // 10 - 1)
    assert linear_probe(train_x, train_y, test_x, test_y) > unpenalised + 2


def test_the_test_labels_decide_nothing(hard):
    """Right answers and wrong answers share the test set: if labels chose anything, the two would not add up."""
    train_x, train_y, test_x, test_y = hard
    right = linear_probe(*hard)
    shares = [linear_probe(train_x, train_y, test_x, np.full_like(test_y, label)) for label in (10, 20, 30)]
    assert sum(shares) == pytest.approx(100)
    parts = [linear_probe(train_x, train_y, test_x[k::2], test_y[k::2]) for k in (0, 1)]
    assert np.mean(parts) == pytest.approx(right)


@pytest.mark.parametrize("n", [12, 90])  # fewer and more images than features
def test_the_minimum_is_found(n):
    x, labels, _, _ = clusters(n, spread=1.0)
    x, y, l2 = x.astype(np.float32), labels // 10 - 1, 0.03

    def plain(w):
        w = w.reshape(21, 3)
        logits = x @ w[:-1] + w[-1]
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -logs[np.arange(n), y].mean() + l2 / 2 * np.sum(w[:-1] ** 2)

    weights, bias = list(_solutions(x, y, 3, [1.0, l2], 1e-6))[1]
    best = minimize(plain, np.zeros(63), method="L-BFGS-B", options={"maxfun": 10**5}).fun
    assert plain(np.append(weights, bias[None], axis=0)) == pytest.approx(best, rel=1e-4)


def test_few_labels_are_few_balanced_and_drawn_by_the_seed(hard):
    assert few_label_probe(*hard, labels=30, draws=3, seed=1) == few_label_probe(*hard, labels=30, draws=3, seed=1)
    few, spread = few_label_probe(*hard, labels=9, draws=8)
    assert spread > 0
    assert few < few_label_probe(*hard, labels=300, draws=1)[0]
    with pytest.raises(ValueError, match="400 labels are 133 for each of 3 classes; one class has 100"):
        few_label_probe(*hard, labels=400)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes"):
        linear_probe(np.ones((9, 2)), np.zeros(9), np.ones((1, 2)), np.zeros(1))


@pytest.mark.parametrize(("many", "folds"), [(5000, 5), (30, 1)])
def test_each_image_of_a_small_set_is_held_out_once(monkeypatch, many, folds):
    """From `MANY` images on, one fold alone decides; the last fit is on all images."""
    train_x, train_y = np.arange(40.0).reshape(40, 1), np.arange(40) // 20
    fitted, solve = [], probe._solutions
    monkeypatch.setattr(probe, "MANY", many)
    monkeypatch.setattr(probe, "standardise", lambda train, test: (train, test))
    monkeypatch.setattr(probe, "_solutions", lambda x, *rest: fitted.append(set(x[:, 0])) or solve(x, *rest))
    linear_probe(train_x, train_y, train_x, train_y)
    held = [set(range(40)) - rows for rows in fitted]
    assert [len(rows) for rows in held] == [8] * folds + [0]
    assert len(set.union(*held)) == 8 * folds
