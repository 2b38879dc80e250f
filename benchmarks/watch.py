"""What --watch and report.html cost, and whether --watch ranks the checkpoints of a run as the full probes do.

python benchmarks/watch.py --seed 0

The run is that of `maejax demo`, with six checkpoints. The shares of time have the compilation of the encoder in them.
"""

import argparse
import functools
import sys
import time

import numpy as np
from rich.console import Console
from scipy.stats import spearmanr

from maejax.commands.demo import DemoCommand, evaluate
from maejax.config import with_flags
from maejax.data import fashion_mnist
from maejax.data.packing import pack
from maejax.pages import run_page
from maejax.tasks import pretrain, quality
from maejax.training.log import read_metrics
from maejax.weights.files import load

STOPS = (600, 1200, 1800, 2400, 3000, 3600)


def main() -> None:
    """Train, judge each checkpoint, and print the share of time and the rank correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    demo = DemoCommand(output_dir="runs/watch", name=f"seed-{seed}", seed=seed)
    config, spent = demo.config(), {"watching": 0.0, "report.html": 0.0}
    for split in ("train", "test"):
        pack(str(fashion_mnist.path(split)), f"runs/watch/{demo.name}/data/{split}")

    def timed(name, plain):
        @functools.wraps(plain)
        def call(*given):
            start = time.perf_counter()
            found = plain(*given)
            spent[name] += time.perf_counter() - start
            return found

        return call

    quality.Quality.__call__ = timed("watching", quality.Quality.__call__)  # type: ignore[method-assign]
    run_page.write_run_page = timed("report.html", run_page.write_run_page)
    given = {"training_steps": STOPS[-1], "save_interval": STOPS[0], "watch_interval": STOPS[0]}
    config = with_flags(config, **given, keep_checkpoints=len(STOPS))
    start = time.perf_counter()
    run = pretrain.run(config, Console(quiet=True))
    seconds = time.perf_counter() - start
    if not run.done:
        sys.exit("stopped; the same command continues")
    found = [load(run.directory / "checkpoints" / str(stop)) for stop in STOPS]
    probes = [evaluate(config, model)["pretrained"] for model in found]
    for name, taken in spent.items():
        print(f"{name} took {taken:.1f} of {seconds:.1f} s, {100 * taken / seconds:.2f} %")
    for name in ("knn", "rank"):
        seen = dict(read_metrics(run.directory / "metrics.jsonl", f"watch/{name}"))
        values = [seen[stop] for stop in STOPS]
        found = {probe: spearmanr(values, [row[probe] for row in probes]).statistic for probe in ("knn", "linear")}
        print(f"watch/{name} {np.round(values, 2)}: rank correlation {found}")


if __name__ == "__main__":
    main()
