"""How long the playground computes for an answer, once compiled: milliseconds of the processor.

python benchmarks/playground.py runs/demo
"""

import sys
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console

from maejax.commands.serve import ServeCommand

ROUNDS = 50


def main() -> None:
    playground, _ = ServeCommand(sys.argv[1]).open(Console(stderr=True))
    playground.warm_up()
    while playground.encode_some(None):
        pass
    rng, patches, encoder = np.random.default_rng(0), playground.encoder.patches, playground.encoder
    pixels = playground.picture(0)["pixels"]
    report(
        "fill",
        lambda i: playground.reconstruct(pixels, rng.permutation(patches)[: 1 + i % (patches - 1)].tolist(), None),
    )
    report("attention", lambda i: playground.attention(pixels, i % encoder.layers, i % encoder.heads, None))
    report("nearest", lambda i: playground.neighbours(pixels, 0, None))


def report(what: str, answer: Callable[[int], object]) -> None:
    answer(0)
    start = time.process_time()
    for i in range(ROUNDS):
        answer(i)
    print(f"{what:10} {1000 * (time.process_time() - start) / ROUNDS:.1f} ms")


if __name__ == "__main__":
    main()
