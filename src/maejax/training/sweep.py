"""Heads of one linear probe at many learning rates, trained together on features that were made beforehand."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maejax.models.classifier import Classifier
from maejax.training.classification import Criterion, count_right, is_encoder, observe_features, probe_losses
from maejax.training.mixing import soft_targets
from maejax.training.state import TrainState, make_step

CHUNK = 50  # steps that the device takes at a call


class Features(NamedTuple):
    """Features [n, D] float32, their labels int32 [n], and which of them count, bool [n]."""

    x: jax.Array
    labels: jax.Array
    used: jax.Array


class Sweep:
    """Trains as many copies of a head as there are peak rates, each exactly as a live probe of that rate would be.

    Args:
        optimizer: makes it for a schedule of the learning rate; see `for_trained`.
        unit: the schedule of the rate, with a peak of 1.
        peaks: peak rates, R of them.
        labels, smoothing, criterion: what the loss is made of.

    """

    def __init__(
        self, optimizer: Callable[[optax.Schedule], optax.GradientTransformation], unit: optax.Schedule,
        peaks: np.ndarray, *, labels: int, smoothing: float, criterion: Criterion,
    ):  # fmt: skip
        self.peaks = jnp.asarray(peaks, jnp.float32)
        self._optimizer, self._unit, self._labels = optimizer, unit, labels
        self._smoothing, self._criterion = smoothing, criterion
        self._train = jax.jit(jax.vmap(self._train_one, in_axes=(0, 0, None, None)))
        self._right = jax.jit(jax.vmap(self._right_one, in_axes=(0, None)))

    def begin(self, head: Classifier) -> TrainState:
        """Make the state of all copies, R before every array, of a classifier without its encoder's arrays."""
        state = TrainState(jnp.zeros((), jnp.int32), head, self._optimizer(self._unit).init(head))  # type: ignore[arg-type]
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (len(self.peaks), *a.shape)), state)

    def train(self, states: TrainState, cache: Features, rows: np.ndarray) -> tuple[TrainState, np.ndarray]:
        """Take a step for every batch of `rows` int [S, B], places in the cache; returns the losses [R, S] too."""
        losses = []
        for start in range(0, len(rows), CHUNK):
            states, loss = self._train(states, self.peaks, cache, jnp.asarray(rows[start : start + CHUNK], jnp.int32))
            losses.append(np.asarray(loss))
        return states, np.concatenate(losses, axis=1)

    def measure(self, states: TrainState, cache: Features, batch_size: int) -> np.ndarray:
        """Measure all copies: [R, 4] as `count_right` sums them up."""
        sums = np.zeros((len(self.peaks), 4))
        for start in range(0, len(cache.x), batch_size):
            part = jax.tree.map(lambda a, start=start: a[start : start + batch_size], cache)
            sums += np.asarray(self._right(states.model, part))
        return sums

    def _train_one(self, state: TrainState, peak: jax.Array, cache: Features, rows: jax.Array) -> Any:
        def rate(step):
            return peak * self._unit(step)

        # A rate at which the loss overflows must not hold up the others.
        step = make_step(
            partial(probe_losses, criterion=self._criterion), self._optimizer(rate), rate, on_nan="skip",
            frozen=is_encoder, observe=observe_features,
        )  # fmt: skip

        def take(state: TrainState, places: jax.Array):
            batch = {
                "features": cache.x[places], "valid": cache.used[places],
                "targets": soft_targets(cache.labels[places], self._labels, self._smoothing),
            }  # fmt: skip
            state, metrics, _ = step(state, batch)
            return state, metrics["train/loss"]

        return jax.lax.scan(take, state, rows)

    def _right_one(self, model: Classifier, part: Features) -> jax.Array:
        return count_right(model.classify(part.x), part.labels, part.used, self._criterion)
