import io
from copy import deepcopy

import pytest
from rich.console import Console

from maejax.evaluation.scores import explain, score_table

SCORES = {
    "pretrained": {"knn": 83.7, "linear": 86.7, "linear_100": 75.0, "linear_100_std": 1.2},
    "untrained": {"knn": 70.0, "linear": 78.5, "linear_100": 53.0, "linear_100_std": 2.8},
    "pixels": {"knn": 83.0, "linear": 85.3, "linear_100": 69.0, "linear_100_std": 1.1},
}


def changed(kind, **values):
    scores = deepcopy(SCORES)
    scores[kind].update(values)
    return scores


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (
            SCORES,
            ["not on every count", "level with them in kNN (+0.7)", "linear (+1.4) and linear with 100 labels (+6.0)"],
        ),
        (changed("pixels", knn=80.0), ["helped on every count", "kNN (+3.7)"]),
        (
            changed("pixels", knn=90.0, linear=90.0, linear_100=90.0),
            ["raw pixels do better", "behind raw pixels in kNN (-6.3)"],
        ),
        (
            changed("pixels", knn=83.0, linear=87.0, linear_100=75.0),
            ["raw pixels do as well", "level with raw pixels in kNN (+0.7), linear (-0.3)"],
        ),
        (changed("untrained", knn=90.0, linear=90.0), ["did not help", "linear with 100 labels (+22.0)"]),
        (
            changed("pretrained", knn=60.0, linear=70.0, linear_100=50.0),
            ["did not help", "behind the untrained one in kNN (-10.0)"],
        ),
    ],
)
def test_the_sentence_follows_the_numbers(scores, words):
    sentence = explain(scores)
    for word in words:
        assert word in sentence
    assert sentence.count(". ") == 0


def test_the_terminal_table_shows_every_score():
    console = Console(file=io.StringIO(), width=100)
    console.print(score_table(SCORES))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for text in ("83.7", "86.7", "75.0 ± 1.2", "70.0", "53.0 ± 2.8", "85.3", "raw pixels"):
        assert text in shown
