"""The numbers of any classifier on labelled images, imported ones too (`maejax train --eval-only`)."""

from functools import partial
from typing import Any

import jax
import numpy as np
from rich.console import Console

from maejax.config import Config, ConfigError
from maejax.data.pipeline import check_readable
from maejax.data.shards import open_source
from maejax.evaluate.protocols import renumber
from maejax.interop import files
from maejax.interop.pretrained import load_encoder_arrays, local
from maejax.interop.run import locate, model_of
from maejax.interop.weights import Weights, WeightsError
from maejax.tasks.accuracy import Accuracy
from maejax.tasks.flags import check_batch, precision
from maejax.tasks.training import run_directory
from maejax.training.errors import RunError
from maejax.training.mesh import make_mesh, put_same
from maejax.training.rundir import read_config, write_json


def run(config: Config, console: Console) -> dict[str, Any]:
    """Measure a classifier, print its numbers and write them to `evaluation.json`; returns what that holds.

    The model is the file's; of the flags only --image-size counts (positions are interpolated), and --heads where
    neither the file nor a head size of 64 tells them. Classes with names are matched by name where the file is a run.

    Raises:
        ConfigError, DataError, RunError: the input is wrong.

    """
    if not config.run.pretrained_ckpt or not config.data.valid_dataset_shards:
        raise ConfigError("--eval-only needs --pretrained-ckpt, a classifier, and --valid-dataset-shards, its images")
    check_batch("--valid-batch-size", config.data.valid_batch_size, 1, config)
    source = open_source(config.data.valid_dataset_shards, cache_dir=config.data.cache_dir)
    check_readable(source, config.data.channels)
    weights, said = read_classifier(config)
    labels = weights.arguments["labels"]
    renumber(source, classes_of(config.run.pretrained_ckpt), config.run.pretrained_ckpt)
    if (source.labels < 0).all() or source.labels.max() >= labels:
        found = "no image with a label" if (source.labels < 0).all() else f"the label {source.labels.max()}"
        raise ConfigError(f"--valid-dataset-shards has {found}; the classifier has {labels} classes, from 0")
    directory, mesh = run_directory(config), make_mesh()
    model = jax.tree.map(partial(_on, mesh), model_of(weights))
    if said:
        console.print(said, highlight=False, soft_wrap=True)
    with jax.set_mesh(mesh):
        accuracy = Accuracy(config, source, config.image_shape, mesh)
        found = accuracy.measure(model)
    result = {
        "checkpoint": config.run.pretrained_ckpt, "writer": weights.writer, "images": found.images, "classes": labels,
        "unreadable": len(accuracy.loader.bad), "image_size": list(config.image_shape), "acc1": found.top1,
        "acc5": found.top5, "loss": found.loss,
    }  # fmt: skip
    console.print(
        f"top-1 {found.top1:.3f} %, top-5 {found.top5:.3f} %, loss {found.loss:.4f} on {found.images:,} images of "
        f"{labels} classes", highlight=False,
    )  # fmt: skip
    if jax.process_index() == 0:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_json(directory / "evaluation.json", result)
        except OSError as error:
            raise RunError(f"{directory} cannot be written ({error.strerror}); choose another --output-dir") from None
        console.print(f"written to {directory / 'evaluation.json'}", highlight=False)
    return result


def _on(mesh, array: jax.Array) -> jax.Array:
    return put_same(np.asarray(array), mesh)


def read_classifier(config: Config) -> tuple[Weights, str]:
    """Read the classifier --pretrained-ckpt, its positions interpolated to --image-size, and say what was fetched.

    Raises:
        WeightsError: it is no classifier, or takes images of other channels.

    """
    path = config.run.pretrained_ckpt
    here, said = local(path, config.data.cache_dir)
    try:
        weights = files.read(here)
    except WeightsError:  # perhaps as nothing tells the heads
        weights = files.read(here, heads=config.encoder.heads)
    told = weights.arguments
    if "labels" not in told:
        raise WeightsError(f"{path} has no classifier's head; train one by --mode linear or --mode finetune")
    if told["channels"] != config.data.channels:
        raise WeightsError(f"{path} takes images of {told['channels']} channels: give --channels {told['channels']}")
    # The flags know better than a guess where they are about a model of this width.
    heads = config.encoder.heads if told["dim"] == config.encoder.dim else told["heads"]
    arrays, arguments = load_encoder_arrays(str(here), image_size=config.image_shape, heads=heads)
    arguments |= {"dtype": precision(config)}
    return Weights(arrays, arguments, weights.layout, weights.writer, weights.notices), said


def classes_of(path: str) -> tuple[str, ...]:
    """Give the names of the classes of a run, () for other files."""
    try:
        found = read_config(locate(path)[0])
    except RunError:
        return ()
    return tuple(found["classes"]) if found else ()
