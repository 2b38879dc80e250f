"""Single images behind a score, as parts of a page."""

from collections.abc import Sequence
from html import escape

import numpy as np

from maejax.evaluation.closeup import Closeup, Example
from maejax.pages.frames import as_urls
from maejax.pages.page import section, table

_SIDE = 160  # pixels of a picture
_MATRIX = 24  # classes up to which all of them fit into a matrix
_WORST = 20  # pairs of classes that are listed otherwise
_COLOURS = 10  # of the page
_WIDTH, _HEIGHT, _MARGIN = 960, 560, 16


def closeup_parts(closeup: Closeup, classes: Sequence[str]) -> list[str]:
    """Return confusion, mistakes, neighbours and the map of features as sections."""
    names = [classes[i] if i < len(classes) else str(i) for i in range(len(closeup.confusion))]
    confused = _matrix(closeup.confusion, names) if len(names) <= _MATRIX else _pairs(closeup.confusion, names)
    mistakes = _rows(closeup.mistakes, names) if closeup.mistakes else "<p>There is none.</p>"
    about = '<p class="quiet">{}</p>'
    judged = "Every test image by a vote of its 20 nearest training images: rows are its class, columns the vote."
    nearest = "Left: a test image, its class, and the vote. Right: the training images whose features are nearest."
    drawn = _map(closeup, names) if closeup.places is not None else f"<p>{escape(closeup.no_map)}</p>"
    return [
        section("Confusion", about.format(judged) + confused),
        section("Worst mistakes", about.format("Where the vote was surest and wrong. " + nearest) + mistakes),
        section("Nearest neighbours", about.format(f"Some test images. {nearest}") + _rows(closeup.examples, names)),
        section("Map of the features", drawn),
    ]


def _matrix(confusion: np.ndarray, names: Sequence[str]) -> str:
    totals = np.maximum(confusion.sum(axis=1), 1)
    head = "".join(f"<th><div>{escape(name)}</div></th>" for name in names)
    lines = []
    for name, row, total in zip(names, confusion, totals, strict=True):
        cells = "".join(
            f'<td style="--share:{n / total:.3f}"{" class=dense" * int(n > 0.6 * total)}>{n or ""}</td>' for n in row
        )
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    body = "\n".join(lines)
    inside = f"<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="wide"><table class="confusion">{inside}</table></div>'


def _pairs(confusion: np.ndarray, names: Sequence[str]) -> str:
    off = confusion * (1 - np.eye(len(confusion), dtype=int))
    worst = [divmod(int(i), len(off)) for i in np.argsort(-off, axis=None, kind="stable")[:_WORST]]
    rows = [
        f"<tr><td>{escape(names[a])}</td><td>{escape(names[b])}</td>"
        f"<td>{off[a, b]:,} of {confusion[a].sum():,}</td></tr>"
        for a, b in worst
        if off[a, b]
    ]
    return f'<div class="words">{table(("class", "taken for", "images"), rows)}</div>'


def _rows(examples: Sequence[Example], names: Sequence[str]) -> str:
    rows = []
    for example in examples:
        kind = "right" if example.guess == example.label else "wrong"
        vote = f'vote: <span class="{kind}">{escape(names[example.guess])}</span>, {example.share:.0%}'
        tiles = [_tile(example.picture, f"<b>{escape(names[example.label])}</b><br>{vote}", " query")]
        for picture, label in zip(example.near, example.near_labels.tolist(), strict=True):
            kind = "right" if label == example.label else "wrong"
            tiles.append(_tile(picture, f'<span class="{kind}">{escape(names[int(label)])}</span>'))
        rows.append(f'<div class="row">{"".join(tiles)}</div>')
    small = " small" * bool(examples and min(examples[0].picture.shape[:2]) < 100)
    return f'<div class="rows{small}">{"".join(rows)}</div>'


def _tile(picture: np.ndarray, caption: str, kind: str = "") -> str:
    (url,) = as_urls(picture[None], _SIDE)
    return f'<figure class="tile{kind}"><img src="{url}" alt="">{caption}</figure>'


def _map(closeup: Closeup, names: Sequence[str]) -> str:
    """Return a scatter chart; of many classes the largest have colours of their own, all others are grey."""
    places, labels = np.asarray(closeup.places, float), closeup.place_labels
    low, high = places.min(axis=0), places.max(axis=0)
    spots = _MARGIN + (places - low) / np.maximum(high - low, 1e-9) * [_WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN]
    largest = sorted(np.argsort(-np.bincount(labels, minlength=len(names)), kind="stable")[:_COLOURS])
    groups, keys = [], []
    for label in np.unique(labels).tolist():
        colour = f"line-{largest.index(label)}" if label in largest else "other"
        dots = "".join(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4"/>' for x, y in spots[labels == label])
        groups.append(f'<g class="{colour}"><title>{escape(names[int(label)])}</title>{dots}</g>')
        if label in largest:
            keys.append(f'<span class="key {colour}"><i></i>{escape(names[int(label)])}</span>')
    note = f"UMAP of the features of {len(labels):,} test images: what is near looks alike to the encoder. "
    note += "Axes and distances between far groups mean nothing. Under a pointer a dot shows its class."
    svg = f'<svg class="map" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{note}">{"".join(groups)}</svg>'
    return f'<p class="quiet">{note}</p><figure class="chart"><figcaption>{"".join(keys)}</figcaption>{svg}</figure>'
