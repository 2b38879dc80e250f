"""CPU time of the loader per byte: 13 bands of 16 bits against RGB, both 64 pixels, from .npy in tar shards.

    python benchmarks/bands.py --core 1

Both sides take turns on one pinned core; what counts is the ratio of their medians over rounds: at most 1.3 is wanted.
Then it prints the memory of this process after many batches of the wide side, which must not grow.
"""

import argparse
import io
import os
import resource
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from maejax.data.agreement import agree
from maejax.data.augment import build_train
from maejax.data.batch_plan import BatchConfig
from maejax.data.form import Form
from maejax.data.pipeline import Loader
from maejax.data.sources import open_source

SIZE, BATCH = 64, 128
SIDES = {"RGB, uint8": (3, np.uint8), "13 bands, uint16": (13, np.uint16)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=8, help="of a round")
    parser.add_argument("--images", type=int, default=1024, help="of a shard")
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    with tempfile.TemporaryDirectory() as folder:
        sides = {}
        for name, (bands, kind) in SIDES.items():
            path = write(Path(folder, f"{bands}.tar"), bands, kind, options.images)
            sides[name] = batches_of(path), SIZE * SIZE * bands * np.dtype(kind).itemsize
        for batches, _ in sides.values():
            seconds(batches, 8)  # after these, memory is used again
        spent = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, (batches, size) in sides.items():
                spent[name].append(seconds(batches, options.batches) / (options.batches * BATCH * size))
        for name, values in spent.items():
            value, size = statistics.median(values), sides[name][1]
            print(f"{name:18} {value * 1e9:6.2f} ns a byte, {value * size * 1e6:7.1f} us an image of {size:,} bytes")
        (narrow, wide) = spent.values()
        ratios = [b / a for a, b in zip(narrow, wide, strict=True)]
        print(f"ratio per byte     {statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        batches = list(sides.values())[1][0]
        for count in (0, 100, 200):
            seconds(batches, count and 100)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"memory after {count:3} more batches of 13 bands: {peak:,.0f} MB at most")


def write(path: Path, bands: int, kind: type, images: int) -> Path:
    """Write images of 64 pixels with their labels as .npy into a tar."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(images):
            buffer = io.BytesIO()
            np.save(buffer, rng.integers(0, 10_000, (SIZE, SIZE, bands)).astype(kind))
            for suffix, data in (("npy", buffer.getvalue()), ("cls", b"0")):
                member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def batches_of(path: Path):
    """Return the batches of a training run, made by the calling thread."""
    source = open_source(str(path))
    form = agree(source, Form(image_type="auto", fits=False))
    transform = build_train((SIZE, SIZE), "rrc", (0.2, 1.0), 0.0)
    return Loader(source, transform, BatchConfig(BATCH), size=(SIZE, SIZE), channels=form.channels).iterate()


def seconds(batches, count: int) -> float:
    """Return the CPU time of some batches."""
    start = time.process_time()
    for _ in range(count):
        next(batches)
    return time.process_time() - start


if __name__ == "__main__":
    main()
