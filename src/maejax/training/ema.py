"""A running average of the weights, kept with the optimizer's slots (Polyak averaging; paper, Table 11: .9999)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import optax

from maejax.models.trees import combine, partition
from maejax.training.state import TrainState


class Averaged(NamedTuple):
    """The optimizer's own slots, and the average of the weights that it trains."""

    inner: Any
    average: Any


def with_average(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Keep average = decay * average + (1 - decay) * weights after every update, from the first weights on."""
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return Averaged(optimizer.init(params), jax.tree.map(lambda a: a.copy(), params))

    def update(updates, state, params=None, **extra):
        updates, inner = optimizer.update(updates, state.inner, params, **extra)
        new = optax.apply_updates(params, updates)  # type: ignore[arg-type]
        average = jax.tree.map(lambda a, n: a + (1 - decay) * (n - a), state.average, new)
        return updates, Averaged(inner, average)

    return optax.GradientTransformationExtraArgs(init, update)


def restart_average(state: TrainState, frozen: Callable[[Any], bool] | None = None) -> TrainState:
    """Begin the average anew at the state's weights, where one is kept; `frozen` as in `make_step`."""
    if not isinstance(state.opt_state, Averaged):
        return state
    trained = state.model if frozen is None else partition(state.model, frozen)[0]
    return replace(state, opt_state=state.opt_state._replace(average=jax.tree.map(lambda a: a.copy(), trained)))


def as_evaluated(state: TrainState) -> TrainState:
    """Give the state whose model is judged: that of the averaged weights, where an average is kept."""
    if not isinstance(state.opt_state, Averaged):
        return state
    return replace(state, model=combine(state.opt_state.average, state.model))
