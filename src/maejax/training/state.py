"""The train state, its creation on the mesh, and one step of training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from maejax.models.trees import array_name, combine, named_arrays, partition
from maejax.ops.platform import target_platform
from maejax.training.mesh import Sharding, constrain, gather_unstacked, state_sharding
from maejax.training.optim import select

OnNan = Literal["stop", "skip"]
Init = Callable[[], nnx.Module]
Optimizer = optax.GradientTransformation

STOP, SAVE, HALT = 0, 1, 2  # what a process may request of all; HALT: it has no batch, so this step must not count
REQUESTS = 3

# Without the first, the compiler turns a product that is split over many chips into a loop of small messages
# (docs/notes/plan.md). Without the second, it makes one product of those of queries, keys and values, and copies each.
OPTIONS = {
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
    "gpu": {"xla_gpu_dot_merger_threshold_mb": "0"},
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that training changes: the number of steps taken, the model, the optimizer state. Nothing random."""

    step: jax.Array
    model: nnx.Module
    opt_state: optax.OptState


class Control(NamedTuple):
    """Results of a step that are the same in every process, for the loop and the next step.

    `requested` int32 [3]: which of STOP, SAVE, HALT some process requested. `bad`: the loss or the gradient was not
    finite, and no update was made. `halted`: this and all later steps change nothing. All lie on every device.
    """

    requested: jax.Array
    bad: jax.Array
    halted: jax.Array


def new_state(init: Init, optimizer: Optimizer) -> TrainState:
    """Build a state at step 0 with a fresh model and a fresh optimizer state."""
    model = init()
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model))  # type: ignore[arg-type]


_new_state = jax.jit(new_state, static_argnums=(0, 1))  # traced once for both functions below


def abstract_state(init: Init, optimizer: Optimizer, mesh: Mesh, sharding: Sharding = "replicated") -> TrainState:
    """Describe a state on the mesh by shapes, types and shardings (see `state_sharding`); takes no memory."""
    shapes = _new_state.eval_shape(init, optimizer)
    places = state_sharding(shapes, mesh, sharding)
    return jax.tree.map(lambda a, to: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=to), shapes, places)


def create_state(init: Init, optimizer: Optimizer, mesh: Mesh, sharding: Sharding = "replicated") -> TrainState:
    """Build a state at step 0 in its place on the devices, rather than move it there."""
    places = state_sharding(_new_state.eval_shape(init, optimizer), mesh, sharding)
    return jax.jit(new_state, static_argnums=(0, 1), out_shardings=places)(init, optimizer)


def with_slots(state: TrainState, optimizer: Optimizer, mesh: Mesh, sharding: Sharding = "replicated") -> TrainState:
    """Extend a state for an optimizer of more arrays: slots of the same names stay, all others start anew."""
    init = optimizer.init
    places = state_sharding(jax.eval_shape(init, state.model), mesh, sharding)  # type: ignore[arg-type]
    fresh, old = jax.jit(init, out_shardings=places)(state.model), named_arrays(state.opt_state)
    slots = jax.tree_util.tree_map_with_path(lambda path, array: old.get(array_name(path), array), fresh)
    return TrainState(state.step, state.model, slots)


@dataclass(frozen=True)
class Frozen:
    """The part of a model that a step does not train: arrays for whose path `holds` is true. No gradient passes it.

    The optimizer must be made `for_trained` of it. `prepare(model, batch)` adds what this part computes from the whole
    batch. `update_stats(model, batch)` returns the model with new running statistics.
    """

    holds: Callable[[Any], bool] = lambda path: False
    prepare: Callable[[Any, Any], Any] = lambda model, batch: batch
    update_stats: Callable[[Any, Any], Any] = lambda model, batch: model


def make_step(
    losses: Callable[[Any, Any, jax.Array], jax.Array],
    optimizer: Optimizer,
    rate: optax.Schedule,
    *,
    grad_accum: int = 1,
    draw: Callable[[Any, jax.Array], Any] = lambda batch, step: batch,
    on_nan: OnNan = "stop",
    sharding: Sharding = "replicated",
    frozen: Frozen | None = None,
):
    """Compile `(state, batch, control, requests) -> (state, metrics, control)`, one update of a state.

    The loss is the mean over the valid rows of `losses(model, batch, microstep)`, [B] float32. `microstep` is the same
    only once in a run, and seeds dropout. `draw(batch, step)` first adds what is random for every row, such as masks. A
    batch is a pytree of arrays [B, ...] with a field `valid`.

    With `grad_accum` k the batch is taken in k parts, one after the other, and the gradients are summed: they are
    those of the whole batch, up to float order. Metrics are float32 scalars: `train/loss`, `train/grad_norm`,
    `train/param_norm` (after the update), `train/learning_rate`.

    A loss or gradient that is not finite changes no weights: with `on_nan` "skip" the step merely counts. With "stop"
    neither it nor any later step does, so that the state stays that before it. `control` is that of the step before,
    and `requests` int32 [devices, 3] are those of all processes; both may be left out. `sharding` is that of the state.
    """
    update, frozen = optax.with_extra_args_support(optimizer).update, frozen or Frozen()

    def step(state: TrainState, batch: Any, before: Control | None = None, requests: jax.Array | None = None):
        """Compute one update of a state."""
        batch = frozen.prepare(state.model, draw(batch, state.step))
        trained: Any
        trained, rest = partition(state.model, frozen.holds)
        loss, grads = mean_gradient(losses, trained, rest, batch, state.step, grad_accum)
        grads = constrain(grads, sharding)
        norm = optax.tree.norm(grads)
        bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm))
        requested = jnp.zeros(REQUESTS, jnp.int32) if requests is None else requests.max(axis=0)
        halted = (requested[HALT] > 0) | (bad if on_nan == "stop" else False)
        halted = halted if before is None else halted | before.halted
        skip = bad | halted
        updates, opt_state = update(grads, state.opt_state, trained, skip=skip)
        new = frozen.update_stats(combine(optax.apply_updates(trained, updates), rest), batch)
        model, opt_state = select(skip, (state.model, state.opt_state), (new, opt_state))
        metrics = {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/param_norm": optax.tree.norm(nnx.state(model, nnx.Param)),
            "train/learning_rate": jnp.asarray(rate(state.step), jnp.float32),
        }
        kept = constrain(TrainState(state.step + ~halted, model, opt_state), sharding)
        return kept, metrics, Control(requested, bad, halted)

    return compile_step(step)


def mean_gradient(losses: Callable, trained: Any, rest: Any, batch: Any, step: jax.Array, parts: int):
    """Compute the mean loss over the valid rows of a batch, taken in `parts`, and its gradient by `trained`."""

    def weighted_loss(trained, batch, weight, microstep):
        # Each row has its weight in the mean, so that nothing as large as the parameters is scaled afterwards.
        model = gather_unstacked(combine(trained, rest))
        return jnp.sum(losses(model, batch, microstep) * weight)

    weight = batch.valid / jnp.maximum(1, jnp.sum(batch.valid))
    if parts == 1:
        return jax.value_and_grad(weighted_loss)(trained, batch, weight, step)
    # Strided, so that every part has as many of every device's rows.
    split = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), (batch, weight))

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, jax.value_and_grad(weighted_loss)(trained, *part)), None

    zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), trained))
    return jax.lax.scan(add, zeros, (*split, step * parts + jnp.arange(parts)))[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlatState:
    """A state as a list of its arrays: to flatten and rebuild its modules takes a host 5 ms at every step."""

    arrays: list[jax.Array]
    tree: Any = field(metadata={"static": True})

    @classmethod
    def of(cls, state: TrainState) -> "FlatState":
        """Flatten a state; the arrays are the same."""
        return cls(*jax.tree.flatten(state))

    @property
    def state(self) -> TrainState:
        """The state of these arrays."""
        return jax.tree.unflatten(self.tree, self.arrays)


def compile_step(update: Callable):
    """Compile a step for the mesh that is set, or for this machine's devices. It also takes a `FlatState`."""

    def step(state, *more):
        if not isinstance(state, FlatState):
            return update(state, *more)
        new, metrics, control = update(state.state, *more)
        return FlatState.of(new), metrics, control

    return jax.jit(step, donate_argnums=0, compiler_options=OPTIONS.get(target_platform()))
