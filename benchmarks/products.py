"""The matrix products of ViT-B's linear layers on CPU, XLA's speed over PyTorch's.

    python benchmarks/products.py [--rounds 15] [--cores 2] [--dtype bfloat16]        # needs torch

Each product of a layer's forward and backward pass, for 8 images of 197 tokens. XLA sums bfloat16 in float32, as our
layers ask for. Both sides take turns, and ratios are those of the same round. The last line is the ratio of the sums of
medians. Model code cannot change these.
"""

import argparse
import os
import statistics
import time


def main() -> None:
    """Time the products and print how fast XLA's are over PyTorch's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])

    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    torch.set_num_threads(given.cores)
    rng = np.random.default_rng(0)
    spent = {"jax": 0.0, "torch": 0.0}
    for inputs, outputs in ((768, 2304), (768, 768), (768, 3072), (3072, 768)):
        sizes = ((8, 197, inputs), (8, 197, outputs), (inputs, outputs))
        x, g, weights = (rng.normal(size=size).astype(np.float32) for size in sizes)
        ours = {name: jnp.asarray(value, given.dtype) for name, value in zip("xgw", (x, g, weights), strict=True)}
        peers = {"x": x.reshape(-1, inputs), "g": g.reshape(-1, outputs), "w": weights.T.copy()}
        theirs = {name: torch.from_numpy(value).to(getattr(torch, given.dtype)) for name, value in peers.items()}
        for name, axes, (a, b), peer in (
            ("forward", "btd,de->bte", "xw", lambda x, w: torch.nn.functional.linear(x, w)),
            ("gradient of inputs", "bte,de->btd", "gw", lambda g, w: g @ w),
            ("gradient of weights", "btd,bte->de", "xg", lambda x, g: g.T @ x),
        ):
            product = jax.jit(lambda a, b, axes=axes: jnp.einsum(axes, a, b, preferred_element_type=jnp.float32))
            sides = {
                "jax": lambda: product(ours[a], ours[b]).block_until_ready(),  # noqa: B023
                "torch": lambda: peer(theirs[a], theirs[b]),  # noqa: B023
            }
            times = {side: [] for side in sides}
            for _ in range(given.rounds + 1):  # the first compiles
                for side, run in sides.items():
                    start = time.perf_counter()
                    run()
                    times[side].append(time.perf_counter() - start)
            ratios = [b / a for a, b in zip(times["jax"][1:], times["torch"][1:], strict=True)]
            for side in spent:
                spent[side] += statistics.median(times[side][1:])
            middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
            print(f"{inputs} to {outputs}, {name}: {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)
    print(f"all of a layer: {spent['torch'] / spent['jax']:.2f}")


if __name__ == "__main__":
    main()
