import numpy as np
import pytest

from maejax.evaluation import knn
from maejax.evaluation.knn import knn_accuracy, leave_one_out


def at(*degrees):
    angle = np.deg2rad(np.array(degrees, float))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_votes_are_weighted_by_similarity():
    # Seen from 0 degrees: class 7 once at 10 degrees, class 3 twice at 30. At temperature .07 the votes are
    # exp(.985/.07) = 1.29e6 against 2 exp(.866/.07) = 4.7e5, at temperature 1 they are 2.68 against 4.75.
    train, labels = at(10, 30, -30, 180), np.array([7, 3, 3, 7])
    assert knn_accuracy(train, labels, at(0), np.array([7]), k=3, temperature=0.07) == 100
    assert knn_accuracy(train, labels, at(0), np.array([3]), k=3, temperature=1) == 100
    assert knn_accuracy(train, labels, at(0), np.array([7]), k=1, temperature=1) == 100


def test_only_directions_count_and_fewer_neighbours_than_k_are_enough():
    train, labels = at(0, 90) * [[100], [0.01]], np.array([0, 1])
    assert knn_accuracy(train, labels, at(20, 80, 50, 40), np.array([0, 1, 1, 1])) == 75


def test_ties_go_to_the_smaller_label_and_low_temperatures_do_not_overflow():
    assert knn_accuracy(at(0, 0), np.array([5, 2]), at(0), np.array([2]), k=2, temperature=1e-4) == 100
    assert knn_accuracy(at(0, 0), np.array([5, 2]), at(0), np.array([5]), k=1) == 100  # the earlier neighbour


def test_chunks_do_not_change_the_answer(monkeypatch):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(60, 5)), rng.integers(0, 3, 60), rng.normal(size=(23, 5)), rng.integers(0, 3, 23)
    whole = knn_accuracy(*data)
    assert 0 < whole < 100
    monkeypatch.setattr(knn, "_SIMILARITIES", 600)
    assert knn_accuracy(*data) == whole


def test_labels_must_match_features():
    with pytest.raises(ValueError, match="train 2 and 1"):
        knn_accuracy(at(0, 1), np.array([0]), at(0), np.array([0]))


def test_no_feature_votes_for_itself():
    x, y = at(0, 5, 90, 95, 100), np.array([0, 0, 1, 0, 1])
    assert leave_one_out(x, y, k=1) == 40  # the two pairs of one label; 90 and 100 are next to 95, it to either
    assert leave_one_out(x, y, k=9) == np.mean(
        [knn_accuracy(np.delete(x, i, 0), np.delete(y, i), x[i : i + 1], y[i : i + 1]) for i in range(5)]
    )
    with pytest.raises(ValueError, match="no neighbour"):
        leave_one_out(x[:1], y[:1])
