"""Every way to judge a frozen encoder on labelled images, by name, with the untrained encoder as control."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maejax.data.augment import build_eval
from maejax.data.pipeline import Batch, Loader
from maejax.data.sources import Source
from maejax.errors import InputError
from maejax.evaluate.attentive import attentive_probe
from maejax.evaluate.encoding import Pool, stream
from maejax.evaluate.fewshot import few_shot
from maejax.evaluate.knn import knn_accuracy
from maejax.evaluate.probe import linear_probe
from maejax.models.build import initial_model
from maejax.models.vit import VisionTransformer, pooled

PROTOCOLS = ("knn", "fewshot", "linear", "attentive")
NEIGHBOURS = (10, 20, 100, 200)  # as DINO
SHOTS = (1, 5, 10, 25)
DRAWS = 10
MEASURES = {
    **{f"knn_{k}": f"{k}-NN" for k in NEIGHBOURS},
    **{f"fewshot_{n}": f"{n} shot{'s' * (n > 1)}" for n in SHOTS},
    "linear": "linear",
    "attentive": "attentive",
}

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Judged:
    """Labelled images to train the judges on and to test them with; labels count `classes`, or are just numbers."""

    train: Source
    test: Source
    classes: tuple[str, ...]


def pair(train: Source, test: Source) -> Judged:
    """Check that two sources have labels of the same classes, and number those of `test` as `train` does.

    Raises:
        InputError: a source has no labels, there are fewer than two classes, or `test` has a class that `train` lacks.

    """
    for name, source in (("--train-dataset-shards", train), ("--valid-dataset-shards", test)):
        if (source.labels < 0).all():
            raise InputError(
                f"{name}: no image has a label; use class folders, .cls members or a label file (--labels)"
            )
    if train.classes and test.classes and train.classes != test.classes:
        number = {name: i for i, name in enumerate(train.classes)}
        extra = sorted(set(test.classes) - number.keys())
        if extra:
            raise InputError(
                f"--valid-dataset-shards has classes that --train-dataset-shards lacks: {', '.join(extra[:5])}"
            )
        table = np.array([number[name] for name in test.classes], np.int32)
        test.labels = np.where(test.labels < 0, test.labels, table[test.labels]).astype(np.int32)
    found = np.unique(train.labels[train.labels >= 0])
    if len(found) < 2:
        raise InputError("--train-dataset-shards has images of one class only; a judge needs at least two")
    return Judged(train, test, train.classes)


def untrained_like(encoder: VisionTransformer, seed: int = 0) -> VisionTransformer:
    """Build the same encoder with fresh weights; fixed positions are those of `encoder`."""
    fresh = initial_model(encoder.config, encoder.compute, seed)
    if encoder.config.posemb == "sincos2d":
        fresh.positions = encoder.positions
    return fresh


def score(
    encoder: VisionTransformer,
    data: Judged,
    protocols: Sequence[str],
    *,
    pool: Pool = "cls+mean",
    crop_ratio: float = 0.875,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    tell: Tell = lambda _: None,
) -> dict[str, float]:
    """Judge an encoder by each protocol; returns accuracies in percent by the names in `MEASURES`.

    Few-shot scores have a `_std` beside them, the spread over draws; shots that the smallest class cannot give, and
    numbers of neighbours beyond that of training images, are left out. Images without a label, or that cannot be read,
    take no part. Tokens for the attentive probe lie in a temporary file, half-precision.
    """
    scores: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="maejax-tokens-") as folder:
        sides = []
        for name, source in (("training", data.train), ("test", data.test)):
            tell(f"encoding {len(source):,} {name} images")
            tokens = Path(folder, f"{name}.npy") if "attentive" in protocols else None
            sides.append(_encode(encoder, source, pool, crop_ratio, batch_size, workers, tokens))
        (train_x, train_y, train_tokens), (test_x, test_y, test_tokens) = sides
        if "knn" in protocols:
            tell("nearest neighbours")
            for k in [k for k in NEIGHBOURS if k <= len(train_x)]:
                scores[f"knn_{k}"] = knn_accuracy(train_x, train_y, test_x, test_y, k=k)
        if "fewshot" in protocols:
            tell(f"few labels, {DRAWS} draws")
            smallest = int(np.unique(train_y, return_counts=True)[1].min())
            for n in [n for n in SHOTS if n <= smallest]:
                mean, spread = few_shot(train_x, train_y, test_x, test_y, n, DRAWS, seed)
                scores |= {f"fewshot_{n}": mean, f"fewshot_{n}_std": spread}
        if "linear" in protocols:
            tell("linear probe")
            scores["linear"] = linear_probe(train_x, train_y, test_x, test_y, seed=seed)
        if "attentive" in protocols:
            tell("attentive probe")
            assert train_tokens is not None and test_tokens is not None
            heads = encoder.config.heads
            scores["attentive"] = attentive_probe(train_tokens, train_y, test_tokens, test_y, heads=heads, seed=seed)
            del train_tokens, test_tokens, sides  # before their files go
    return {measure: round(float(value), 2) for measure, value in scores.items()}


def _encode(
    encoder: VisionTransformer,
    source: Source,
    pool: Pool,
    crop_ratio: float,
    batch_size: int,
    workers: int,
    tokens_path: Path | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Encode the labelled images of a source: pooled features, labels and, mapped into memory, all tokens."""
    config = encoder.config
    loader = Loader(
        source,
        build_eval(config.image_size, crop_ratio),
        batch_size=batch_size,
        channels=config.channels,
        size=config.image_size,
        shuffle=False,
        workers=workers,
    )
    batches: list[Batch] = []

    def images() -> Iterator[np.ndarray]:
        for batch in loader.iterate():
            batches.append(batch)
            yield batch.images

    features, labels, stored, done = [], [], None, 0
    if tokens_path is not None:
        shape = (len(source), 1 + config.patches, config.dim)
        stored = np.lib.format.open_memmap(tokens_path, mode="w+", dtype=np.float16, shape=shape)
    for rows in stream(encoder, images(), batch_size, pool if stored is None else None):
        batch = batches.pop(0)
        used = batch.valid & (batch.labels >= 0)
        if stored is not None:
            stored[done : done + used.sum()] = rows[used]
            rows = np.asarray(pooled(rows, pool))
        features.append(rows[used])
        labels.append(batch.labels[used])
        done += int(used.sum())
    return np.concatenate(features), np.concatenate(labels), None if stored is None else stored[:done]
