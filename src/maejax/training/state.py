"""The train state, how it is born on the mesh, and one step of training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from maejax.models.trees import joined, parted
from maejax.ops.platform import target_platform
from maejax.training.mesh import Sharding, gather_unstacked, hold_split, place_state
from maejax.training.optim import choose

Batch = dict[str, jax.Array]
OnNan = Literal["stop", "skip"]

STOP, SAVE, HALT = 0, 1, 2  # what a process may ask of all; HALT: it has no batch, so this step must not count
WISHES = 3

# Without it, the compiler turns a product whose result is split over many chips into a loop of small messages
# (docs/notes/plan.md).
TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that training changes: the number of steps taken, the model, the optimizer's slots. Nothing random."""

    step: jax.Array
    model: nnx.Module
    opt_state: optax.OptState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A state as the list of its arrays, and its tree: to take modules apart and join them costs a host 5 ms a step."""

    arrays: list[jax.Array]
    tree: Any = field(metadata={"static": True})

    @classmethod
    def of(cls, state: TrainState) -> "Packed":
        """Pack a state; the arrays are the same."""
        return cls(*jax.tree.flatten(state))

    @property
    def state(self) -> TrainState:
        """The state whose arrays these are."""
        return jax.tree.unflatten(self.tree, self.arrays)


class Control(NamedTuple):
    """What a step tells every process alike, and the next step: int32 and bool scalars on all devices.

    `asked` int32 [3]: which of STOP, SAVE, HALT some process asked for. `bad`: the loss or the gradient was not finite,
    and no update was made. `halted`: this and all later steps change nothing.
    """

    asked: jax.Array
    bad: jax.Array
    halted: jax.Array


class Losses(Protocol):
    """The loss of every sample, [B] float32, of a batch; `turn`, never the same twice in a run, seeds dropout."""

    def __call__(self, model: Any, batch: Batch, turn: jax.Array) -> jax.Array: ...  # noqa: D102


def new_state(init: Callable[[], nnx.Module], optimizer: optax.GradientTransformation) -> TrainState:
    """Make a state at step 0 with a fresh model and fresh slots."""
    model = init()
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model))  # type: ignore[arg-type]


def abstract_state(
    init: Callable[[], nnx.Module],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    sharding: Sharding = "replicated",
) -> TrainState:
    """Describe a state on the mesh, placed as `place_state` says: shapes, types and shardings, no memory."""
    shapes = jax.eval_shape(partial(new_state, init, optimizer))
    return jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
        shapes,
        place_state(shapes, mesh, sharding),
    )


def create_state(
    init: Callable[[], nnx.Module],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    sharding: Sharding = "replicated",
) -> TrainState:
    """Make a state at step 0, created in its place on the devices rather than moved there."""
    shardings = jax.tree.map(lambda a: a.sharding, abstract_state(init, optimizer, mesh, sharding))
    return jax.jit(partial(new_state, init, optimizer), out_shardings=shardings)()


def make_step(
    losses: Losses,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    grad_accum: int = 1,
    draw: Callable[[Batch, jax.Array], Batch] = lambda batch, step: batch,
    on_nan: OnNan = "stop",
    sharding: Sharding = "replicated",
    frozen: Callable[[Any], bool] = lambda path: False,
    prepare: Callable[[Any, Batch], Batch] = lambda model, batch: batch,
    observe: Callable[[Any, Batch], Any] = lambda model, batch: model,
):
    """Compile `(state, batch) -> (state, metrics, control)`: mean loss over the valid rows, its gradient, one update.

    A state that is `Packed` comes back packed. The compiler's options are those for the mesh that is set, or for this
    machine's devices.

    A batch has `images`, `valid` and what else `losses` reads, each with B rows; `draw(batch, step)` adds what is
    random for every row, such as its mask, before the batch is taken apart. With `grad_accum` k it is taken in k
    parts, one after the other, and the gradients are summed before the update: that of the whole batch, up to float
    order. Dropout differs from part to part. Metrics are float32 scalars: `train/loss`, `train/grad_norm`,
    `train/param_norm` (after the update), `train/learning_rate`.

    A loss or gradient that is not finite changes no weights: with `on_nan` "skip" the step merely counts, with "stop"
    neither it nor any later step does, so that the state stays that before it. `before` is the control of the step
    before, and `asks` [devices, 3] int32 what the processes ask for; both may be left out. `sharding` is that with
    which the state was created.

    Arrays whose path is `frozen` get no gradient and no update; the optimizer must be made `for_trained` of them.
    `prepare(model, batch)` adds what they alone make of the batch, and `observe(model, batch)` gives the model with the
    statistics that it keeps of what it saw; both get the whole batch, and no gradient passes them.
    """

    def share(trained, rest, batch, turn):
        # Each row counts its share of the mean, so that nothing as large as the weights is scaled afterwards.
        model = gather_unstacked(joined(trained, rest))
        return jnp.sum(losses(model, batch, turn) * batch["share"])

    def gradient(trained, rest, batch, step):
        if grad_accum == 1:
            return jax.value_and_grad(share)(trained, rest, batch, step)
        # Strided, so that every part has its share of every device's rows.
        parts = jax.tree.map(lambda a: a.reshape(-1, grad_accum, *a.shape[1:]).swapaxes(0, 1), batch)

        def add(sums, part):
            batch, turn = part
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(share)(trained, rest, batch, turn)), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), trained))
        return jax.lax.scan(add, zeros, (parts, step * grad_accum + jnp.arange(grad_accum)))[0]

    update = optax.with_extra_args_support(optimizer).update

    def step(given: TrainState | Packed, batch: Batch, before: Control | None = None, asks: jax.Array | None = None):
        state = given.state if isinstance(given, Packed) else given
        batch = prepare(state.model, draw(batch, state.step))
        trained: Any
        trained, rest = parted(state.model, frozen)
        batch = {**batch, "share": batch["valid"] / jnp.maximum(1, jnp.sum(batch["valid"]))}
        loss, grads = gradient(trained, rest, batch, state.step)
        grads = hold_split(grads, sharding)
        norm = optax.tree.norm(grads)
        bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm))
        asked = jnp.zeros(WISHES, jnp.int32) if asks is None else asks.max(axis=0)
        halted = (asked[HALT] > 0) | (bad if on_nan == "stop" else False)
        halted = halted if before is None else halted | before.halted
        void = bad | halted
        updates, opt_state = update(grads, state.opt_state, trained, void=void)
        new = observe(joined(optax.apply_updates(trained, updates), rest), batch)
        model, opt_state = choose(void, (state.model, state.opt_state), (new, opt_state))
        metrics = {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/param_norm": optax.tree.norm(nnx.state(model, nnx.Param)),
            "train/learning_rate": jnp.asarray(rate(state.step), jnp.float32),
        }
        kept = hold_split(TrainState(state.step + ~halted, model, opt_state), sharding)
        return Packed.of(kept) if isinstance(given, Packed) else kept, metrics, Control(asked, bad, halted)

    return jax.jit(step, donate_argnums=0, compiler_options=TPU_OPTIONS if target_platform() == "tpu" else None)
