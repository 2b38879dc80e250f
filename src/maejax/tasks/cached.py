"""Linear probing from cached features: the encoder once, then the heads of a whole sweep of rates together."""

import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from maejax import __version__
from maejax.config import Config, ConfigError
from maejax.data.augment import build_eval
from maejax.data.layout import Numbered
from maejax.data.pipeline import Loader
from maejax.data.shards import Source, open_source
from maejax.evaluate.feature_file import fingerprint
from maejax.evaluate.plot import draw_plot
from maejax.interop.run import initial_model
from maejax.interop.transfer import NEW
from maejax.models.arrays import joined, parted
from maejax.tasks.classes import check_labels
from maejax.tasks.classify import Task, prepare
from maejax.tasks.flags import refuse_ignored, run_differences, safe_flags
from maejax.tasks.training import (
    Trained,
    configured_optimizer,
    faults_allowed,
    run_directory,
    train_loader,
    with_weights,
)
from maejax.training.checkpoint import Checkpoints
from maejax.training.classification import encode_features, is_encoder
from maejax.training.errors import RunError
from maejax.training.log import RunLog
from maejax.training.mesh import make_mesh, put_batch
from maejax.training.optim import for_trained
from maejax.training.rundir import best_path, checkpoints_path, open_run, read_config, write_json
from maejax.training.schedule import peak_rate, warmup_cosine
from maejax.training.state import TrainState, create_state
from maejax.training.sweep import Features, Sweep

CACHED = "features that are made beforehand do not change from step to step"


def run(config: Config, console: Console) -> Trained:
    """Probe from cached features: writes sweep.json, sweep.png, and checkpoints of the best rate's classifier.

    Cached epochs are the first of a live run, image by image; a run of no more epochs than these gives its heads.

    Raises:
        ConfigError, DataError, RunError: the input is wrong.

    """
    check_cached(config)
    task = prepare(config)
    if not isinstance(task.train, Source):
        task = task._replace(train=open_source(config.data.train_dataset_shards, cache_dir=config.data.cache_dir))
    directory, optimization, batch_size = run_directory(config), config.optimization, config.data.train_batch_size
    written = {
        "maejax": __version__, "flags": safe_flags(config), "model": task.taken.arguments, "images": task.train.total,
        "classes": task.train.classes,
    }  # fmt: skip
    differences = run_differences(read_config(directory), written)
    done = open_run(directory, written, differences=differences, resume=config.run.resume)
    bases = np.array(config.transfer.sweep or [optimization.learning_rate])
    sweep = Sweep(
        lambda rate: for_trained(configured_optimizer(config, rate), is_encoder),
        warmup_cosine(1.0, optimization.warmup_steps, optimization.training_steps),
        np.array([peak_rate(base, batch_size) for base in bases]),
        labels=task.labels, smoothing=config.augment.label_smoothing, criterion=config.augment.criterion,
    )  # fmt: skip
    model: Any = starting_model(config, task)
    if done:
        console.print(f"{directory} is finished: see {directory / 'sweep.json'}", highlight=False)
        return Trained(directory, TrainState(jnp.asarray(done), model, None), True)

    console.print(f"weights  {task.taken.said}", highlight=False)
    start = time.monotonic()
    train, valid = (cached(config, task, model, directory, side, console) for side in ("train", "valid"))
    encoded = time.monotonic()
    head, encoder = parted(model, is_encoder)
    states = sweep.begin(head)
    order = Numbered(
        task.train, batch_size=batch_size, rows=range(batch_size), repeats=1, seed=config.seeds.shuffle_seed,
        shuffle=True,
    )  # fmt: skip

    def places(step: int) -> np.ndarray:
        epochs, index = order.numbers(step)
        return epochs % config.transfer.cached_epochs * len(task.train) + index

    found: list[tuple[int, np.ndarray, np.ndarray]] = []  # step, losses [R], sums [R, 4]
    best, best_accuracy = None, -1.0
    for first, last in stretches(optimization.training_steps, config.run.eval_interval):
        states, losses = sweep.train(states, train, np.stack([places(step) for step in range(first, last)]))
        sums = sweep.measure(states, valid, config.data.valid_batch_size)
        found.append((last, losses[:, -1], sums))
        right = sums[:, 1] / np.maximum(1, sums[:, 0])
        console.print(
            f"step {last}/{optimization.training_steps}  best {100 * right.max():.2f} % at {bases[right.argmax()]:g}",
            highlight=False,
        )
        if right.max() > best_accuracy:
            best_accuracy, best = right.max(), (last, int(right.argmax()), states)
    assert best is not None  # there is a step
    seconds = {"encoding": round(encoded - start, 1), "heads": round(time.monotonic() - encoded, 1)}
    step, chosen, states_then = best
    report = describe_sweep(bases, found, chosen, step, seconds, batch_size)
    write_json(directory / "sweep.json", report)
    points = [(entry["learning_rate"], entry["acc1/best"]) for entry in report["rates"]]
    draw_plot(points, "base learning rate", "top-1 in percent").save(directory / "sweep.png")
    with RunLog(directory, 0, optimization.training_steps, Console(quiet=True)) as log:
        so_far = -1.0
        for at, losses, sums in found:
            count, top1, top5, loss = sums[chosen]
            so_far = max(so_far, 100 * top1 / count)
            log.write(at, {
                "train/loss": float(losses[chosen]), "val/loss": loss / count, "val/acc1": 100 * top1 / count,
                "val/acc5": 100 * top5 / count, "val/acc1/best": so_far,
            })  # fmt: skip
    for folder, at, then in ((best_path(directory), step, states_then),
                             (checkpoints_path(directory), optimization.training_steps, states)):  # fmt: skip
        one = jax.tree.map(lambda a: a[chosen], then)
        state = TrainState(one.step, joined(one.model, encoder), one.opt_state)
        with Checkpoints(folder, 1) as checkpoints:
            checkpoints.save(state, at)
    console.print(
        f"best base rate {bases[chosen]:g}: top-1 {100 * best_accuracy:.2f} % at step {step}; encoding took "
        f"{seconds['encoding']} s, {len(bases)} heads {seconds['heads']} s; see {directory / 'sweep.png'}",
        highlight=False,
    )
    return Trained(directory, state, True)


def check_cached(config: Config) -> None:
    """Refuse flags that cached features cannot obey.

    Raises:
        ConfigError: with the first of them.

    """
    neutral = {"mixup": 0, "cutmix": 0, "random_erasing": 0, "augment_repeats": 1, "ema": 0, "export_msgpack": False}
    refuse_ignored(config, neutral, CACHED)
    if config.transfer.cached_epochs < 1:
        raise ConfigError(f"--cached-epochs {config.transfer.cached_epochs}: give at least 1")
    if any(rate <= 0 for rate in config.transfer.sweep):
        raise ConfigError("--sweep takes base learning rates above 0")
    if not config.data.valid_dataset_shards:
        raise ConfigError("--cache-features needs --valid-dataset-shards, by which the best rate is chosen")
    if jax.process_count() > 1:
        raise ConfigError("--cache-features runs in one process; the heads take minutes on one device")


def starting_model(config: Config, task: Task) -> Any:
    """Make the classifier whose head is to be trained."""
    init = partial(initial_model, task.taken.arguments, config.seeds.init_seed, folded=False)
    optimizer = for_trained(configured_optimizer(config, lambda step: 0.0), is_encoder)
    state = create_state(init, optimizer, jax.make_mesh((1,), ("data",), devices=jax.local_devices()[:1]))
    return (with_weights(state, task.taken.arrays, NEW) if task.taken.arrays else state).model


def stretches(steps: int, interval: int) -> Iterable[tuple[int, int]]:
    """Cut the training into stretches that end with a validation."""
    interval = interval or steps
    return [(first, min(first + interval, steps)) for first in range(0, steps, interval)]


def cached(config: Config, task: Task, model: Any, directory: Path, side: str, console: Console) -> Features:
    """Encode one side of the data, or read what an earlier call with the same settings has left.

    Of "train" there are --cached-epochs passes, one after the other, augmented as in the first epochs of a live run.
    """
    path, source = directory / "features", task.train if side == "train" else task.valid
    assert isinstance(source, Source)
    augment = config.augment
    recipe = {
        "encoder": fingerprint(model.encoder), "pooling": config.encoder.pooling, "images": len(source),
        "first": source.keys[0], "last": source.keys[-1], "size": list(config.image_shape),
        "mean": list(task.pixels.mean), "std": list(task.pixels.std),
    }  # fmt: skip
    if side == "train":
        recipe |= {
            "passes": config.transfer.cached_epochs, "seed": config.seeds.shuffle_seed, "crop": augment.random_crop,
            "scale": augment.crop_scale, "jitter": augment.color_jitter, "policy": augment.auto_augment,
            "batch": config.data.train_batch_size,
        }  # fmt: skip
    else:
        recipe |= {"ratio": augment.test_crop_ratio}
    try:
        known = json.loads((path / f"{side}.json").read_text())
    except (OSError, ValueError):
        known = None
    if known != recipe:
        passes = config.transfer.cached_epochs if side == "train" else 1
        console.print(f"encoding {passes} x {len(source):,} images ({side})", highlight=False)
        x, used = encode(config, task, model, source, passes, train=side == "train")
        try:
            path.mkdir(exist_ok=True)
            np.save(path / f"{side}.npy", x)
            np.save(path / f"{side}-used.npy", used)
            write_json(path / f"{side}.json", recipe)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}") from None
    x, used = np.load(path / f"{side}.npy"), np.load(path / f"{side}-used.npy")
    labels = np.tile(source.labels, len(x) // len(source))
    return Features(jnp.asarray(x), jnp.asarray(np.maximum(labels, 0)), jnp.asarray(used & (labels >= 0)))


def encode(
    config: Config, task: Task, model: Any, source: Source, passes: int, *, train: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Encode every image `passes` times; returns features float32 [passes * n, D], and which of them could be read."""
    count, mesh = len(source), make_mesh()
    if train:
        loader = train_loader(config, source, task.transform)
    else:
        loader = Loader(
            source, build_eval(config.image_shape, config.augment.test_crop_ratio),
            batch_size=config.data.valid_batch_size, channels=config.data.channels, size=config.image_shape,
            shuffle=False, workers=config.data.valid_loader_workers, faults=faults_allowed(config),
        )  # fmt: skip
    parts = config.optimization.grad_accum if train else 1
    placed = jax.tree.map(partial(_everywhere, mesh), model)
    encoder: Callable = jax.jit(lambda model, batch: encode_features(model, batch, parts=parts)["features"])
    x, used = np.zeros((passes * count, model.encoder.dim), np.float32), np.zeros(passes * count, bool)
    batches = loader.iterate(0, -(-passes * count // loader.batch_size))
    with jax.set_mesh(mesh):
        for number, batch in enumerate(batches):
            places = number * loader.batch_size + np.arange(loader.batch_size)
            places = np.where(batch.index >= 0, places // count * count + batch.index, passes * count)
            kept = places < passes * count
            features = np.asarray(encoder(placed, put_batch({"images": batch.images}, mesh)))
            x[places[kept]], used[places[kept]] = features[kept], batch.valid[kept]
            check_labels(batch.labels, task.labels)
    return x, used


def _everywhere(mesh, array: jax.Array) -> jax.Array:
    return jax.device_put(np.asarray(array), jax.NamedSharding(mesh, jax.P()))


def describe_sweep(
    bases: np.ndarray, found: list[tuple[int, np.ndarray, np.ndarray]], chosen: int, step: int,
    seconds: dict[str, float], batch_size: int,
) -> dict[str, Any]:  # fmt: skip
    """Collect what sweep.json holds: for every base rate its last and its best accuracy, in percent."""
    steps = [at for at, _, _ in found]
    sums = np.stack([each for _, _, each in found])  # [evaluations, R, 4]
    mean = sums[..., 1:] / np.maximum(1, sums[..., :1])
    rates = []
    for i, base in enumerate(bases.tolist()):
        at = int(mean[:, i, 0].argmax())
        rates.append({
            "learning_rate": base, "peak": peak_rate(base, batch_size), "acc1": 100 * mean[-1, i, 0],
            "acc5": 100 * mean[-1, i, 1], "loss": mean[-1, i, 2], "acc1/best": 100 * mean[at, i, 0],
            "step/best": steps[at],
        })  # fmt: skip
    return {
        "best": {"learning_rate": float(bases[chosen]), "step": step}, "rates": rates, "seconds": seconds,
        "validation_images": int(sums[0, 0, 0]),
    }  # fmt: skip
