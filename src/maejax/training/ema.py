"""An exponential moving average of the weights, kept with the optimizer state (paper, Table 11: decay .9999)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import optax

from maejax.models.trees import combine, partition
from maejax.training.state import TrainState


class Averaged(NamedTuple):
    """The state of the optimizer itself, and the average of the weights that it trains."""

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
    """Restart the average, if one is kept, at the state's weights; `frozen` as in `for_trained`."""
    if not isinstance(state.opt_state, Averaged):
        return state
    trained = state.model if frozen is None else partition(state.model, frozen)[0]
    return replace(state, opt_state=state.opt_state._replace(average=jax.tree.map(lambda a: a.copy(), trained)))


def as_evaluated(state: TrainState) -> TrainState:
    """Return the state with the averaged weights, which are evaluated if an average is kept."""
    if not isinstance(state.opt_state, Averaged):
        return state
    return replace(state, model=combine(state.opt_state.average, state.model))
