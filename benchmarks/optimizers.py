"""AdamW against Muon on the demo's images: scores after equal steps, and the seconds of a step. Prints a table.

python benchmarks/optimizers.py --steps 2000 --seeds 0

Everything but the optimizer is the recipe of `maejax demo`, the learning rate too. Steps are timed in turns.
"""

import argparse
import sys
import time

import jax
import numpy as np
from rich.console import Console

from maejax.commands.demo import DemoCommand, evaluate
from maejax.config import Config, with_flags
from maejax.data import fashion_mnist
from maejax.data.packing import pack
from maejax.data.pipeline import Batch
from maejax.tasks import pretrain
from maejax.tasks.checks import compute_of
from maejax.training.log import read_metrics
from maejax.training.mesh import make_mesh, put_rows
from maejax.training.state import create_state

OPTIMIZERS = ("adamw", "muon")
TURNS, STEPS = 9, 20


def configure(optimizer: str, seed: int, steps: int) -> Config:
    """Return the flags of the demo with another optimizer."""
    demo = DemoCommand(output_dir="runs/optimizers", name=f"{optimizer}-{seed}", seed=seed, training_steps=steps)
    return with_flags(demo.config(), optimizer=optimizer)


def train(config: Config) -> dict[str, float]:
    """Train and score the frozen encoder as the demo does; add the loss on the test images."""
    for split in ("train", "test"):
        pack(str(fashion_mnist.path(split)), f"{config.run.output_dir}/{config.run.name}/data/{split}")
    done = pretrain.run(config, Console(quiet=True))
    if not done.done:
        sys.exit("stopped; the same command continues")
    loss = read_metrics(done.directory / "metrics.jsonl", "val/loss")[-1][1]
    scores = evaluate(config, done.model)["pretrained"]
    return {"loss": loss, **{name: scores[name] for name in ("knn", "linear", "linear_100")}}


def time_steps(configs: list[Config]) -> np.ndarray:
    """Return the seconds of a step [turns, configurations], all measured in turns."""
    mesh, runs, rng = make_mesh(), [], np.random.default_rng(0)
    for config in configs:
        init, optimizer, step = pretrain.build_step(config, pretrain.model_config(config), compute_of(config))
        rows = config.data.train_batch_size
        images = rng.integers(0, 256, (rows, *config.image_shape, config.data.channels), np.uint8)
        batch = put_rows(Batch(images, np.zeros(rows, np.int32), np.ones(rows, bool), np.arange(rows)), mesh)
        runs.append((step, batch, create_state(init, optimizer, mesh)))
    seconds = np.zeros((TURNS + 1, len(runs)))
    with jax.set_mesh(mesh):
        for turn in range(len(seconds)):  # the first compiles
            for i, (step, batch, state) in enumerate(runs):
                start = time.perf_counter()
                for _ in range(STEPS):
                    state, *_ = step(state, batch)
                jax.block_until_ready(state)
                seconds[turn, i] = time.perf_counter() - start
                runs[i] = step, batch, state
    return seconds[1:] / STEPS


def main() -> None:
    """Train and time all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    given = parser.parse_args()
    seconds = time_steps([configure(optimizer, 0, given.steps) for optimizer in OPTIMIZERS])
    ratio = seconds[:, 1] / seconds[:, 0]
    print(
        f"a step of Muon takes {np.median(ratio):.2f} times as long, {ratio.min():.2f} to {ratio.max():.2f}", flush=True
    )
    for optimizer in OPTIMIZERS:
        found = [train(configure(optimizer, seed, given.steps)) for seed in given.seeds]
        for name in found[0] if found else ():
            values = [scores[name] for scores in found]
            print(f"{optimizer:6} {name:10} {np.mean(values):8.4f} +- {np.std(values):.4f}", flush=True)


if __name__ == "__main__":
    main()
