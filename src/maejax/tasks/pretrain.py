"""Masked-autoencoder pre-training (He et al. 2022): the recipe behind `maejax train --mode pretrain`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.console import Console

from maejax import __version__
from maejax.config import Config, ConfigError, differences, flags
from maejax.data.augment import build_train
from maejax.data.faults import Faults
from maejax.data.lanes import merge_positions
from maejax.data.pipeline import Batch, Loader, check_readable
from maejax.data.redact import redact
from maejax.data.shards import Source, open_source, open_stream
from maejax.data.stream import Stream
from maejax.interop.pretrained import load_pretrained
from maejax.interop.run import abstract_model, initial_model
from maejax.models import masking
from maejax.models.arrays import array_name, check_arrays
from maejax.models.mae import MaskedAutoencoder
from maejax.models.vit import IMAGENET_MEAN, IMAGENET_STD
from maejax.tasks.diagnosis import first_bad_layer, list_keys, write_batch
from maejax.tasks.validation import Validation
from maejax.tasks.weights import export_original
from maejax.training.checkpoint import Checkpoints
from maejax.training.errors import RunError
from maejax.training.log import RunLog
from maejax.training.loop import fit
from maejax.training.mesh import first_device, local_copy, make_mesh
from maejax.training.optim import build_optimizer
from maejax.training.processes import everywhere, share
from maejax.training.rundir import best_path, checkpoints_path, config_path, open_run, read_config
from maejax.training.schedule import peak_rate, warmup_cosine
from maejax.training.state import TrainState, abstract_state, create_state, make_step
from maejax.training.trace import Trace
from maejax.training.trackers import TensorBoard, Tracker, WandB, check_installed

# These change nothing that is computed, so a run may continue with other values.
MAY_CHANGE = {
    "output_dir", "name", "project", "resume", "save_interval", "keep_checkpoints", "log_interval", "eval_interval",
    "ipaddr", "hostname", "train_loader_workers", "valid_loader_workers", "valid_dataset_shards", "valid_batch_size",
    "save_minutes", "distributed", "coordinator", "num_processes", "process_id", "sharding", "on_nan", "cache_dir",
    "on_bad_data", "max_bad_images", "max_lost_shards",
    "wandb", "tensorboard", "profile", "export_msgpack",
}  # fmt: skip
UNWRITTEN = {"ipaddr", "coordinator", "num_processes", "process_id"}  # of this process and its machine, not of the run


@dataclass(frozen=True)
class Pretrained:
    """What a run of pre-training leaves: its directory, the model, and whether it got to the last step."""

    directory: Path
    model: MaskedAutoencoder
    done: bool


def geometry(config: Config) -> dict[str, Any]:
    """Collect the model's keyword arguments, as JSON can hold them; kept in config.json to load the model again."""
    encoder, mae, data = config.encoder, config.mae, config.data
    imagenet = data.channels == 3
    return {
        "image_size": list(config.image_shape), "patch_size": encoder.patch_size, "channels": data.channels,
        "mean": list(data.mean or (IMAGENET_MEAN if imagenet else (0.5,) * data.channels)),
        "std": list(data.std or (IMAGENET_STD if imagenet else (0.5,) * data.channels)),
        "dim": encoder.dim, "layers": encoder.layers, "heads": encoder.heads, "posemb": encoder.posemb,
        "layerscale": encoder.layerscale, "dropout": encoder.dropout, "droppath": encoder.droppath,
        "remat": encoder.grad_ckpt, "scan": encoder.scan_layers, "mask_ratio": mae.image_mask_ratio,
        "norm_pix_loss": mae.norm_pix_loss, "dec_dim": mae.dec_dim, "dec_layers": mae.dec_layers,
        "dec_heads": mae.dec_heads, "dec_posemb": mae.dec_posemb, "dec_layerscale": mae.dec_layerscale,
        "dec_dropout": mae.dec_dropout, "dec_droppath": mae.dec_droppath, "dtype": precision(config),
    }  # fmt: skip


def precision(config: Config) -> str:
    """Resolve `--precision auto` for the devices that are there."""
    if config.run.precision != "auto":
        return config.run.precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def check_flags(config: Config) -> None:
    """Refuse flags that pre-training would have to ignore, and sizes that do not fit.

    Raises:
        ConfigError: with the first flag that is wrong.

    """
    given = flags(config)
    classifier_flags = {"mixup": 0, "cutmix": 0, "criterion": "ce", "label_smoothing": 0, "pooling": "cls",
                        "labels": 0, "label_mapping": ""}  # fmt: skip
    for name, neutral in classifier_flags.items():
        if given[name] != neutral and not (name == "labels" and given[name] < 0):
            raise ConfigError(
                f"--{name.replace('_', '-')} {given[name]}: pre-training has no classifier and would ignore it; "
                "leave it out, or choose --mode linear or finetune"
            )
    least = {"save_interval": 1, "keep_checkpoints": 1, "log_interval": 1, "eval_interval": 0, "training_steps": 1,
             "warmup_steps": 0, "train_loader_workers": 0, "valid_loader_workers": 0, "max_bad_images": 0,
             "max_lost_shards": 0}  # fmt: skip
    for name, smallest in least.items():
        if given[name] < smallest:
            raise ConfigError(f"--{name.replace('_', '-')} {given[name]}: give at least {smallest}")
    for name, neutral in {"auto_augment": "none", "random_erasing": 0}.items():
        if given[name] != neutral:
            raise ConfigError(
                f"--{name.replace('_', '-')} {given[name]} is not built yet; the paper's pre-training recipe uses none"
            )
    traced_steps(config)
    if "://" in config.run.output_dir:
        raise ConfigError(
            f"--output-dir {config.run.output_dir}: a run is written to a folder; mount the bucket (docs/tpu.md) and "
            "name the folder in it"
        )
    if not config.data.train_dataset_shards:
        raise ConfigError("--train-dataset-shards is missing: name tar shards, an image folder or an .npz file")
    if config.augment.color_jitter and config.data.channels not in (1, 3):
        raise ConfigError(f"--color-jitter works on 1 or 3 channels, not {config.data.channels}")
    check_batch("--train-batch-size", config.data.train_batch_size, config.optimization.grad_accum, config)
    if config.data.valid_dataset_shards:
        check_batch("--valid-batch-size", config.data.valid_batch_size, 1, config)


def check_batch(flag: str, size: int, parts: int, config: Config) -> None:
    """Check that a global batch divides over the devices, times grad-accum.

    Raises:
        ConfigError: it does not; the nearest sizes that do are named.

    """
    if parts < 1 or config.augment.augment_repeats < 1:
        raise ConfigError("--grad-accum and --augment-repeats are at least 1")
    unit = int(np.lcm(jax.device_count() * parts, config.augment.augment_repeats))
    if size < 1 or size % unit:
        near = sorted({max(unit, size // unit * unit), (size // unit + 1) * unit})
        raise ConfigError(
            f"{flag} {size} does not divide by {jax.device_count()} devices x {parts} parts (--grad-accum) and "
            f"--augment-repeats {config.augment.augment_repeats}; take {' or '.join(map(str, near))}"
        )


def run(
    config: Config, console: Console, *, sources: tuple[Source | Stream, Source | None] | None = None
) -> Pretrained:
    """Pre-train: everything that can be wrong is checked before anything is compiled.

    Raises:
        ConfigError, DataError, RunError: the input is wrong.
        TrainingError: the loss became non-finite.

    """
    check_flags(config)
    check_installed(wandb=config.run.wandb, tensorboard=config.run.tensorboard)
    model_arguments = geometry(config)
    try:
        abstract_model(model_arguments)
    except ValueError as error:
        raise ConfigError(f"the model's flags do not fit together: {error}") from None
    train_source, valid_source = sources or open_sources(config)
    start_from = config.run.pretrained_ckpt
    weights = load_pretrained(start_from, model_arguments, config.data.cache_dir) if start_from else None
    if weights is not None and weights.gelu != "erf":
        model_arguments |= {"gelu": weights.gelu}
    directory = Path(config.run.output_dir) / (config.run.name or config.run.mode)
    written = {
        "maejax": __version__,
        "flags": safe_flags(config),
        "model": model_arguments,
        "images": train_source.total,
        "classes": train_source.classes,
    }
    first = jax.process_index() == 0
    console = console if first else Console(quiet=True)
    newest = open_run(
        directory,
        written,
        differences=run_differences(read_config(directory), written),
        resume=config.run.resume,
        first=first,
    )
    if not everywhere(newest == share(newest) and config_path(directory).exists()):
        raise RunError(f"the processes see different files in {directory}; --output-dir must be a folder they share")

    mesh, sharding = make_mesh(), config.machine.sharding
    optimization = config.optimization
    peak = peak_rate(optimization.learning_rate, config.data.train_batch_size)
    rate = warmup_cosine(peak, optimization.warmup_steps, optimization.training_steps)
    optimizer = build_optimizer(
        optimization.optimizer, rate, weight_decay=optimization.weight_decay, b1=optimization.adam_b1,
        b2=optimization.adam_b2, eps=optimization.adam_eps, clip_grad=optimization.clip_grad,
        lr_decay=optimization.lr_decay,
    )  # fmt: skip
    init = partial(initial_model, model_arguments, config.seeds.init_seed)
    losses = partial(sample_losses, dropout_seed=config.seeds.dropout_seed)
    draw = partial(draw_masks, noise_seed=config.seeds.noise_seed, patches=abstract_model(model_arguments).patches)
    step_fn = make_step(losses, optimizer, rate, optimization.grad_accum, draw, config.machine.on_nan, sharding)
    loader = train_loader(config, train_source)
    with (
        Checkpoints(checkpoints_path(directory), config.run.keep_checkpoints) as checkpoints,
        Checkpoints(best_path(directory), 1) as best,
    ):
        if newest:
            state, start, position = checkpoints.restore(abstract_state(init, optimizer, mesh, sharding))
        else:
            state, start, position = create_state(init, optimizer, mesh, sharding), 0, None
            if weights is not None:
                state = with_weights(state, weights.arrays)
        trackers = open_trackers(config, directory, start, written) if first else []
        with (
            RunLog(directory, start, optimization.training_steps, console, first=first, trackers=trackers) as log,
            Trace(directory / "profile" / str(jax.process_index()), *traced_steps(config)) as trace,
        ):
            if config.run.ipaddr:
                log.say("--ipaddr is accepted for the original's scripts and ignored")
            if weights is not None:
                log.say(f"weights  {weights.said or start_from}")
            if start:
                log.say(f"continuing {directory} from step {start} of {optimization.training_steps}")
            log.say(describe(config, state, train_source, peak, directory))
            log.say(f"loader   {loader.footprint}")
            for problem in train_source.problems[:5]:
                log.say(f"data     {problem}")
            evaluate = None
            if valid_source is not None:
                validation = Validation(config, valid_source, directory, mesh, faults_allowed(config), start)
                evaluate = partial(evaluate_and_keep_best, validation, best, log)
                if start and validation.best_step == start:
                    best.save(state, start)  # the process before may have ended between the two saves
            batches = loader.iterate(start, optimization.training_steps, position)
            state, done = fit(
                state, step_fn, rows_of(batches), mesh=mesh, start=start, stop=optimization.training_steps,
                batch_size=config.data.train_batch_size, checkpoints=checkpoints, log=log,
                save_interval=config.run.save_interval, save_minutes=config.run.save_minutes,
                log_interval=config.run.log_interval, evaluate=evaluate, eval_interval=config.run.eval_interval,
                extra=partial(count_faults, loader),
                explain=partial(explain, config, train_source, directory, mesh), trace=trace,
                position=loader.position, merge=merge_if_any,
            )  # fmt: skip
            batches.close()
            if loader.bad:
                log.say(f"{len(loader.bad)} unreadable images were left out, the first: {next(iter(loader.bad))}")
            if loader.lost:
                log.say(f"{len(loader.lost)} shards were not read to the end, the first: {next(iter(loader.lost))}")
    if config.run.export_msgpack and first:
        for path in export_original(directory):
            console.print(f"exported {path}", highlight=False)
    return Pretrained(directory, state.model, done)  # type: ignore[arg-type]


def count_faults(loader: Loader) -> dict[str, float]:
    """Count what this process's input left out so far."""
    return {"data/bad_images": float(len(loader.bad)), "data/lost_shards": float(len(loader.lost))}


def open_trackers(config: Config, directory: Path, start: int, written: dict[str, Any]) -> list[Tracker]:
    """Begin to log to what the flags name besides metrics.jsonl."""
    trackers: list[Tracker] = []
    if config.run.wandb:
        trackers.append(WandB(directory, config.run.project, directory.name, written))
    if config.run.tensorboard:
        trackers.append(TensorBoard(directory, start))
    return trackers


def merge_if_any(positions: list[Any]) -> Any:
    """Put together where the processes stand in a stream; None where the input has no position beside its step."""
    return None if positions[0] is None else merge_positions(positions)


def traced_steps(config: Config) -> tuple[int, int]:
    """Read `--profile START:STOP`; without it, steps that are never made.

    Raises:
        ConfigError: it has another form.

    """
    if not config.run.profile:
        return -1, -1
    start, _, stop = config.run.profile.partition(":")
    if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise ConfigError(f"--profile {config.run.profile}: give START:STOP, two steps such as 100:110")
    return int(start), int(stop)


def evaluate_and_keep_best(
    validation: Validation, best: Checkpoints, log: RunLog, state: TrainState, step: int
) -> dict[str, float]:
    """Validate a state, hand on its pictures, and save it where it is the best so far."""
    metrics = validation(state, step)
    picture = validation.picture_path(step)
    if picture.exists():
        log.picture(step, picture)
    if validation.best_step == step:
        best.save(state, step)
    return metrics


def explain(config: Config, source: Source | Stream, directory: Path, mesh, state: TrainState, step: int, rows) -> str:
    """Say why the step after `state` gave no finite loss or gradient, and write its batch for inspection."""
    model: Any = local_copy(state.model, mesh)
    count, process = len(rows["images"]), jax.process_index()
    path = directory / "bad" / f"{step}-{process}.npz"
    with first_device():
        noise_key = jax.random.fold_in(jax.random.key(config.seeds.noise_seed), step - 1)
        order = masking.random(noise_key, count * jax.process_count(), model.patches)
        order = np.asarray(order)[process * count :][:count]
        losses = np.asarray(model(model.normalize(rows["images"]), order).loss)
        bad = np.flatnonzero(rows["valid"] & ~np.isfinite(losses))
        bad = bad if len(bad) else np.flatnonzero(rows["valid"])
        where = first_bad_layer(model, rows["images"][bad], order[bad])
    keys = list_keys([source.key(i) for i in rows["index"][bad].tolist()])
    return f"first not finite: {where}; on {keys}; {write_batch(path, rows, order)}"


def open_sources(config: Config) -> tuple[Source | Stream, Source | None]:
    """Open the training and the validation images, and see that they can be read."""
    train = open_stream(config.data.train_dataset_shards, cache_dir=config.data.cache_dir)
    check_readable(train, config.data.channels)
    if not config.data.valid_dataset_shards:
        return train, None
    valid = open_source(config.data.valid_dataset_shards, cache_dir=config.data.cache_dir)
    check_readable(valid, config.data.channels)
    return train, valid


def faults_allowed(config: Config) -> Faults:
    """Collect what may be wrong with the data."""
    data = config.data
    return Faults(data.on_bad_data, data.max_bad_images, data.max_lost_shards)


def safe_flags(config: Config) -> dict[str, Any]:
    """List the flags for config.json: addresses and commands without their secrets, nothing of this machine."""
    return {
        name: redact(value) if name.endswith("_dataset_shards") else value
        for name, value in flags(config).items()
        if name not in UNWRITTEN
    }


def train_loader(config: Config, source: Source | Stream) -> Loader:
    """Build the loader of this host's training batches."""
    augment = config.augment
    return Loader(
        source,
        build_train(
            config.image_shape, augment.random_crop, (augment.crop_scale, 1.0), augment.color_jitter, flip=True
        ),
        batch_size=config.data.train_batch_size, channels=config.data.channels, size=config.image_shape,
        seed=config.seeds.shuffle_seed, shuffle=True, repeats=augment.augment_repeats,
        workers=config.data.train_loader_workers, process_index=jax.process_index(),
        process_count=jax.process_count(), faults=faults_allowed(config),
    )  # fmt: skip


def rows_of(batches: Iterator[Batch]) -> Iterator[dict[str, np.ndarray]]:
    """Turn the loader's batches into what the step reads."""
    for batch in batches:
        yield {"images": batch.images, "valid": batch.valid, "index": batch.index}


def draw_masks(batch, step: jax.Array, *, noise_seed: int, patches: int):
    """Draw the order of the patches of every row of a global batch, a function of (seed, step) alone."""
    noise_key = jax.random.fold_in(jax.random.key(noise_seed), step)
    return {**batch, "order": masking.random(noise_key, batch["images"].shape[0], patches)}


def sample_losses(model: MaskedAutoencoder, batch, turn, *, dropout_seed: int) -> jax.Array:
    """Compute the loss of every sample [B] under its mask; dropout is a function of (seed, turn) alone."""
    dropout_key = jax.random.fold_in(jax.random.key(dropout_seed), turn)
    return model(model.normalize(batch["images"]), batch["order"], dropout_key).loss


def with_weights(state: TrainState, weights: Mapping[str, Any]) -> TrainState:
    """Start from given weights instead of random ones; strict."""
    try:
        check_arrays(state.model, weights)
    except ValueError as error:
        raise ConfigError(f"--pretrained-ckpt: {error}") from None

    def place(path, old):
        new = np.asarray(weights[array_name(path)], old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index])

    return TrainState(state.step, jax.tree_util.tree_map_with_path(place, state.model), state.opt_state)


def run_differences(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """List what differs from an earlier run's config.json and may not change within a run: flags, number of images."""
    if old is None:
        return []
    before, now = ({k: v for k, v in c["flags"].items() if k not in MAY_CHANGE} for c in (old, new))
    changed = differences(before, now)
    if None not in (old["images"], new["images"]) and old["images"] != new["images"]:
        changed.append(f"{old['images']} training images -> {new['images']}")
    return changed


def describe(config: Config, state: TrainState, source: Source | Stream, peak: float, directory: Path) -> str:
    """Say in a few lines what is about to be trained, on what, where."""
    parameters = sum(array.size for array in jax.tree.leaves(nnx.state(state.model, nnx.Param)))
    data, optimization = config.data, config.optimization
    if source.total is None:
        images, epochs = f"{len(source.shards)} shards", ""  # type: ignore[union-attr]
    else:
        seen = optimization.training_steps * data.train_batch_size / config.augment.augment_repeats
        images, epochs = f"{source.total:,} images", f" = {seen / source.total:.1f} epochs"
    return (
        f"model    {parameters / 1e6:.2f} M parameters, {config.encoder.layers} x {config.encoder.dim} encoder, "
        f"{config.mae.dec_layers} x {config.mae.dec_dim} decoder, {precision(config)}\n"
        f"data     {images}, batch {data.train_batch_size}, {optimization.training_steps:,} steps{epochs}\n"
        f"rate     peak {peak:.3g} = {optimization.learning_rate:g} x {data.train_batch_size} / 256\n"
        f"devices  {jax.device_count()} x {jax.devices()[0].device_kind}"
        f"{f' in {jax.process_count()} processes' if jax.process_count() > 1 else ''}, {config.machine.sharding}\n"
        f"run      {directory}"
    )
