"""What --watch costs, and whether it ranks the checkpoints of a run as the full probes do. Prints both.

python benchmarks/watch.py --seed 0

The run is that of `maejax demo`, with six checkpoints. The share of time has the compilation of the encoder in it.
"""

import argparse
import sys
import time

import numpy as np
from rich.console import Console
from scipy.stats import spearmanr

from maejax.commands.demo import DemoCommand, evaluate
from maejax.config import with_flags
from maejax.data import fashion_mnist
from maejax.data.packing import pack
from maejax.tasks import pretrain, quality
from maejax.training.log import read_metrics
from maejax.weights.files import load

STOPS = (600, 1200, 1800, 2400, 3000, 3600)


def main() -> None:
    """Train, judge each checkpoint, and print the share of time and the rank correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed, spent = parser.parse_args().seed, 0.0
    demo = DemoCommand(output_dir="runs/watch", name=f"seed-{seed}", seed=seed)
    config, plain = demo.config(), quality.Quality.__call__
    for split in ("train", "test"):
        pack(str(fashion_mnist.path(split)), f"runs/watch/{demo.name}/data/{split}")

    def timed(*given):
        nonlocal spent
        start = time.perf_counter()
        found = plain(*given)
        spent += time.perf_counter() - start
        return found

    quality.Quality.__call__ = timed  # type: ignore[method-assign]
    given = {"training_steps": STOPS[-1], "save_interval": STOPS[0], "watch_interval": STOPS[0]}
    config = with_flags(config, **given, keep_checkpoints=len(STOPS))
    start = time.perf_counter()
    run = pretrain.run(config, Console(quiet=True))
    seconds = time.perf_counter() - start
    if not run.done:
        sys.exit("stopped; the same command continues")
    found = [load(run.directory / "checkpoints" / str(stop)) for stop in STOPS]
    probes = [evaluate(config, model)["pretrained"] for model in found]
    print(f"watching took {spent:.1f} of {seconds:.1f} s, {100 * spent / seconds:.2f} %")
    for name in ("knn", "rank"):
        seen = dict(read_metrics(run.directory / "metrics.jsonl", f"watch/{name}"))
        values = [seen[stop] for stop in STOPS]
        found = {probe: spearmanr(values, [row[probe] for row in probes]).statistic for probe in ("knn", "linear")}
        print(f"watch/{name} {np.round(values, 2)}: rank correlation {found}")


if __name__ == "__main__":
    main()
