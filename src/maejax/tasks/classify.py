"""Linear probing and fine-tuning (He et al. 2022, A.1): the recipes behind `--mode linear` and `--mode finetune`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console

from maejax.config import Config
from maejax.data.augment import Transform
from maejax.data.pipeline import Batch
from maejax.data.sources import Source
from maejax.data.stream import Stream
from maejax.errors import InputError
from maejax.models.build import abstract_model, initial_model
from maejax.models.classifier import BATCH_NORM_EPS, ImageClassifier
from maejax.models.description import Classifier, Compute
from maejax.models.flops import classify_flop
from maejax.models.vit import normalize
from maejax.storage import mirror
from maejax.tasks import cached_probe
from maejax.tasks.accuracy import Accuracy
from maejax.tasks.configured import (
    configured_optimizer,
    configured_rate,
    configured_transform,
    faults_allowed,
    open_sources,
    train_loader,
)
from maejax.tasks.checks import check_run_flags, encoder_config, refuse_ignored
from maejax.tasks.diagnosis import first_bad_part, list_keys, write_batch
from maejax.tasks.fast_forms import choose_forms
from maejax.tasks.run import Finished, Recipe, describe_run, open_directory, run_directory, train
from maejax.tasks.transfer import (
    Transferred,
    check_labels,
    count_classes,
    match_classes,
    place_weights,
    read_mapping,
    transfer,
)
from maejax.training.bucket_checkpoints import open_checkpoints
from maejax.training.ema import restart_average, with_average
from maejax.training.erasing import erase
from maejax.training.log import RunLog
from maejax.training.losses import Features, cross_entropy, is_encoder, probe_losses, update_stats
from maejax.training.mesh import first_device, local_copy, make_mesh
from maejax.training.mixing import mix, soft_targets
from maejax.training.optim import DECAYED, FINETUNE_DECAYED, for_trained
from maejax.training.rundir import CHECKPOINTS
from maejax.training.state import Frozen, TrainState, abstract_state, create_state, make_step
from maejax.training.trackers import check_installed


def model_config(config: Config, labels: int) -> Classifier:
    """Describe the classifier that the flags ask for; a probe normalises before its head.

    Raises InputError if its sizes do not fit together.
    """
    eps = BATCH_NORM_EPS if config.run.mode == "linear" else 0.0
    try:
        encoder = encoder_config(config)
        return Classifier(encoder=encoder, labels=labels, pooling=config.encoder.pooling, head_norm=eps)
    except ValueError as error:
        raise InputError(f"the model's flags do not fit together: {error}") from None


def check_flags(config: Config) -> None:
    """Refuse flags that the mode would have to ignore, and sizes that do not fit.

    Raises:
        InputError: with the first flag that is wrong.

    """
    refuse_ignored(
        config,
        {"image_mask_ratio": 0.0, "norm_pix_loss": False, "export_msgpack": False},
        f"--mode {config.run.mode} masks and reconstructs nothing and would ignore it; leave it out",
    )
    for name in ("mixup", "cutmix", "random_erasing"):
        if not 0 <= getattr(config.augment, name) <= (1 if name == "random_erasing" else np.inf):
            raise InputError(f"--{name.replace('_', '-')} {getattr(config.augment, name)} is out of range")
    if config.run.mode == "linear":
        refuse_ignored(
            config,
            {
                "droppath": 0.0,
                "dropout": 0.0,
                "lr_decay": 1.0,
                "finetune_blocks": "all",
                "criterion": "ce",
                "mixup": 0.0,
                "cutmix": 0.0,
            },
            "a linear probe trains its head alone and would ignore it; leave it out, or choose --mode finetune",
        )
    if config.run.cache_features:
        cached_probe.check_flags(config)
    elif config.optimization.sweep_rates:
        raise InputError("--sweep-rates are tried on --cache-features: give that too")
    tuned_blocks(config)
    if not 0 <= config.optimization.ema < 1:
        raise InputError(f"--ema {config.optimization.ema}: give at least 0 and less than 1, such as 0.9999")
    if not 0 <= config.augment.label_smoothing < 1:
        raise InputError(f"--label-smoothing {config.augment.label_smoothing}: give at least 0 and less than 1")
    check_run_flags(config)


def tuned_blocks(config: Config) -> float | None:
    """Read `--finetune-blocks`: how many of the last blocks are trained; None for all of the encoder.

    Raises:
        InputError: it is neither all, half nor a number of blocks.

    """
    given = config.optimization.finetune_blocks
    if given == "all":
        return None
    try:
        blocks = 0.5 if given == "half" else float(given)
    except ValueError:
        blocks = -1.0
    if not 0 <= blocks <= config.encoder.layers or (blocks != 0.5 and blocks % 1):
        raise InputError(
            f"--finetune-blocks {given}: give 0 (the head alone), half or .5 (the last MLP too), all, or a number of "
            f"blocks up to {config.encoder.layers}"
        )
    return None if blocks == config.encoder.layers else blocks


def run(config: Config, console: Console) -> Finished:
    """Probe or fine-tune: everything that can be wrong is checked before anything is compiled.

    Raises:
        InputError, InputError, InputError: the input is wrong.
        Failed: the loss became non-finite.

    """
    check_flags(config)
    mirror.check(config.run.output_dir)
    check_installed(wandb=config.run.wandb, tensorboard=config.run.tensorboard)
    train_source, valid_source = open_sources(config)
    model = model_config(config, count_classes(config.encoder.labels, train_source, config.data.train_dataset_shards))
    if valid_source is not None:
        match_classes(valid_source, train_source.classes, model.labels, config.data.valid_dataset_shards)
    given = Transferred({}, model, ())
    if config.run.pretrained_ckpt:
        mapping = read_mapping(config.transfer.label_mapping, model.labels)
        given = transfer(config, model, abstract_model(model), mapping)
        model = given.model
    elif config.transfer.label_mapping:
        raise InputError("--label-mapping re-uses the head of a --pretrained-ckpt: give one")
    frozen, peak = is_encoder if config.run.mode == "linear" else None, configured_rate(config)[1]
    transform = configured_transform(config, model.encoder.mean)

    def start(state: TrainState) -> TrainState:
        return restart_average(place_weights(state, given.arrays), frozen)

    if config.run.cache_features:
        return probe_cached(config, console, model, start, (train_source, valid_source), transform)
    trained = train(
        config,
        Recipe(
            model=model,
            build=partial(build_step, config, model),
            start=start,
            weights="; ".join(given.notices),
            source=train_source,
            loader=partial(train_loader, config, train_source, transform),
            check=partial(check_batch, labels=model.labels),
            flop=step_flop(model, config.run.mode),
            judge=None if valid_source is None else partial(open_accuracy, config, valid_source),
            describe=partial(describe, config, train_source, peak, model),
            explain=partial(explain, train_source),
        ),
        console,
    )
    return Finished(trained.directory, trained.state.model, trained.done)  # type: ignore[arg-type]


def probe_cached(
    config: Config,
    console: Console,
    model: Classifier,
    start: Callable[[TrainState], TrainState],
    sources: tuple[Source | Stream, Source | None],
    transform: Transform,
) -> Finished:
    """Probe on features that are computed once, and leave a run as live probing does; see `cached_probe`."""
    train_source, valid_source = sources
    directory, steps = run_directory(config), config.optimization.training_steps
    if train_source.total is None or valid_source is None:
        raise InputError("--cache-features: shards that arrive while training have no known number; fetch them before")
    newest, _ = open_directory(config, model, train_source)
    optimizer, _, peak = build(config)
    compute, forms = choose_forms(config, model)
    init, mesh = partial(initial_model, model, compute, config.seeds.init_seed), make_mesh()
    with mirror.published(directory), open_checkpoints(directory / CHECKPOINTS, 1) as checkpoints, jax.set_mesh(mesh):
        if newest:
            console.print(f"{mirror.shown(directory)} has its probe already")
            shape = abstract_state(init, optimizer, mesh)
            return Finished(directory, checkpoints.restore(shape).state.model, True)  # type: ignore[arg-type]
        state = start(create_state(init, optimizer, mesh))
        console.print(describe(config, train_source, peak, model, state), highlight=False)
        for line in forms:
            console.print(f"forms    {line}", highlight=False)
        judge = open_accuracy(config, valid_source, directory, mesh, 0)
        found = cached_probe.probe(
            config,
            console,
            state,
            optimizer,
            train_loader(config, train_source, transform),
            judge,
            model.labels,
            config.augment.label_smoothing,
            train_source.total,
        )
        with RunLog(directory, 0, steps, console) as log:
            log.write(steps, found.scores[found.rate])
        cached_probe.write_sweep(directory, found)
        kept = TrainState(jnp.asarray(steps, jnp.int32), found.model, optimizer.init(found.model))  # type: ignore[arg-type]
        checkpoints.save(kept, steps)
    for rate, each in found.scores.items():
        best = ", the best" if rate == found.rate else ""
        console.print(f"rate     {rate:g}: top-1 {each['val/acc1']:.1f}{best}", highlight=False)
    if len(found.scores) > 1 and found.rate in (min(found.scores), max(found.scores)):
        console.print("rate     the best is at the end of the sweep: --sweep-rates can go further", highlight=False)
    encoding, heads = (found.speed[part]["images_per_second"] for part in ("encoding", "heads"))
    console.print(f"speed    encoding {encoding:,.0f} images/s, then {len(found.scores)} heads {heads:,.0f} images/s")
    return Finished(directory, found.model, True)


def build(config: Config) -> tuple[optax.GradientTransformation, optax.Schedule, float]:
    """Build the optimizer, its rate by step and the peak of the rate."""
    linear, (rate, peak) = config.run.mode == "linear", configured_rate(config)
    decayed = DECAYED if linear else FINETUNE_DECAYED
    optimizer = configured_optimizer(config, rate, decayed=decayed, tuned_blocks=tuned_blocks(config))
    if config.optimization.ema:
        optimizer = with_average(optimizer, config.optimization.ema)
    return (for_trained(optimizer, is_encoder) if linear else optimizer), rate, peak


def build_step(config: Config, model: Classifier, compute: Compute):
    """Build a function that makes the model, the optimizer, and the step of `make_step`."""
    optimizer, rate, _ = build(config)
    init = partial(initial_model, model, compute, config.seeds.init_seed)
    losses = partial(sample_losses, dropout_seed=config.seeds.dropout_seed, criterion=config.augment.criterion)
    parts, frozen = config.optimization.grad_accum, None
    if config.run.mode == "linear":
        frozen = Frozen(is_encoder, partial(encode_batch, parts=parts), update_stats)
        losses, parts = probe_losses, 1
    step = make_step(
        losses,
        optimizer,
        rate,
        grad_accum=parts,
        draw=partial(draw_batch, config=config, model=model),
        on_nan=config.machine.on_nan,
        sharding=config.machine.sharding,
        frozen=frozen,
    )
    return init, optimizer, step


def open_accuracy(config: Config, source: Source, directory: Path, mesh: Mesh, start: int) -> Accuracy:
    """Prepare the validation of a run that starts at a step."""
    return Accuracy(config, source, directory, mesh, faults_allowed(config), start)


def check_batch(batch: Batch, *, labels: int) -> Batch:
    """Return a batch after a check of its labels; those of a stream are not known before."""
    check_labels(batch.labels, labels)
    return batch


class Drawn(NamedTuple):
    """A batch to learn from: `x` [B, H, W, C] normalised, erased and mixed, `targets` [B, labels], `valid` bool [B]."""

    x: jax.Array
    targets: jax.Array
    valid: jax.Array


def draw_batch(batch: Batch, step: jax.Array, *, config: Config, model: Classifier) -> Drawn:
    """Normalise, erase and mix the images of a global batch, in the order of timm; unlabelled images are not valid.

    A function of the batch, the seeds and the step alone.
    """
    augment, seeds, valid = config.augment, config.seeds, batch.valid & (batch.labels >= 0)
    targets = soft_targets(batch.labels, model.labels, augment.label_smoothing)
    x = normalize(batch.images, model.encoder.mean, model.encoder.std)
    # Behind a barrier, else XLA draws noise anew for an image and for its partner, and mixes for each product.
    x = jax.lax.optimization_barrier(erase(x, step, seed=seeds.shuffle_seed, probability=augment.random_erasing))
    x, targets = mix(x, targets, valid, step, seed=seeds.mixup_seed, mixup=augment.mixup, cutmix=augment.cutmix)
    return Drawn(jax.lax.optimization_barrier(x), targets, valid)


def sample_losses(model: ImageClassifier, batch: Drawn, microstep: Any, *, dropout_seed: int, criterion) -> jax.Array:
    """Compute the loss of every sample [B]; dropout is a function of (seed, microstep) alone."""
    dropout_key = jax.random.fold_in(jax.random.key(dropout_seed), microstep)
    return cross_entropy(model(batch.x, dropout_key), batch.targets, criterion)


def encode_batch(model: ImageClassifier, batch: Drawn, *, parts: int = 1) -> Features:
    """Compute the features [B, D] of a batch by the frozen encoder, as in evaluation, in `parts` one after the other.

    The head's BatchNorm sees the whole batch.
    """
    x = batch.x
    if parts == 1:
        features = model.features(x)
    else:
        # Strided, so that every part has its share of every device's rows.
        made = jax.lax.map(model.features, x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1))
        features = made.swapaxes(0, 1).reshape(len(x), -1)
    return Features(features, batch.targets, batch.valid)


def explain(source: Source | Stream, directory: Path, mesh: Mesh, state: TrainState, step: int, rows: Batch) -> str:
    """Say why the step after `state` gave no finite loss or gradient, and write its batch for inspection."""
    model: Any = local_copy(state.model, mesh)
    with first_device():
        logits = np.asarray(model(model.normalize(rows.images)))
        valid = rows.valid & (rows.labels >= 0)
        bad = np.flatnonzero(valid & ~np.isfinite(logits).all(axis=-1))
        bad = bad if len(bad) else np.flatnonzero(valid)
        where = first_bad_part(model, rows.images[bad], jnp.asarray(rows.labels[bad]))
    keys = list_keys([source.key(i) for i in rows.index[bad].tolist()])
    written = write_batch(directory / "bad" / f"{step}-{jax.process_index()}.npz", rows._asdict())
    return f"first not finite: {where}; on {keys}; {written}"


def step_flop(model: Classifier, mode: str) -> int:
    """Count the FLOP of one step on one image: forward, and twice that backward where the encoder is trained."""
    return (1 if mode == "linear" else 3) * classify_flop(model)


def describe(config: Config, source: Source | Stream, peak: float, model: Classifier, state: TrainState) -> str:
    """Say in a few lines what is about to be trained, on what, where."""
    read = "the mean of the patches" if model.pooling == "gap" else "cls"
    head = f"head of {model.labels} classes on {read}"
    frozen = ", encoder frozen" if config.run.mode == "linear" else ""
    encoder = f"{config.encoder.layers} x {config.encoder.dim} encoder{frozen}"
    return describe_run(config, source, peak, state, f"{encoder}, {head}")
