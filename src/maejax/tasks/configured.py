"""Build the objects of a run from its configuration: data, loader, transform, learning rate, optimizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from maejax.config import Config
from maejax.data.augment import Transform, build_train
from maejax.data.batch_plan import BatchConfig
from maejax.data.faults import Faults
from maejax.data.form import number_of
from maejax.data.pipeline import Loader
from maejax.data.sources import Source
from maejax.data.stream import Stream
from maejax.storage import mirror
from maejax.training.checkpoint import saved_steps
from maejax.training.optim import ParameterRules, build_optimizer
from maejax.training.rundir import CHECKPOINTS, read_config
from maejax.training.schedule import peak_rate, warmup_cosine, warmup_stable, warmup_stable_decay


def run_directory(config: Config) -> Path:
    """Return the folder of a run; for an address, the folder of this process that stands for it."""
    output, name = config.run.output_dir, config.run.name or config.run.mode
    return mirror.work_folder(f"{output}/{name}", jax.process_index()) if "://" in output else Path(output) / name


def saved_run(config: Config) -> dict[str, Any] | None:
    """Read config.json of the run that the flags go on with; None if it has no checkpoint yet.

    Raises Failed if a bucket does not answer.
    """
    mirror.check(config.run.output_dir)
    directory = run_directory(config)
    mirror.refresh(directory)
    return read_config(directory) if saved_steps(directory / CHECKPOINTS) else None


def faults_allowed(config: Config) -> Faults:
    """Collect how many faults of the data the flags allow."""
    data = config.data
    return Faults(data.on_bad_data, data.max_bad_images, data.max_lost_shards)


def train_loader(config: Config, source: Source | Stream, transform: Transform) -> Loader:
    """Build the loader of this host's training batches."""
    return Loader(
        source,
        transform,
        BatchConfig(
            config.data.train_batch_size,
            seed=config.seeds.shuffle_seed,
            repeats=config.augment.augment_repeats,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        size=config.image_shape,
        channels=config.data.channels,
        workers=config.data.train_loader_workers,
        faults=faults_allowed(config),
    )


def configured_transform(config: Config, mean: Sequence[float]) -> Transform:
    """Build what the flags do to a training image; a policy fills with `mean` what it moves into the picture."""
    augment = config.augment
    return build_train(
        config.image_shape,
        augment.random_crop,
        (augment.crop_scale, 1.0),
        augment.color_jitter,
        flip=augment.flip,
        policy=augment.auto_augment,
        policy_mean=tuple(mean),
        rotate=augment.rotate == "quarter",
        no_data=number_of(config.data.no_data),
    )


def configured_rate(config: Config) -> tuple[optax.Schedule, float]:
    """Build the learning rate by step that the flags ask for, and compute its peak."""
    given = config.optimization
    peak = peak_rate(given.learning_rate, config.data.train_batch_size)
    warmup, steps, floor = given.warmup_steps, given.training_steps, given.min_learning_rate
    match given.schedule:
        case "constant":
            return warmup_stable(peak, warmup), peak
        case "wsd":
            return warmup_stable_decay(peak, warmup, steps, given.cooldown_steps, floor), peak
    return warmup_cosine(peak, warmup, given.schedule_steps or steps, floor), peak


def configured_optimizer(config: Config, rate: optax.Schedule, **more: Any) -> optax.GradientTransformation:
    """Build the optimizer that the flags ask for; `more` goes to `ParameterRules`."""
    given = config.optimization
    return build_optimizer(
        given.optimizer,
        rate,
        weight_decay=given.weight_decay,
        b1=given.adam_b1,
        b2=given.adam_b2,
        eps=given.adam_eps,
        clip_grad=given.clip_grad,
        rules=ParameterRules(lr_decay=given.lr_decay, **more),
    )
