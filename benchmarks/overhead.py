"""Share of a run's wall time outside the compiled step and the input, at the demo's size: `benchmarks/overhead.py`.

Measures three things in turn: the compiled step alone, on a batch that is on the device; the loop around an empty step,
which is the host's work for a step (batch to device, agreement, metrics, log lines); and the loop around the real step.
Batches lie ready in memory. A share is computed within one turn, since the machine's speed may change. The median over
the turns counts; every other turn runs the loop first.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from maejax.commands.demo import DemoCommand
from maejax.data.pipeline import Batch
from maejax.models.build import initial_model
from maejax.models.description import PLAIN
from maejax.tasks.masks import Masks
from maejax.tasks.pretrain import model_config, sample_losses
from maejax.training.checkpoint import Checkpoints
from maejax.training.consensus import Agreement
from maejax.training.log import RunLog
from maejax.training.loop import Feed, Intervals, RunContext, fit
from maejax.training.memory import keep_freed_memory
from maejax.training.mesh import make_mesh, put_rows
from maejax.training.optim import build_optimizer
from maejax.training.schedule import warmup_cosine
from maejax.training.state import FlatState, create_state, make_step

WARM = 5  # steps before the clock runs


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--turns", type=int, default=10)
    arguments.add_argument("--steps", type=int, default=50, help="of a turn")
    given = arguments.parse_args()
    keep_freed_memory()
    config = DemoCommand().config()
    model, batch_size, mesh = model_config(config), config.data.train_batch_size, make_mesh()
    rate = warmup_cosine(1e-3, 200, 4000)
    optimizer = build_optimizer("adamw", rate, weight_decay=0.05, b2=0.95)
    losses = partial(sample_losses, dropout_seed=0, visible=(model.visible,))
    step = make_step(losses, optimizer, rate, draw=Masks.of(config, model).draw)
    rng = np.random.default_rng(0)
    shape = (batch_size, *model.encoder.image_size, model.encoder.channels)
    images, labels = rng.integers(0, 256, shape, np.uint8), np.full(batch_size, -1, np.int32)
    rows = Batch(images, labels, np.ones(batch_size, bool), np.arange(batch_size))

    first = create_state(partial(initial_model, model, PLAIN, 0), optimizer, mesh)

    def new():
        return jax.tree.map(jnp.copy, first)

    def loop(step_fn):
        """Run the whole loop; return seconds for a step."""
        times = []

        def batches():
            while True:
                times.append(time.perf_counter())
                yield rows

        stop = WARM + given.steps
        with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder) / "checkpoints") as saves:
            log = RunLog(Path(folder), 0, stop, Console(quiet=True))
            with log:
                run = RunContext(0, stop, Intervals(save=10**9, log=50), saves, log)
                fit(new(), step_fn, Feed(batches(), batch_size), run, mesh=mesh)
        return (times[-1] - times[WARM]) / (len(times) - 1 - WARM)

    def alone():
        """Run the compiled step alone; return seconds for a step."""
        state, batch, agreement = FlatState.of(new()), put_rows(rows, mesh), Agreement(mesh)
        control, requests = agreement.first_control(), agreement.requests()
        with jax.set_mesh(mesh):
            for i in range(WARM + given.steps):
                if i == WARM:
                    jax.block_until_ready(state)
                    begun = time.perf_counter()
                state, _, control = step(state, batch, control, requests)
        jax.block_until_ready(state)
        return (time.perf_counter() - begun) / given.steps

    with jax.set_mesh(mesh):
        metrics = jax.eval_shape(step, new(), put_rows(rows, mesh), Agreement(mesh).first_control(), None)[1]

    def do_nothing(state, batch, before, requests):
        return state, {name: batch.images[0, 0, 0, 0].astype("float32") for name in metrics}, before

    nothing = jax.jit(do_nothing, donate_argnums=0)
    found = {"outside the step": [], "if nothing overlapped": []}
    for turn in range(given.turns):
        times = {}
        for what in ("step", "loop") if turn % 2 else ("loop", "step"):
            times[what] = alone() if what == "step" else loop(step)
        host, inside, whole = loop(nothing), times["step"], times["loop"]
        found["outside the step"].append(1 - inside / whole)
        found["if nothing overlapped"].append(host / (inside + host))
        print(
            f"turn {turn + 1}: step alone {1e3 * inside:.2f} ms, host's work {1e3 * host:.2f} ms, "
            f"loop {1e3 * whole:.2f} ms", flush=True,
        )  # fmt: skip
    for name, shares in found.items():
        print(f"{name}: {statistics.median(shares):.1%} of the loop ({min(shares):.1%} to {max(shares):.1%})")


if __name__ == "__main__":
    main()
