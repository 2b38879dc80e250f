"""Linear probing and fine-tuning (He et al. 2022, section A.1): `maejax train --mode linear` and `--mode finetune`."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from maejax.config import Config, ConfigError
from maejax.data.augment import Transform, build_train
from maejax.data.pipeline import Batch
from maejax.data.policies import check_policy
from maejax.data.shards import Source
from maejax.data.stream import Stream
from maejax.interop.run import abstract_model, initial_model
from maejax.interop.transfer import NEW, Taken, load_for_classifier, read_mapping
from maejax.models.classifier import BATCH_NORM_EPS
from maejax.models.vit import normalize
from maejax.tasks.accuracy import AccuracyJudge
from maejax.tasks.classes import check_labels, count_classes
from maejax.tasks.diagnosis import first_bad_part, list_keys, write_batch
from maejax.tasks.flags import check_run_flags, encoder_arguments, refuse_ignored
from maejax.tasks.training import (
    Recipe,
    Rows,
    Trained,
    configured_optimizer,
    describe_run,
    open_sources,
    train,
    train_loader,
    with_weights,
)  # fmt: skip
from maejax.tasks.weights import export_original
from maejax.training.average import with_average
from maejax.training.classification import (
    classifier_losses,
    encode_features,
    is_encoder,
    observe_features,
    probe_losses,
)  # fmt: skip
from maejax.training.erasing import erase
from maejax.training.mesh import first_device, local_copy
from maejax.training.mixing import mix, soft_targets
from maejax.training.optim import DECAYED, FINETUNE_DECAYED, for_trained
from maejax.training.schedule import peak_rate, warmup_cosine
from maejax.training.state import TrainState, make_step
from maejax.training.trackers import check_installed

FROZEN = "a linear probe trains no encoder, which runs as in evaluation, and would ignore it"


class Pixels(NamedTuple):
    """Mean and standard deviation of every channel on the 0..1 scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def geometry(config: Config, labels: int) -> dict[str, Any]:
    """Collect the classifier's keyword arguments, as JSON can hold them; a probe has a BatchNorm before its head."""
    probe = {"head_norm": BATCH_NORM_EPS} if config.run.mode == "linear" else {}
    return {**encoder_arguments(config), "labels": labels, "pooling": config.encoder.pooling, **probe}


class Task(NamedTuple):
    """What a live task and one on cached features have in common."""

    train: Source | Stream
    valid: Source | None
    labels: int
    taken: Taken
    transform: Transform
    pixels: Pixels


def prepare(config: Config) -> Task:
    """Check the flags, open the data and read the weights.

    Raises:
        ConfigError, DataError, RunError: the input is wrong.

    """
    check_flags(config)
    check_installed(wandb=config.run.wandb, tensorboard=config.run.tensorboard)
    train_source, valid_source = open_sources(config)
    labels = count_classes(config.encoder.labels, train_source, valid_source)
    taken, augment = starting_point(config, geometry(config, labels)), config.augment
    pixels = Pixels(tuple(taken.arguments["mean"]), tuple(taken.arguments["std"]))
    transform = build_train(
        config.image_shape, augment.random_crop, (augment.crop_scale, 1.0), augment.color_jitter, flip=True,
        policy=augment.auto_augment, policy_mean=pixels.mean,
    )  # fmt: skip
    return Task(train_source, valid_source, labels, taken, transform, pixels)


def check_flags(config: Config) -> None:
    """Refuse flags that do not fit together or that the task would have to ignore.

    Raises:
        ConfigError, DataError: with the first flag that is wrong.

    """
    check_run_flags(config)
    optimization, augment = config.optimization, config.augment
    refuse_ignored(config, {"image_mask_ratio": 0}, "classifiers see all patches; leave it out")
    if config.run.mode == "finetune":
        refuse_ignored(config, {"cache_features": False}, "fine-tuning changes the encoder; choose --mode linear")
    if config.run.mode == "linear":
        frozen = {"dropout": 0, "droppath": 0, "lr_decay": 1, "finetune_blocks": "all"}
        refuse_ignored(config, frozen, FROZEN)
    if config.run.export_msgpack and config.encoder.pooling == "gap":
        raise ConfigError("--export-msgpack: the original's layout has no --pooling gap; leave it out")
    if not 0 <= optimization.ema < 1:
        raise ConfigError(f"--ema {optimization.ema}: give a decay from 0 (off) to below 1, such as .9999")
    if not 0 <= augment.label_smoothing < 1:
        raise ConfigError(f"--label-smoothing {augment.label_smoothing}: give a number from 0 to below 1")
    if augment.mixup < 0 or augment.cutmix < 0:
        raise ConfigError("--mixup and --cutmix are alphas: give 0 (off) or more")
    if config.transfer.label_mapping and not config.run.pretrained_ckpt:
        raise ConfigError("--label-mapping re-uses the head of --pretrained-ckpt, which is missing")
    if not 0 <= augment.random_erasing <= 1:
        raise ConfigError(f"--random-erasing {augment.random_erasing}: give a probability from 0 to 1")
    if augment.auto_augment != "none":
        check_policy(augment.auto_augment, config.data.channels)
    tuned_blocks(config)


def tuned_blocks(config: Config) -> float | None:
    """Read `--finetune-blocks`; None for all.

    Raises:
        ConfigError: it is neither "all" nor a number of blocks.

    """
    text = config.transfer.finetune_blocks
    if text == "all":
        return None
    try:
        blocks = float(text)
    except ValueError:
        blocks = -1.0
    if blocks != 0.5 and not (blocks.is_integer() and 0 <= blocks <= config.encoder.layers):
        raise ConfigError(f"--finetune-blocks {text}: give 0, .5, all, or 1 to {config.encoder.layers} blocks")
    return blocks


def run(config: Config, console: Console) -> Trained:
    """Probe or fine-tune: everything that can be wrong is checked before anything is compiled.

    Raises:
        ConfigError, DataError, RunError: the input is wrong.
        TrainingError: the loss became non-finite.

    """
    refuse_ignored(config, {"sweep": (), "cached_epochs": 1}, "it belongs to --mode linear --cache-features")
    train_source, valid_source, labels, taken, transform, pixels = prepare(config)
    optimization, augment, machine = config.optimization, config.augment, config.machine
    peak = peak_rate(optimization.learning_rate, config.data.train_batch_size)
    rate = warmup_cosine(peak, optimization.warmup_steps, optimization.training_steps)
    probe = config.run.mode == "linear"
    optimizer = configured_optimizer(
        config, rate, decayed=DECAYED if probe else FINETUNE_DECAYED, tuned_blocks=tuned_blocks(config)
    )
    if optimization.ema:
        optimizer = with_average(optimizer, optimization.ema)
    draw = partial(make_targets, config=config, labels=labels, pixels=pixels)
    if probe:
        optimizer = for_trained(optimizer, is_encoder)
        # The encoder may go through a batch in parts, the head sees all of it: its BatchNorm is that of the batch.
        step = make_step(
            partial(probe_losses, criterion=augment.criterion), optimizer, rate, 1, draw, machine.on_nan,
            machine.sharding, frozen=is_encoder, prepare=partial(encode_features, parts=optimization.grad_accum),
            observe=observe_features,
        )  # fmt: skip
    else:
        losses = partial(classifier_losses, dropout_seed=config.seeds.dropout_seed, criterion=augment.criterion)
        step = make_step(losses, optimizer, rate, optimization.grad_accum, draw, machine.on_nan, machine.sharding)
    trained = train(config, Recipe(
        model=taken.arguments,
        init=partial(initial_model, taken.arguments, config.seeds.init_seed, folded=False),
        optimizer=optimizer,
        step=step,
        start=lambda state: with_weights(state, taken.arrays, NEW) if taken.arrays else state,
        weights=taken.said,
        source=train_source,
        loader=partial(train_loader, config, train_source, transform),
        rows=partial(labelled_rows, labels=labels),
        judge=None if valid_source is None else partial(AccuracyJudge, config, valid_source),
        describe=partial(describe, config, train_source, peak, labels),
        explain=partial(explain, train_source),
    ), console)  # fmt: skip
    if config.run.export_msgpack and jax.process_index() == 0:
        for path in export_original(trained.directory):
            console.print(f"exported {path}", highlight=False)
    return trained


def starting_point(config: Config, arguments: dict[str, Any]) -> Taken:
    """Read what training starts from; nothing without --pretrained-ckpt.

    Raises:
        ConfigError: the model's flags do not fit together.
        RunError: the file cannot be used.

    """
    try:
        abstract_model(arguments)
    except ValueError as error:
        raise ConfigError(f"the model's flags do not fit together: {error}") from None
    path, mapping = config.run.pretrained_ckpt, config.transfer.label_mapping
    if not path:
        what = "the frozen encoder is untrained" if config.run.mode == "linear" else "training from scratch"
        return Taken({}, arguments, f"no --pretrained-ckpt: {what}")
    return load_for_classifier(
        path, arguments, mapping=read_mapping(mapping, arguments["labels"]) if mapping else None,
        own_mean=not config.data.mean, cache_dir=config.data.cache_dir,
    )  # fmt: skip


def labelled_rows(batch: Batch, labels: int) -> Rows:
    """Take what a step reads of a batch; images without a label do not count."""
    check_labels(batch.labels, labels)
    valid = batch.valid & (batch.labels >= 0)
    return {"images": batch.images, "labels": batch.labels, "valid": valid, "index": batch.index}


def make_targets(batch, step: jax.Array, *, config: Config, labels: int, pixels: Pixels):
    """Make the targets [B, labels] of a global batch, erase, and mix images and targets; a function of (seed, step)."""
    augment, images = config.augment, batch["images"]
    targets = soft_targets(batch["labels"], labels, augment.label_smoothing)
    if augment.random_erasing or augment.mixup or augment.cutmix:
        images = normalize(images, pixels.mean, pixels.std)
    images = erase(images, step, seed=config.seeds.noise_seed, probability=augment.random_erasing)
    images, targets = mix(
        images, targets, batch["valid"], step, seed=config.seeds.mixup_seed, mixup=augment.mixup, cutmix=augment.cutmix
    )
    return {**batch, "images": images, "targets": targets}


def describe(
    config: Config, source: Source | Stream, peak: float, labels: int, state: TrainState
) -> str:  # fmt: skip
    """Say in a few lines what is about to be trained, on what, where."""
    blocks = config.transfer.finetune_blocks
    trained = "frozen" if config.run.mode == "linear" else f"{blocks} of its blocks trained"
    encoder = f"{config.encoder.layers} x {config.encoder.dim} encoder, {trained}"
    return describe_run(config, source, peak, state, f"{encoder}, {config.encoder.pooling}, {labels} classes")


def explain(source: Source | Stream, directory: Path, mesh: Mesh, state: TrainState, step: int, rows: Rows) -> str:
    """Say why the step after `state` gave no finite loss or gradient, and write its batch for inspection."""
    model: Any = local_copy(state.model, mesh)
    path = directory / "bad" / f"{step}-{jax.process_index()}.npz"
    used = np.flatnonzero(rows["valid"])
    with first_device():
        where = first_bad_part(model, rows["images"][used])
        bad = used[~np.isfinite(np.asarray(model(model.normalize(rows["images"][used])))).all(axis=1)]
    keys = list_keys([source.key(i) for i in rows["index"][bad if len(bad) else used].tolist()])
    return f"first not finite: {where}; on {keys}; {write_batch(path, rows)}"
