"""Quality of the shuffling of streams, against an emulation of webdataset's shard shuffle and sample buffer.

    python benchmarks/shuffle.py

Each row is one layout of shards, `sorted` by class or mixed before they were packed. Three numbers, over all images:

- rank: correlation between the positions of the images in the second and the third epoch; 0 is perfect.
- within: the same after the mean position of each shard is taken off, so that of the images within shards.
- mixing: classes in windows of 256 consecutive images, as the number a perfect shuffle of the whole set has in such a
  window; 1 is perfect.

The emulation has one worker, as the order of several is not fixed: shards in random order, and a buffer of 1,000 images
from which one is drawn for every image that comes in, filled before the first is drawn (webdataset's `shuffle(1000)`).
"""

import argparse
import os

import numpy as np

from maejax.data.batch_plan import BatchConfig
from maejax.data.faults import Faults
from maejax.data.lanes import Lanes
from maejax.data.listing import ByteRange, Sample
from maejax.data.stream import LocalShard, Stream
from maejax.storage.retry import RetryPolicy

CLASSES, WINDOW, BUFFER = 1000, 256, 1000


def lanes_order(shards: np.ndarray, batch_size: int, epochs: int, seed: int) -> list[np.ndarray]:
    """Image numbers [n] in the order of each epoch; `shards` [S, n / S] holds the numbers in each shard."""
    made = [
        LocalShard(str(s), [Sample("", ByteRange("", 0, 0), int(i)) for i in shard]) for s, shard in enumerate(shards)
    ]
    stream = Stream(made, folder=None, keep=False, patience=RetryPolicy())  # type: ignore[arg-type]
    lanes = Lanes(stream, BatchConfig(batch_size, seed=seed), Faults())
    steps = -(-shards.size * epochs // batch_size)
    with lanes.plans(0, steps, None) as plans:
        labels = np.concatenate([plan.labels for plan in plans])
    # Rows of a batch stand lane by lane, but enter the model together: within a batch their order says nothing.
    rng = np.random.default_rng(seed)
    labels = np.concatenate([rng.permutation(labels[i : i + batch_size]) for i in range(0, len(labels), batch_size)])
    return [labels[e * shards.size : (e + 1) * shards.size] for e in range(epochs)]


def buffer_order(shards: np.ndarray, epochs: int, seed: int) -> list[np.ndarray]:
    """Do the same as webdataset: shards shuffled, then a buffer of 1,000 images."""
    rng = np.random.default_rng(seed)
    orders = []
    for _ in range(epochs):
        buffer: list[int] = []
        out: list[int] = []
        for image in shards[rng.permutation(len(shards))].ravel().tolist():
            buffer.append(image)
            if len(buffer) > BUFFER:
                k = int(rng.integers(len(buffer)))
                buffer[k], buffer[-1] = buffer[-1], buffer[k]
                out.append(buffer.pop())
        out += rng.permutation(buffer).tolist()
        orders.append(np.array(out))
    return orders


def rank(orders: list[np.ndarray], shard_of: np.ndarray) -> float:
    """Correlation of the positions in the last two epochs, less the means of the shards."""
    n = len(shard_of)
    both = []
    for order in orders[-2:]:
        position = np.full(n, np.nan)
        position[order[::-1]] = np.arange(len(order))[::-1]
        mean = np.array([np.nanmean(position[shard_of == s]) for s in range(shard_of.max() + 1)])
        both.append(position - mean[shard_of])
    seen = ~np.isnan(both[0] + both[1])
    return float(np.corrcoef(both[0][seen], both[1][seen])[0, 1])


def mixing(order: np.ndarray, class_of: np.ndarray) -> float:
    """Share of the classes that a perfect shuffle would show in a window of 256."""

    def classes(labels):
        windows = labels[: len(labels) // WINDOW * WINDOW].reshape(-1, WINDOW)
        return np.mean([len(np.unique(window)) for window in windows])

    return float(classes(class_of[order]) / classes(class_of[np.random.default_rng(0).permutation(len(class_of))]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    print(f"seeds 0..{seeds - 1}, medians; numpy {np.__version__}, {os.uname().machine}")
    print("                                |        rank      |      within      |      mixing")
    print("shards    images    order batch |   lanes  buffer  |   lanes  buffer  |   lanes  buffer")
    for count, each, batch_size in ((256, 500, 1024), (64, 1000, 256), (8, 2000, 256), (3, 4000, 256), (1, 20000, 256)):
        for layout in ("mixed", "sorted"):
            n = count * each
            class_of = np.sort(np.arange(n) % CLASSES)
            if layout == "mixed":
                class_of = np.random.default_rng(9).permutation(class_of)
            shards = np.arange(n).reshape(count, each)
            shard_of = np.repeat(np.arange(count), each)
            rows = []
            for seed in range(seeds):
                pair = lanes_order(shards, batch_size, 3, seed), buffer_order(shards, 3, seed)
                rows.append(
                    [rank(orders, np.zeros(n, int)) for orders in pair]
                    + [rank(orders, shard_of) for orders in pair]
                    + [np.mean([mixing(order, class_of) for order in orders]) for orders in pair]
                )
            cells = "  | ".join(f"{ours:8.3f}{theirs:8.3f}" for ours, theirs in np.median(rows, axis=0).reshape(3, 2))
            print(f"{count:6} {n:9,} {layout:>8} {batch_size:5} | {cells}")


if __name__ == "__main__":
    main()
