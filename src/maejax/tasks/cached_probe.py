"""Linear probing on features that are computed once, for many learning rates at a time (`--cache-features`)."""

import time
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
from maejax.console import progress
from maejax.data.order import epoch_order
from maejax.data.pipeline import Loader
from maejax.errors import InputError
from maejax.models.classifier import ImageClassifier
from maejax.models.trees import combine, partition
from maejax.tasks.accuracy import Accuracy, score_logits
from maejax.tasks.checks import refuse_ignored
from maejax.tasks.transfer import check_labelled, check_labels
from maejax.training.losses import Features, is_encoder, probe_losses, update_stats
from maejax.training.mesh import put_rows
from maejax.training.mixing import soft_targets
from maejax.training.rundir import write_json
from maejax.training.state import TrainState

FACTORS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of --learning-rate, where --sweep-rates names none
CHUNK = 100  # steps in one call


class Cache(NamedTuple):
    """The features of the first rows of training: features [n, D] float32, labels [n], valid [n]."""

    features: Any
    labels: Any
    valid: Any


class Sweep(NamedTuple):
    """The best rate, the classifier trained with it, the scores of every rate in percent, and what took how long.

    `speed` has seconds and images/s of encoding, and of the heads, where an image counts once for all rates.
    """

    rate: float
    model: ImageClassifier
    scores: dict[float, dict[str, float]]
    speed: dict[str, dict[str, float]]


def check_flags(config: Config) -> None:
    """Check the flags of a probe on cached features. Raises InputError at the first that is wrong."""
    if config.run.mode != "linear":
        raise InputError("--cache-features keeps the features of a frozen encoder: choose --mode linear")
    if not config.data.valid_dataset_shards:
        raise InputError("--cache-features chooses the best learning rate on --valid-dataset-shards: name them")
    if jax.process_count() > 1:
        raise InputError("--cache-features works in one process; leave it out on several")
    refuse_ignored(config, "ema grad_accum random_erasing", "--cache-features would ignore it")


def rates_of(config: Config) -> tuple[float, ...]:
    """List the base learning rates, per 256 images, that are tried."""
    given = config.optimization
    return given.sweep_rates or tuple(round(given.learning_rate * factor, 12) for factor in FACTORS)


def encoder_on(mesh: Mesh) -> Callable[[Any, np.ndarray], np.ndarray]:
    """Build a function `(model, images) -> features [B, D]` that spreads a batch over all devices."""
    encode = jax.jit(lambda model, images: model.features(model.normalize(images)))
    return lambda model, images: np.asarray(encode(model, put_rows(images, mesh)))


def fill_cache(
    model: ImageClassifier, loader: Loader, steps: int, mesh: Mesh, tell: Callable[[int, int], None]
) -> Cache:
    """Encode the batches of the first `steps` steps of a run, as live probing sees them."""
    encode = encoder_on(mesh)
    parts: list[tuple[np.ndarray, ...]] = []
    batches = loader.iterate(0, steps)
    for step, batch in enumerate(batches):
        check_labels(batch.labels, model.config.labels)
        parts.append((encode(model, batch.images), batch.labels.copy(), batch.valid & (batch.labels >= 0)))
        tell(step + 1, steps)
    batches.close()
    return Cache(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def row_order(rows: int, batch_size: int, steps: int, seed: int) -> np.ndarray:
    """List the cached rows that enter each step, int32 [steps, B]: as they came, then in a new order each time."""
    cycles = -(-steps * batch_size // rows)
    orders = [np.arange(rows), *(epoch_order(rows, seed, cycle) for cycle in range(1, cycles))]
    return np.concatenate(orders)[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def sweep(
    model: Any,
    cache: Cache,
    optimizer: optax.GradientTransformation,
    factors: np.ndarray,
    order: np.ndarray,
    labels: int,
    smoothing: float,
    tell: Callable[[int, int], None],
) -> Any:
    """Train one head for every factor on the rate that the optimizer has, all in one vectorised run.

    Returns what of a classifier is trained, with a leading axis [rates]. BatchNorm's statistics depend on the features
    alone, so they are those of live probing too.
    """
    trained, rest = partition(model, is_encoder)
    many = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(factors), *a.shape)), trained)
    states = jax.vmap(lambda t: optimizer.init(combine(t, rest)))(many)
    table = Cache(*(jnp.asarray(column) for column in cache))

    def one(trained: Any, state: Any, factor: jax.Array, batch: Features):
        """Update one head, its rate multiplied by `factor`."""

        def loss(trained):
            losses = probe_losses(combine(trained, rest), batch, jnp.zeros((), jnp.int32))
            return jnp.sum(losses * batch.valid) / jnp.maximum(1, jnp.sum(batch.valid))

        updates, state = optimizer.update(jax.grad(loss)(trained), state, trained)
        new = optax.apply_updates(trained, jax.tree.map(lambda u: factor * u, updates))  # type: ignore[arg-type]
        return partition(update_stats(combine(new, rest), batch), is_encoder)[0], state

    def step(carry, index):
        targets = soft_targets(table.labels[index], labels, smoothing)
        batch = Features(table.features[index], targets, table.valid[index])
        return jax.vmap(partial(one, batch=batch))(*carry, jnp.asarray(factors, jnp.float32)), None  # type: ignore[call-arg]

    run = jax.jit(lambda carry, indices: jax.lax.scan(step, carry, indices)[0], donate_argnums=0)
    carry = (many, states)
    for start in range(0, len(order), CHUNK):
        carry = run(carry, jnp.asarray(order[start : start + CHUNK]))
        tell(min(len(order), start + CHUNK), len(order))
    return carry[0]


def score(model: ImageClassifier, many: Any, evaluator: Accuracy) -> list[dict[str, float]]:
    """Score every head on the validation images, which the encoder sees once; accuracies in percent."""
    rest = partition(model, is_encoder)[1]
    encode = encoder_on(evaluator.mesh)
    found = []
    for batch in evaluator.loader.iterate():
        found.append((encode(model, batch.images), batch.labels.copy(), batch.valid & (batch.labels >= 0)))
    features, labels, valid = (jnp.asarray(np.concatenate(column)) for column in zip(*found, strict=True))

    def one(trained):
        values = score_logits(combine(trained, rest).classify(features), labels, "ce")
        return {name: jnp.sum(jnp.where(valid, value, 0)) for name, value in values.items()}

    sums, count = jax.device_get(jax.jit(jax.vmap(one))(many)), max(1, int(valid.sum()))
    return [
        {
            "val/loss": float(sums["loss"][i]) / count,
            "val/acc1": 100 * float(sums["top1"][i]) / count,
            "val/acc5": 100 * float(sums["top5"][i]) / count,
        }
        for i in range(len(sums["loss"]))
    ]


def write_sweep(directory: Path, found: Sweep) -> None:
    """Write sweep.json into a run's folder; the page of the run draws it."""
    rows = [{"learning_rate": rate, **scores} for rate, scores in found.scores.items()]
    write_json(directory / "sweep.json", {"best": found.rate, "rates": rows, "speed": found.speed})


def probe(
    config: Config,
    console: Console,
    state: TrainState,
    optimizer: optax.GradientTransformation,
    loader: Loader,
    evaluator: Accuracy,
    images: int,
) -> Sweep:
    """Fill the cache, train a head for every rate, and choose the one that validates best.

    `state` has the model to start from; `optimizer` the schedule of `--learning-rate`; `images` are those of an epoch.
    """
    model: Any = state.model
    labels, smoothing = model.config.labels, config.augment.label_smoothing
    batch_size, steps = config.data.train_batch_size, config.optimization.training_steps
    cached = min(steps, -(-images * config.run.cache_features // batch_size))
    began = time.monotonic()
    with progress(console, "encoding", "batches") as tell:
        cache = fill_cache(model, loader, cached, evaluator.mesh, tell)
    check_labelled(loader.source, config.data.train_dataset_shards, bool(cache.valid.any()))
    encoded = time.monotonic()
    console.print(f"cache    {len(cache.features):,} rows, {cache.features.nbytes / 2**20:,.0f} MiB", highlight=False)
    rates = rates_of(config)
    factors = np.array(rates) / config.optimization.learning_rate
    order = row_order(len(cache.features), batch_size, steps, config.seeds.shuffle_seed)
    with progress(console, f"{len(rates)} heads", "steps") as tell:
        many = jax.block_until_ready(sweep(model, cache, optimizer, factors, order, labels, smoothing, tell))
    trained = time.monotonic()
    speed = {"encoding": rate_of(len(cache.features), encoded - began), "heads": rate_of(order.size, trained - encoded)}
    scores = score(model, many, evaluator)
    best = max(range(len(rates)), key=lambda i: (scores[i]["val/acc1"], -rates[i]))  # of equal ones the smaller rate
    chosen = combine(jax.tree.map(lambda a: a[best], many), partition(model, is_encoder)[1])
    return Sweep(rates[best], chosen, dict(zip(rates, scores, strict=True)), speed)


def rate_of(images: int, seconds: float) -> dict[str, float]:
    """Return seconds, and images a second, with the time to compile."""
    return {"seconds": round(seconds, 2), "images_per_second": round(images / max(seconds, 1e-9), 1)}
