"""Scores of a classifier that is trained already, whoever trained it (`maejax train --eval-only`)."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
from rich.console import Console

from maejax.config import Config, with_flags
from maejax.data.agreement import agree
from maejax.data.form import form_for
from maejax.data.pipeline import check_readable
from maejax.data.sources import open_source
from maejax.errors import InputError, WeightsError
from maejax.models.classifier import ImageClassifier
from maejax.models.description import PLAIN, change_encoder
from maejax.storage import mirror
from maejax.storage.redact import redact
from maejax.tasks.accuracy import Accuracy
from maejax.tasks.checks import check_batch, check_least, precision
from maejax.tasks.configured import faults_allowed, run_directory
from maejax.tasks.transfer import match_classes
from maejax.training.mesh import make_mesh, put_same
from maejax.training.rundir import write_json
from maejax.weights.pretrained import fetch_pretrained
from maejax.weights.weights import Weights, model_of


def run(config: Config, console: Console) -> dict[str, Any]:
    """Score `--pretrained-ckpt` on the validation images, print the numbers and write them to evaluation.json.

    The model is the file's own, but for `--image-size`, to which its positions are interpolated.
    Raises InputError if the input is wrong.
    """
    data, path = config.data, config.run.pretrained_ckpt
    if config.run.mode == "pretrain":
        raise InputError("--eval-only scores classifiers: give --mode linear or finetune")
    for flag, value in (("--pretrained-ckpt", path), ("--valid-dataset-shards", data.valid_dataset_shards)):
        if not value:
            raise InputError(f"--eval-only needs {flag}")
    check_least(config)
    check_batch("--valid-batch-size", data.valid_batch_size, jax.device_count())
    mirror.check(config.run.output_dir)
    source = open_source(data.valid_dataset_shards, cache_dir=data.cache_dir)
    weights, said = read_whole(config)
    encoder = weights.config.encoder
    check_readable(source, agree(source, form_for(encoder, data)).channels)
    config = with_flags(config, channels=encoder.channels)
    normalisation = {name: values for name in ("mean", "std") if (values := getattr(data, name))}
    weights = replace(weights, config=change_encoder(weights.config, **normalisation))
    model = model_of(weights, replace(PLAIN, dtype=precision(config)))
    if not isinstance(model, ImageClassifier):
        raise InputError(f"--pretrained-ckpt {path} has no head; train one with --mode linear or finetune")
    match_classes(source, weights.classes, model.config.labels, data.valid_dataset_shards)
    mesh = make_mesh()
    evaluator = Accuracy(config, source, run_directory(config), mesh, faults_allowed(config))
    console.print(f"weights  {said or path}: {weights.writer}", highlight=False)
    for notice in weights.notices:
        console.print(f"note     {notice}", highlight=False)
    console.print(f"data     {len(source):,} images, {model.config.labels} classes", highlight=False)
    for problem in source.problems[:5]:
        console.print(f"data     {problem}", highlight=False, markup=False)
    with jax.set_mesh(mesh):
        scores = evaluator.score(jax.tree.map(lambda a: put_same(a, mesh), model))
    result = {
        "checkpoint": redact(path),
        "writer": weights.writer,
        "data": redact(data.valid_dataset_shards),
        "images": evaluator.images,
        "classes": model.config.labels,
        **scores,
    }
    if jax.process_index() == 0:
        directory = run_directory(config)
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "evaluation.json", result)
        mirror.publish_file(directory / "evaluation.json")
        console.print(
            f"top-1    {scores['val/acc1']:.3f} %, top-5 {scores['val/acc5']:.3f} %, loss {scores['val/loss']:.4f} "
            f"on {evaluator.images:,} images\nwritten  "
            f"{mirror.shown(directory / 'evaluation.json')}",
            highlight=False,
        )
    return result


def read_whole(config: Config) -> tuple[Weights, str]:
    """Read the model of --pretrained-ckpt; return it and a sentence on what was fetched.

    Attention heads are --heads if its width is --dim, or if the file lacks them and 64 does not divide its width.
    """
    fetch = partial(
        fetch_pretrained,
        config.run.pretrained_ckpt,
        config.image_shape,
        config.data.channels,
        config.data.cache_dir,
        config.transfer.channel_rule,
        prefix=config.transfer.prefix,
        pooling="avg" if config.encoder.pooling == "avg" else None,
    )
    try:
        weights, said = fetch()
    except WeightsError:  # perhaps since the file does not have the number of heads
        weights, said = fetch(heads=config.encoder.heads)
    found, flags = weights.config.encoder, config.encoder
    if found.dim == flags.dim and found.heads != flags.heads:
        weights, said = fetch(heads=flags.heads)
    return weights, said
