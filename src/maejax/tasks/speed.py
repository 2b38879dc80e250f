"""The speed of this machine: of matrix products, and of some steps of the pre-training that is about to be made."""

import time
from collections.abc import Callable
from contextlib import closing

import jax
import jax.numpy as jnp

from maejax.config import Config
from maejax.data.pipeline import AHEAD
from maejax.tasks.checks import precision
from maejax.tasks.fast_forms import choose_forms
from maejax.tasks.images import Sources
from maejax.tasks.pretrain import Pretraining
from maejax.training.mesh import gather, make_mesh, put_rows
from maejax.training.state import FlatState, create_state

SECONDS = 4.0  # of steps that count


def images_per_second(
    config: Config, sources: Sources, seconds: float = SECONDS, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Measure the images per second of real steps on real batches, after compilation; all processes call this together.

    Raises InputError for flags that a run would refuse.
    """
    task = Pretraining(config, sources)
    task.prepare()
    compute, _ = choose_forms(task.config, task.model)
    phase, mesh = task.phases(compute)[-1], make_mesh()
    with jax.set_mesh(mesh), closing(task.open_loader().iterate()) as batches:
        state = FlatState.of(create_state(phase.init, phase.optimizer, mesh, config.machine.sharding))

        def run(steps: int) -> None:
            """Make so many steps."""
            nonlocal state
            for _ in range(steps):
                state, metrics, _ = phase.step(state, put_rows(next(batches), mesh))
                jax.block_until_ready(metrics)

        run(1 + AHEAD)  # compiles, then takes the batches that the loader has prepared meanwhile
        begun = clock()
        run(1)
        more = max(1, int(gather(seconds / max(clock() - begun, 1e-9), mesh)[0]))  # as many in every process
        run(more)
        return (1 + more) * config.data.train_batch_size / (clock() - begun)


def products_per_second(config: Config) -> float:
    """Measure the FLOP/s of matrix products, which training does not reach, on all devices."""
    side = 1024 if jax.default_backend() == "cpu" else 8192
    matrix, multiply = jnp.ones((side, side), precision(config)), jax.jit(jnp.matmul)
    seconds = []
    for _ in range(4):  # the first compiles
        begun = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        seconds.append(time.perf_counter() - begun)
    of_processor = jax.process_count() if jax.default_backend() == "cpu" else jax.device_count()
    return 2 * side**3 / min(seconds) * of_processor
