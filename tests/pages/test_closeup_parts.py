"""The part of a report on single images: right counts, right pictures, names that cannot break the page."""

import sys

import numpy as np
import pytest

from maejax.evaluation.closeup import Closeup, Example, draw_map
from maejax.evaluation.knn import vote
from maejax.pages.closeup_parts import closeup_parts

from .test_report import Page


def closeup(classes):
    picture, near = np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 1), np.uint8)
    example = Example(picture, 0, 1, 0.875, near, np.array([1, 0]))
    confusion = np.eye(classes, dtype=int) * 5
    confusion[0, 1] = 3
    places = np.random.default_rng(0).random((40, 2))
    return Closeup(confusion, [example], [example], places, np.arange(40) % classes, "")


@pytest.mark.parametrize("classes", [3, 30])
def test_all_parts_of_a_closeup(classes):
    page = Page()
    page.feed("".join(closeup_parts(closeup(classes), [f"<class {i}>" for i in range(classes)])))
    assert page.open == [] and page.tags.count("circle") == 40
    assert "vote: <class 1>, 88%" in page.text and "UMAP of the features of 40 test images" in page.text
    assert ("3 of 8" in page.text) == (classes == 30)


def test_a_vote_says_how_sure_it_is_and_who_is_near():
    train, labels = np.array([[1.0, 0], [0.9, 0.1], [0, 1]]), np.array([4, 4, 7])
    votes = vote(train, labels, np.array([[1.0, 0.05], [0, 1]]), np.array([4, 4]), k=3)
    assert votes.guess.tolist() == [4, 7] and votes.nearest[:, 0].tolist() == [0, 2]
    assert 0.99 < votes.share[0] < 1 and votes.share[1] > 0.99


def test_without_umap_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    places, why = draw_map(np.zeros((30, 2)), 0)
    assert places is None and "pip install 'maejax[plots]'" in why
