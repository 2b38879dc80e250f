"""Every way to evaluate a frozen encoder on labelled images, by name, with the untrained encoder as control."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maejax.data.form import Form
from maejax.data.pieces import Pieces
from maejax.evaluation.attention_map import PICTURES, AttentionMaps
from maejax.evaluation.attentive import attentive_probe
from maejax.evaluation.closeup import Closeup, look_closely
from maejax.evaluation.efficient import attend, efficient_probe
from maejax.evaluation.knn import knn_accuracy
from maejax.evaluation.labelled import NAMES, EvalSplits, encode_labelled, number, read_rows
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

    `accuracies` are in percent by the names in `MEASURES`. `images` are the numbers that counted, "train" and "test",
    and `unreadable` those with a label that could not be read. `classes` names the labels, or is empty. `attention` is
    that of the efficient probe on a few test images, None without it, and `closeup` what lies behind the scores, None
    where nobody asked for it.
    """

    accuracies: dict[str, float]
    images: dict[str, int]
    unreadable: dict[str, int]
    classes: tuple[str, ...]
    attention: AttentionMaps | None
    closeup: Closeup | None


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
    form: Form | None = None,
    **reading: Any,
) -> Scored:
    """Evaluate an encoder by each protocol.

    Few-shot scores have a companion `NAME_std`, the standard deviation over draws. Shots are left out if the smallest
    class has fewer images, numbers of neighbours if there are fewer training images. Images that have no label or
    cannot be read are left out. `log` receives a line before each stage. `reading` is as of `encode_source`. With
    `closely` single images are looked at too. `form` is what pieces are read as; shards of theirs are fetched again for
    pictures.
    """
    scores: dict[str, float] = {}
    attention = None
    with tempfile.TemporaryDirectory(prefix="maejax-tokens-") as folder:
        sides, classes = [], splits.classes
        apart = isinstance(splits.train, Pieces) or isinstance(splits.test, Pieces)
        for name, flag, images in zip(("training", "test"), NAMES, splits[:2], strict=True):
            count = "" if images.total is None else f"{images.total:,} "
            log(f"encoding {count}{name} images")
            tokens_path = Path(folder, name) if _ON_TOKENS & set(protocols) else None
            sides.append(
                encode_labelled(encoder, images, form or Form(), flag, pool, tokens_path, reading, log, named=apart)
            )
        train, test = sides
        if apart:
            train, test, classes = number(train, test)
        train_x, train_y, train_tokens = train.features, train.labels, train.tokens
        test_x, test_y, test_tokens = test.features, test.labels, test.tokens
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
            shown = np.unique(np.linspace(0, len(test_x) - 1, PICTURES).astype(int))
            maps = attend(queries, patches[shown].astype(np.float32))
            attention = AttentionMaps(read_rows(test, shown, encoder, reading), np.asarray(maps))
            del train_patches, patches
        train, test = (side._replace(tokens=None) for side in (train, test))
        del train_tokens, test_tokens, sides  # unmap the files before their folder is removed
    closeup = None
    if closely:
        log("looking at single images")
        closeup = look_closely(encoder, train, test, seed, reading)
    used = {"train": len(train_y), "test": len(test_y)}
    unreadable = {"train": train.unreadable, "test": test.unreadable}
    rounded = {measure: round(float(value), 2) for measure, value in scores.items()}
    return Scored(rounded, used, unreadable, classes, attention, closeup)
