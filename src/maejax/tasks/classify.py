"""Linear probing and fine-tuning (He et al. 2022, A.1): the task behind `--mode linear` and `--mode finetune`."""

from collections.abc import Sequence
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
from maejax.data.pipeline import Batch
from maejax.data.sources import Source
from maejax.errors import InputError
from maejax.models.build import abstract_model, initial_model
from maejax.models.classifier import BATCH_NORM_EPS, ImageClassifier
from maejax.models.description import POOLED, Classifier, Compute
from maejax.models.flops import classify_flop
from maejax.models.normalization import normalize
from maejax.pages.run_page import RunPage
from maejax.storage import mirror
from maejax.tasks import cached_probe
from maejax.tasks.accuracy import Accuracy
from maejax.tasks.checks import encoder_config, refuse_ignored
from maejax.tasks.configured import configured_optimizer, configured_rate, faults_allowed, run_directory
from maejax.tasks.diagnosis import describe_batch, first_bad_part
from maejax.tasks.fast_forms import choose_forms
from maejax.tasks.images import Sources
from maejax.tasks.run import Finished, open_directory, prepared, train
from maejax.tasks.task import Task
from maejax.tasks.transfer import (
    as_saved,
    check_labelled,
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
from maejax.training.log import Callback, RunLog
from maejax.training.losses import Features, cross_entropy, is_encoder, probe_losses, update_stats
from maejax.training.mesh import first_device, local_copy, make_mesh
from maejax.training.mixing import mix, soft_targets
from maejax.training.optim import DECAYED, FINETUNE_DECAYED, for_trained
from maejax.training.rundir import BEST, CHECKPOINTS
from maejax.training.state import Frozen, TrainState, abstract_state, create_state, make_step


def run(
    config: Config, console: Console, *, sources: Sources | None = None, callbacks: Sequence[Callback] = ()
) -> Finished:
    """Probe or fine-tune; `sources` are the training and the validation images if they are open already.

    Raises InputError if the input is wrong, and Failed if the loss became non-finite.
    """
    task = Classification(config, sources)
    if config.run.cache_features and callbacks:
        raise InputError("--cache-features trains many heads at once, and callbacks are for one run: leave one out")
    return probe_cached(task, console) if config.run.cache_features else train(task, console, callbacks)


class Classification(Task[Classifier]):
    """Training of a classifier: of its head alone (a linear probe), or of the encoder too."""

    labelled = False  # whether a label has come

    def check_flags(self) -> None:
        """Check the flags. Raises InputError at the first that is wrong."""
        check_flags(self.config)

    def describe_model(self) -> None:
        """Set the model of the flags and of the classes in the data, and what it takes from `--pretrained-ckpt`.

        Raises InputError if model, classes and weights do not fit together.
        """
        config, data = self.config, self.config.data
        labels = count_classes(config.encoder.labels, self.source, data.train_dataset_shards)
        self.model = model_config(config, labels)
        if self.valid is not None:
            match_classes(self.valid, self.source.classes, labels, data.valid_dataset_shards)
        if self.saved and config.run.pretrained_ckpt:
            self.model = as_saved(self.model, self.saved)
        elif config.run.pretrained_ckpt:
            mapping = read_mapping(config.transfer.label_mapping, labels)
            self.arrays, self.model, notices = transfer(config, self.model, mapping)
            self.origin = "; ".join(notices)
        elif config.transfer.label_mapping:
            raise InputError("--label-mapping re-uses the head of a --pretrained-ckpt: give one")

    def build_step(self, compute: Compute):
        """Build a function that makes the model, the optimizer, and the step of `make_step`."""
        return build_step(self.config, self.model, compute)

    def start_from_weights(self, state: TrainState) -> TrainState:
        """Place what the model takes over in a new state, and let an average of the weights start there."""
        frozen = is_encoder if self.config.run.mode == "linear" else None
        return restart_average(place_weights(state, self.arrays), frozen)

    def describe_parts(self) -> str:
        """Describe the sizes of encoder and head."""
        read = POOLED[self.model.pooling]
        frozen = ", encoder frozen" if self.config.run.mode == "linear" else ""
        encoder = f"{self.config.encoder.layers} x {self.config.encoder.dim} encoder{frozen}"
        return f"{encoder}, head of {self.model.labels} classes on {read}"

    def open_evaluator(self, source: Source, directory: Path, mesh: Mesh, start: int) -> Accuracy:
        """Prepare the accuracy on held-out images."""
        return Accuracy(self.config, source, directory, mesh, faults_allowed(self.config), start)

    def image_flop(self) -> float:
        """Count the FLOP of one step on one image."""
        return step_flop(self.model, self.config.run.mode)

    def check_batch(self, batch: Batch) -> Batch:
        """Return a batch after a check of its labels; those of a stream are not known before."""
        check_labels(batch.labels, self.model.labels)
        self.labelled = self.labelled or bool((batch.labels >= 0).any())
        check_labelled(self.source, self.config.data.train_dataset_shards, self.labelled)
        return batch

    def explain(self, directory: Path, mesh: Mesh, state: TrainState, step: int, rows: Batch) -> str:
        """Name the first layer that is not finite in the step after `state`, and write its batch for inspection."""
        model: Any = local_copy(state.model, mesh)
        with first_device():
            logits = np.asarray(model(model.normalize(rows.images)))
            valid = rows.valid & (rows.labels >= 0)
            bad = np.flatnonzero(valid & ~np.isfinite(logits).all(axis=-1))
            bad = bad if len(bad) else np.flatnonzero(valid)
            where = first_bad_part(model, rows.images[bad], jnp.asarray(rows.labels[bad]))
        path = directory / "bad" / f"{step}-{jax.process_index()}.npz"
        return describe_batch(where, self.source, bad, path, rows._asdict())


def probe_cached(task: Classification, console: Console) -> Finished:
    """Probe on features that are computed once, and leave a run as live probing does; see `cached_probe`.

    Raises InputError if the input is wrong.
    """
    with prepared(task):
        return probe_prepared(task, console)


def probe_prepared(task: Classification, console: Console) -> Finished:
    """Probe on cached features of a task that is `prepared`."""
    config, model, steps = task.config, task.model, task.config.optimization.training_steps
    directory = run_directory(config)
    if task.source.total is None or task.valid is None:
        raise InputError("--cache-features: shards that arrive while training have no known number; fetch them before")
    newest, _ = open_directory(task)
    optimizer, _ = classifier_optimizer(config)
    compute, forms = choose_forms(config, model)
    init, mesh = partial(initial_model, model, compute, config.seeds.init_seed), make_mesh()
    with (
        mirror.published(directory),
        open_checkpoints(directory / CHECKPOINTS, 1) as checkpoints,
        open_checkpoints(directory / BEST, 1) as best,
        jax.set_mesh(mesh),
    ):
        if newest:
            console.print(f"{mirror.shown(directory)} has its probe already")
            shape = abstract_state(init, optimizer, mesh)
            return Finished(directory, checkpoints.restore(shape).state.model, True)  # type: ignore[arg-type]
        state = task.start_from_weights(create_state(init, optimizer, mesh))
        console.print(task.describe(state), highlight=False)
        for line in forms:
            console.print(f"forms    {line}", highlight=False)
        evaluator = task.open_evaluator(task.valid, directory, mesh, 0)
        found = cached_probe.probe(config, console, state, optimizer, task.open_loader(), evaluator, task.source.total)
        cached_probe.write_sweep(directory, found)
        with RunLog(directory, 0, steps, console, trackers=[RunPage(directory, 0)]) as log:
            log.write(steps, found.scores[found.rate] | {"val/acc1/best": found.scores[found.rate]["val/acc1"]})
        kept = TrainState(jnp.asarray(steps, jnp.int32), found.model, optimizer.init(found.model))  # type: ignore[arg-type]
        best.save(kept, steps)  # of all rates; before the checkpoint, which ends the run
        checkpoints.save(kept, steps)
    for rate, each in found.scores.items():
        chosen = ", the best" if rate == found.rate else ""
        console.print(f"rate     {rate:g}: top-1 {each['val/acc1']:.1f}{chosen}", highlight=False)
    if len(found.scores) > 1 and found.rate in (min(found.scores), max(found.scores)):
        console.print("rate     the best is at the end of the sweep: --sweep-rates can go further", highlight=False)
    encoding, heads = (found.speed[part]["images_per_second"] for part in ("encoding", "heads"))
    console.print(f"speed    encoding {encoding:,.0f} images/s, then {len(found.scores)} heads {heads:,.0f} images/s")
    return Finished(directory, found.model, True)


def check_flags(config: Config) -> None:
    """Check the flags: none that the mode would have to ignore, and sizes that fit.

    Raises InputError at the first that is wrong.
    """
    why = f"--mode {config.run.mode} masks and reconstructs nothing and would ignore it; leave it out"
    refuse_ignored(config, "image_mask_ratio norm_pix_loss export_msgpack new_decoder freeze_encoder_steps", why)
    refuse_ignored(config, "mask decoder dec_inputs predict_share target loss_on encoder_mask_tokens", why)
    refuse_ignored(config, "watch watch_interval", f"--mode {config.run.mode} has its accuracy; leave it out")
    for name in ("mixup", "cutmix", "random_erasing"):
        if not 0 <= getattr(config.augment, name) <= (1 if name == "random_erasing" else np.inf):
            raise InputError(f"--{name.replace('_', '-')} {getattr(config.augment, name)} is out of range")
    if config.run.mode == "linear":
        why = "a linear probe trains its head alone and would ignore it; leave it out, or choose --mode finetune"
        refuse_ignored(config, "droppath dropout lr_decay finetune_blocks criterion mixup cutmix", why)
        if config.optimization.optimizer == "muon":
            raise InputError("--optimizer muon leaves the head, all that a probe trains, to AdamW: give adamw")
    if config.run.cache_features:
        cached_probe.check_flags(config)
    elif config.optimization.sweep_rates:
        raise InputError("--sweep-rates are tried on --cache-features: give that too")
    tuned_blocks(config)
    if not 0 <= config.optimization.ema < 1:
        raise InputError(f"--ema {config.optimization.ema}: give at least 0 and less than 1, such as 0.9999")
    if not 0 <= config.augment.label_smoothing < 1:
        raise InputError(f"--label-smoothing {config.augment.label_smoothing}: give at least 0 and less than 1")


def tuned_blocks(config: Config) -> float | None:
    """Read `--finetune-blocks`: how many of the last blocks are trained; None for all of the encoder.

    Raises InputError if it is neither all, half nor a number of blocks.
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


def classifier_optimizer(config: Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Build the optimizer, and its rate by step."""
    linear, (rate, _) = config.run.mode == "linear", configured_rate(config)
    decayed = DECAYED if linear else FINETUNE_DECAYED
    optimizer = configured_optimizer(config, rate, decayed=decayed, tuned_blocks=tuned_blocks(config))
    if config.optimization.ema:
        optimizer = with_average(optimizer, config.optimization.ema)
    return (for_trained(optimizer, is_encoder) if linear else optimizer), rate


def build_step(config: Config, model: Classifier, compute: Compute):
    """Build a function that makes the model, the optimizer, and the step of `make_step`."""
    optimizer, rate = classifier_optimizer(config)
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
        draw=partial(draw_batch, config=config, model=abstract_model(model, compute)),
        on_nan=config.machine.on_nan,
        sharding=config.machine.sharding,
        frozen=frozen,
    )
    return init, optimizer, step


class Drawn(NamedTuple):
    """A batch to learn from: `x` [B, H, W, C] normalised, erased and mixed, `targets` [B, labels], `valid` bool [B]."""

    x: jax.Array
    targets: jax.Array
    valid: jax.Array


def draw_batch(batch: Batch, step: jax.Array, *, config: Config, model: ImageClassifier) -> Drawn:
    """Normalise, erase and mix the images of a global batch, in the order of timm; unlabelled images are not valid.

    A function of the batch, the seeds and the step alone. Of the `model`, which may be abstract, no array is read.
    """
    augment, seeds, valid = config.augment, config.seeds, batch.valid & (batch.labels >= 0)
    targets = soft_targets(batch.labels, model.config.labels, augment.label_smoothing)
    own = model.config.encoder
    x = normalize(batch.images, own.mean, own.std, own.image_type, own.no_data)
    # Behind a barrier, else XLA draws noise anew for an image and for its partner, and mixes for each product.
    x = jax.lax.optimization_barrier(erase(x, step, seed=seeds.shuffle_seed, probability=augment.random_erasing))
    x, targets = mix(x, targets, valid, step, seed=seeds.mixup_seed, mixup=augment.mixup, cutmix=augment.cutmix)
    return Drawn(jax.lax.optimization_barrier(x), targets, valid)


def sample_losses(model: ImageClassifier, batch: Drawn, microstep: Any, *, dropout_seed: int, criterion) -> jax.Array:
    """Compute the loss of every sample [B]; dropout is a function of (seed, microstep) alone."""
    dropout_key = jax.random.fold_in(jax.random.key(dropout_seed), microstep)
    return cross_entropy(model(model.as_normalized(batch.x), dropout_key), batch.targets, criterion)


def encode_batch(model: ImageClassifier, batch: Drawn, *, parts: int = 1) -> Features:
    """Compute the features [B, D] of a batch by the frozen encoder, as in evaluation, in `parts` one after the other.

    The head's BatchNorm sees the whole batch.
    """
    x = batch.x
    if parts == 1:
        features = model.features(model.as_normalized(x))
    else:
        # Strided, so that every part has its share of every device's rows.
        split = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
        made = jax.lax.map(lambda part: model.features(model.as_normalized(part)), split)
        features = made.swapaxes(0, 1).reshape(len(x), -1)
    return Features(features, batch.targets, batch.valid)


def step_flop(model: Classifier, mode: str) -> int:
    """Count the FLOP of one step on one image: forward, and twice that backward where the encoder is trained."""
    return (1 if mode == "linear" else 3) * classify_flop(model)
