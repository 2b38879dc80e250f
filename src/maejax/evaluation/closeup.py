"""Single images behind a score: confused classes, the worst mistakes, neighbours of images, a map of features."""

from typing import Any, NamedTuple

import numpy as np

from maejax.data.display import as_picture, limits_of, shown_bands
from maejax.evaluation.knn import Votes, vote
from maejax.evaluation.labelled import Side, read_rows
from maejax.models.vit import VisionTransformer

EXAMPLES = 6  # mistakes, and images whose neighbours are shown
NEAR = 6  # neighbours of each
MAPPED = 2000  # test images at most, evenly spread
_LEAST = 20  # images of which a map says something


class Example(NamedTuple):
    """A test image, its class, that of the vote with its share, and the nearest training images with their classes."""

    picture: np.ndarray
    label: int
    guess: int
    share: float
    near: np.ndarray
    near_labels: np.ndarray


class Closeup(NamedTuple):
    """Test images judged by a vote of the 20 nearest training images.

    `confusion` [C, C] counts them by their class (row) and that of the vote. `mistakes` are the surest ones. `places`
    [n, 2] is the map of the features with the classes `place_labels` [n], None with a sentence in `no_map`.
    """

    confusion: np.ndarray
    mistakes: list[Example]
    examples: list[Example]
    places: np.ndarray | None
    place_labels: np.ndarray
    no_map: str


def look_closely(encoder: VisionTransformer, train: Side, test: Side, seed: int, reading: dict[str, Any]) -> Closeup:
    """Judge single test images by their neighbours, and draw the map of the features by UMAP if it is installed."""
    votes = vote(train.features, train.labels, test.features, test.labels)
    classes = 1 + max(int(side.labels.max()) for side in (train, test))
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (test.labels, votes.guess), 1)
    wrong = np.flatnonzero(votes.guess != test.labels)
    wrong = wrong[np.argsort(-votes.share[wrong], kind="stable")][:EXAMPLES]
    shown = np.unique(np.linspace(0, len(test.labels) - 1, EXAMPLES).astype(int))
    mapped = np.unique(np.linspace(0, len(test.labels) - 1, min(MAPPED, len(test.labels))).astype(int))
    places, why = draw_map(test.features[mapped], seed)
    mistakes, others = (_examples(encoder, train, test, votes, rows, reading) for rows in (wrong, shown))
    return Closeup(confusion, mistakes, others, places, test.labels[mapped], why)


def draw_map(features: np.ndarray, seed: int) -> tuple[np.ndarray | None, str]:
    """Place features [n, D] in a plane by UMAP; without it or enough of them, return None and a sentence."""
    if len(features) < _LEAST:
        return None, f"A map of the features needs {_LEAST} test images."
    try:
        from umap import UMAP  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None, "A map of the features needs umap-learn: pip install 'maejax[plots]'."
    return UMAP(metric="cosine", random_state=seed, n_jobs=1).fit_transform(features), ""  # type: ignore[return-value]


def _examples(
    encoder: VisionTransformer, train: Side, test: Side, votes: Votes, rows: np.ndarray, reading: dict[str, Any]
) -> list[Example]:
    """Read test images by their rows, and the training images that are nearest to each."""
    if not len(rows):
        return []
    near = votes.nearest[rows, :NEAR]
    pictures = _pictures(encoder, test, rows, reading)
    close = _pictures(encoder, train, near.reshape(-1), reading).reshape(*near.shape, *pictures.shape[1:])
    return [
        Example(picture, int(test.labels[i]), int(votes.guess[i]), float(votes.share[i]), c, train.labels[n])
        for picture, i, c, n in zip(pictures, rows, close, near, strict=True)
    ]


def _pictures(encoder: VisionTransformer, side: Side, rows: np.ndarray, reading: dict[str, Any]) -> np.ndarray:
    """Read images of a side by their rows, as uint8 [n, H, W, 1 or 3]."""
    config = encoder.config
    images = read_rows(side, rows, encoder, reading)
    bands = shown_bands("", config.bands, config.channels)
    return as_picture(images, bands, limits_of(images, bands, config.no_data), config.no_data)
