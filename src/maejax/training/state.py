"""The train state, how it is born on the mesh, and one step of training."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from maejax.training.mesh import replicated

Batch = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that training changes: the number of steps taken, the model, the optimizer's slots. Nothing random."""

    step: jax.Array
    model: nnx.Module
    opt_state: optax.OptState


class Losses(Protocol):
    """The loss of every sample, [B] float32, of a batch; `turn`, never the same twice in a run, seeds dropout."""

    def __call__(self, model: Any, batch: Batch, turn: jax.Array) -> jax.Array: ...  # noqa: D102


def new_state(init: Callable[[], nnx.Module], optimizer: optax.GradientTransformation) -> TrainState:
    """Make a state at step 0 with a fresh model and fresh slots."""
    model = init()
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model))  # type: ignore[arg-type]


def abstract_state(init: Callable[[], nnx.Module], optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Describe a state on the mesh: shapes, types and shardings, no memory."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(mesh)),
        jax.eval_shape(partial(new_state, init, optimizer)),
    )


def create_state(init: Callable[[], nnx.Module], optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Make a state at step 0, created in its place on the devices rather than moved there."""
    shardings = jax.tree.map(lambda a: a.sharding, abstract_state(init, optimizer, mesh))
    return jax.jit(partial(new_state, init, optimizer), out_shardings=shardings)()


def make_step(
    losses: Losses,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    grad_accum: int = 1,
    draw: Callable[[Batch, jax.Array], Batch] = lambda batch, step: batch,
):
    """Compile `(state, batch) -> (state, metrics)`: the mean loss over the valid rows, its gradient, one update.

    A batch has `images`, `valid` and what else `losses` reads, each with B rows; `draw(batch, step)` adds what is
    random for every row, such as its mask, before the batch is taken apart. With `grad_accum` k it is taken in k
    parts, one after the other, and the gradients are summed before the update: that of the whole batch, up to float
    order. Dropout differs from part to part. Metrics are float32 scalars: `train/loss`, `train/grad_norm`,
    `train/learning_rate`.
    """

    def total(model, batch, turn):
        return jnp.sum(losses(model, batch, turn) * batch["valid"])

    def gradient(model, batch, step):
        if grad_accum == 1:
            return jax.value_and_grad(total)(model, batch, step)
        # Strided, so that every part has its share of every device's rows.
        parts = jax.tree.map(lambda a: a.reshape(-1, grad_accum, *a.shape[1:]).swapaxes(0, 1), batch)

        def add(sums, part):
            batch, turn = part
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(total)(model, batch, turn)), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), model))
        return jax.lax.scan(add, zeros, (parts, step * grad_accum + jnp.arange(grad_accum)))[0]

    def step(state: TrainState, batch: Batch):
        batch = draw(batch, state.step)
        count = jnp.maximum(1, jnp.sum(batch["valid"]))
        loss, grads = jax.tree.map(lambda a: a / count, gradient(state.model, batch, state.step))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.model)  # type: ignore[arg-type]
        metrics = {
            "train/loss": loss,
            "train/grad_norm": optax.tree.norm(grads),
            "train/learning_rate": jnp.asarray(rate(state.step), jnp.float32),
        }
        return TrainState(state.step + 1, optax.apply_updates(state.model, updates), opt_state), metrics  # type: ignore[arg-type]

    return jax.jit(step, donate_argnums=0)
