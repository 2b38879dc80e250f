"""Every way to evaluate a frozen encoder on labelled images, by name, with the untrained encoder as control."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maejax.data.part import take
from maejax.data.sources import Source
from maejax.errors import InputError
from maejax.evaluation.attention_map import PICTURES, AttentionMaps
from maejax.evaluation.attentive import attentive_probe
from maejax.evaluation.closeup import Closeup, Side, look_closely
from maejax.evaluation.efficient import attend, efficient_probe
from maejax.evaluation.encoding import encode_source, read
from maejax.evaluation.knn import knn_accuracy
from maejax.evaluation.probe import few_shot, linear_probe
from maejax.models.build import initial_model
from maejax.models.pooling import Pool
from maejax.models.vit import VisionTransformer

PROTOCOLS = ("knn", "fewshot", "linear", "attentive", "efficient")
_ON_TOKENS = {"attentive", "efficient"}
NEIGHBOURS = (10, 20, 100, 200)  # as DINO
SHOTS = (1, 5, 10, 25)
DRAWS = 10
_KNN = {f"knn_{k}": f"{k}-NN" for k in NEIGHBOURS}
_FEWSHOT = {f"fewshot_{n}": f"{n} shot{'s' * (n > 1)}" for n in SHOTS}
MEASURES = {**_KNN, **_FEWSHOT, "linear": "linear", "attentive": "attentive", "efficient": "efficient"}


class Scored(NamedTuple):
    """The scores of an encoder.

    `accuracies` are in percent by the names in `MEASURES`, `images` the numbers that counted, "train" and "test".
    `attention` is that of the efficient probe on a few test images, None without it, and `closeup` what lies behind
    the scores, None where nobody asked for it.
    """

    accuracies: dict[str, float]
    images: dict[str, int]
    attention: AttentionMaps | None
    closeup: Closeup | None


class EvalSplits(NamedTuple):
    """Labelled images to train the evaluators on and to test them with. `classes` names the labels, or is empty."""

    train: Source
    test: Source
    classes: tuple[str, ...]


def pair(train: Source, test: Source) -> EvalSplits:
    """Number the classes of `test` as in `train`; raises InputError without labels or two classes, or for a new one."""
    extra = test.number_classes_as(train.classes)
    for name, source in (("--train-dataset-shards", train), ("--valid-dataset-shards", test)):
        if (source.labels < 0).all():
            remedy = "use class folders, .cls members or a label file (--labels)"
            raise InputError(f"{name}: no image has a label; {remedy}")
    if extra:
        names = ", ".join(extra[:5])
        raise InputError(f"--valid-dataset-shards has classes that --train-dataset-shards lacks: {names}")
    found = np.unique(train.labels[train.labels >= 0])
    if len(found) < 2:
        raise InputError("--train-dataset-shards has images of one class only; evaluation needs at least two")
    return EvalSplits(train, test, train.classes)


def untrained_like(encoder: VisionTransformer, seed: int = 0) -> VisionTransformer:
    """Build the same encoder with fresh weights; fixed positions are those of `encoder`."""
    fresh = initial_model(encoder.config, encoder.compute, seed)
    if encoder.config.posemb == "sincos2d":
        fresh.positions = encoder.positions
    return fresh


def score(
    encoder: VisionTransformer,
    splits: EvalSplits,
    protocols: Sequence[str],
    *,
    pool: Pool = "cls+mean",
    seed: int = 0,
    log: Callable[[str], None] = lambda _: None,
    closely: bool = False,
    **reading: Any,
) -> Scored:
    """Evaluate an encoder by each protocol.

    Few-shot scores have a companion `NAME_std`, the standard deviation over draws. Shots are left out if the smallest
    class has fewer images, numbers of neighbours if there are fewer training images. Images that have no label or
    cannot be read are left out. `log` receives a line before each stage. `reading` is as of `encode_source`. With
    `closely` single images are looked at too.
    """
    scores: dict[str, float] = {}
    attention = None
    with tempfile.TemporaryDirectory(prefix="maejax-tokens-") as folder:
        sides = []
        for name, source in (("training", splits.train), ("test", splits.test)):
            log(f"encoding {len(source):,} {name} images")
            tokens_path = Path(folder, f"{name}.npy") if _ON_TOKENS & set(protocols) else None
            sides.append(_encode(encoder, source, pool, tokens_path, reading))
        (train_x, train_y, train_tokens, _, _), (test_x, test_y, test_tokens, shown, _) = sides
        if "knn" in protocols:
            log("nearest neighbours")
            for k in [k for k in NEIGHBOURS if k <= len(train_x)]:
                scores[f"knn_{k}"] = knn_accuracy(train_x, train_y, test_x, test_y, k=k)
        if "fewshot" in protocols:
            log(f"few labels, {DRAWS} draws")
            smallest = int(np.unique(train_y, return_counts=True)[1].min())
            for n in [n for n in SHOTS if n <= smallest]:
                mean, spread = few_shot(train_x, train_y, test_x, test_y, n, DRAWS, seed)
                scores |= {f"fewshot_{n}": mean, f"fewshot_{n}_std": spread}
        if "linear" in protocols:
            log("linear probe")
            scores["linear"] = linear_probe(train_x, train_y, test_x, test_y, seed=seed)
        if "attentive" in protocols:
            log("attentive probe")
            assert train_tokens is not None and test_tokens is not None
            heads = encoder.config.heads
            scores["attentive"] = attentive_probe(train_tokens, train_y, test_tokens, test_y, heads=heads, seed=seed)
        if "efficient" in protocols:
            log("efficient probe")
            assert train_tokens is not None and test_tokens is not None
            train_patches, patches = (tokens[:, encoder.config.prefix :] for tokens in (train_tokens, test_tokens))
            scores["efficient"], queries = efficient_probe(train_patches, train_y, patches, test_y, seed=seed)
            if shown:
                maps = attend(queries, patches[list(shown)].astype(np.float32))
                attention = AttentionMaps(np.stack(list(shown.values())), np.asarray(maps))
            del train_patches, patches
        train, test = (
            Side(source, side.features, side.labels, side.rows)
            for source, side in zip((splits.train, splits.test), sides, strict=True)
        )
        del train_tokens, test_tokens, sides  # unmap the files before their folder is removed
    closeup = None
    if closely:
        log("looking at single images")
        closeup = look_closely(encoder, train, test, seed, reading)
    used = {"train": len(train_y), "test": len(test_y)}
    return Scored({measure: round(float(value), 2) for measure, value in scores.items()}, used, attention, closeup)


class _Encoded(NamedTuple):
    features: np.ndarray
    labels: np.ndarray
    tokens: np.ndarray | None
    shown: dict[int, np.ndarray]
    rows: np.ndarray


def _encode(
    encoder: VisionTransformer, source: Source, pool: Pool, tokens_path: Path | None, reading: dict[str, Any]
) -> _Encoded:
    """Return features and labels of a source's labelled images and, mapped into memory, all tokens in float16.

    `rows` are their numbers in the source. With tokens, also returns images to show, spread over the source, by their
    row in the features.
    """
    features, labels, rows, tokens, done = [], [], [], None, 0
    spread, shown = np.linspace(0, len(source) - 1, PICTURES).astype(int), {}
    if tokens_path is not None:
        shape = (len(source), encoder.config.prefix + encoder.patches, encoder.config.dim)
        tokens = np.lib.format.open_memmap(tokens_path, mode="w+", dtype=np.float16, shape=shape)
    for batch in encode_source(encoder, source, pool=pool if tokens is None else None, **reading):
        used = batch.valid & (batch.labels >= 0)
        found = batch.features[used]
        if tokens is not None:
            tokens[done : done + len(found)] = found
            found = np.asarray(encoder.pooled(found, pool))
        features.append(found)
        labels.append(batch.labels[used])
        rows.append(index := batch.index[used])
        shown |= {done + row: index[row] for row in np.flatnonzero(np.isin(index, spread))}
        done += len(found)
    images = read(take(source, np.array(list(shown.values()))), encoder, reading) if tokens is not None else ()
    shown = dict(zip(shown, images, strict=False))
    x, y, numbers = (np.concatenate(parts) for parts in (features, labels, rows))
    return _Encoded(x, y, None if tokens is None else tokens[:done], shown, numbers)
