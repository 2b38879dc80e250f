"""Time forward and backward of a masked autoencoder with a decoder of cross-attention against the paper's decoder.

    python benchmarks/decoders.py [--rounds 5] [--core 1]

Both have 8 blocks of 512, one core and the same random images; the order changes from round to round. Prints seconds
and the ratio of each round's pair: median, smallest and largest.
"""

import argparse
import os
import statistics
import time

SIZES = {
    "ViT-S/16, batch 16": (16, {"dim": 384, "layers": 12, "heads": 6}),
    "ViT-B/16, batch 8": (8, {"dim": 768, "layers": 12, "heads": 12}),
}
DECODERS = {
    "self": {},
    "cross, a third, last": {"attention": "cross", "inputs": "last", "predict_share": 0.33},
    "cross, a third, all": {"attention": "cross", "inputs": "all", "predict_share": 0.33},
    "cross, all hidden, all": {"attention": "cross", "inputs": "all"},
    "cross, a third, all, 12 blocks": {"attention": "cross", "inputs": "all", "predict_share": 0.33, "layers": 12},
}


def gradient(vit, decoder, batch):
    """Compile the gradient of the loss; return a function that computes it once and gives its seconds of CPU."""
    import jax
    import numpy as np

    from maejax.models import masking
    from maejax.models.build import initial_model
    from maejax.models.description import MAE, Compute, Decoder, ViT

    model = initial_model(MAE(encoder=ViT(**vit), decoder=Decoder(**decoder)), Compute())
    images = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
    order = masking.random(jax.random.key(0), batch, 196)
    compute = jax.jit(jax.value_and_grad(lambda model, images, order: model(images, order).loss.mean()))
    jax.block_until_ready(compute(model, images, order))

    def once():
        begun = time.process_time()
        jax.block_until_ready(compute(model, images, order))
        return time.process_time() - begun

    return once


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--core", type=int, default=1)
    given = arguments.parse_args()
    os.sched_setaffinity(0, {given.core})
    os.environ["JAX_PLATFORMS"] = "cpu"
    for name, (batch, vit) in SIZES.items():
        sides = {side: gradient(vit, decoder, batch) for side, decoder in DECODERS.items()}
        rounds = []
        for number in range(given.rounds):
            order = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
            took = {side: sides[side]() for side in order}
            rounds.append(took)
        for side in sides:
            seconds = statistics.median(took[side] for took in rounds)
            ratios = [took[side] / took["self"] for took in rounds]
            said = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            print(f"{name}: {side}: {seconds:.2f} s, ratio {said}", flush=True)


if __name__ == "__main__":
    main()
