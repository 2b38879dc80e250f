"""Speed of `maejax features` over the bare compiled encoder: the same images, encoder and batches, in turn.

    python benchmarks/features.py [--images 128] [--rounds 5] [--batch-size 16]

The images are arrays, so the difference is the way from a source to a file: reading, cropping, batching, the transfer
to the device, checksums of the weights, and writing. Prints ratios of wall time and of CPU time; other work on the
machine disturbs the latter less.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from maejax.data.sources import open_source
from maejax.evaluation.encoding import encode
from maejax.evaluation.feature_file import write_features
from maejax.models.build import initial_model
from maejax.models.description import ViT


def bare(model, images, batch_size):
    """Encode arrays by the compiled encoder alone, and wait for the last."""
    jax.block_until_ready([encode(model, images[i : i + batch_size], "cls") for i in range(0, len(images), batch_size)])


def timed(call, *args, **options):
    """Call, and return the seconds of wall and of CPU time it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    call(*args, **options)
    return np.array([time.perf_counter() - wall, time.process_time() - cpu])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    model = initial_model(ViT())
    images = np.random.default_rng(0).integers(0, 256, (args.images, 224, 224, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "images.npz", images=images)
        source, path = open_source(f"{folder}/images.npz"), Path(folder) / "features.npz"
        bare(model, images[: args.batch_size], args.batch_size)
        ratios = []
        for _ in range(args.rounds):
            alone = timed(bare, model, images, args.batch_size)
            through = timed(write_features, model, source, path, batch_size=args.batch_size, workers=args.workers)
            ratios.append(alone / through)
            print(
                f"bare {args.images / alone[0]:.1f} images/s, features {args.images / through[0]:.1f}; "
                f"ratio {ratios[-1][0]:.3f} of wall, {ratios[-1][1]:.3f} of CPU time"
            )
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"speed of features over the bare encoder, ViT-B/16, median: {wall:.3f} of wall, {cpu:.3f} of CPU time")


if __name__ == "__main__":
    main()
