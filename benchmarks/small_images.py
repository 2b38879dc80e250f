"""Speed of the loader on small images from arrays, beside PyTorch's DataLoader over PIL and tf.data from memory.

    python benchmarks/small_images.py --core 1 --peer-python TORCH/bin/python --tf-python TF/bin/python

Images of 32 pixels, batches of 256, shuffled; with a flip alone, with a crop of the padded image too as for CIFAR-10,
and with a resized crop (of a fifth of the area at least). All sides take turns on one pinned core, in many short
rounds. A number is the least CPU time of a side: other work on the machine can only add to it. `--cores` adds what two
cores give over one, by the clock, for a quiet machine. The last lines are what a card needs for a ViT-Ti/4, from its
data sheet.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from loader import BATCH, SCALE, Peer

from maejax.data.augment import build_train
from maejax.data.batch_plan import BatchConfig
from maejax.data.pipeline import Loader
from maejax.data.sources import open_source
from maejax.models.description import MAE, Decoder, ViT
from maejax.models.flops import encode_flop, pretrain_flop

SIZE, CROPS = (32, 32), {"none": "flip", "src": "crop of the padded image, flip", "rrc": "resized crop, flip"}
CARDS = {"RTX 4090": 165e12, "A100": 312e12, "H100": 989e12}  # peak FLOP/s of data sheets: dense, half precision
MFU = (0.2, 0.4)  # share of the peak that a tiny model reaches, assumed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", help="Python with torch and torchvision")
    parser.add_argument("--tf-python", help="Python with TensorFlow")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=5120, help="of a round; a multiple of 256")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--cores", action="store_true", help="two cores against one, by the clock")
    options = parser.parse_args()
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {options.core})
    peers = [Peer(options.peer_python, "loader_peer.py")] if options.peer_python else []
    peers += [Peer(options.tf_python, "loader_peer_tf.py")] if options.tf_python else []
    with tempfile.TemporaryDirectory() as folder:
        rng, path = np.random.default_rng(0), Path(folder, "small.npz")
        images = rng.integers(0, 256, (20_000, *SIZE, 3), np.uint8)
        np.savez(path, images=images, labels=rng.integers(0, 10, len(images)))
        for crop, name in CROPS.items():
            compare(path, crop, name, peers, options)
        if options.cores:
            os.sched_setaffinity(0, everywhere)
            clock(path)
    cards()


def batches_of(path: Path, crop: str, workers: int = 0):
    """Return the batches of a training run, made by the calling thread or by so many workers."""
    transform = build_train(SIZE, crop, SCALE, 0.0)
    return Loader(
        open_source(str(path)), transform, BatchConfig(BATCH), size=SIZE, channels=3, workers=workers
    ).iterate()


def compare(path: Path, crop: str, name: str, peers: list[Peer], options: argparse.Namespace) -> None:
    """Print images per second of one core, ours and the peers', and their ratios."""
    batches, spent = batches_of(path, crop), {"maejax": []} | {peer.name: [] for peer in peers}
    for turn in range(options.rounds + 1):  # the first warms up
        start = time.process_time()
        for _ in range(options.images // BATCH):
            next(batches)
        used = {"maejax": (time.process_time() - start) / options.images}
        used |= {peer.name: peer.ask(path, options.images, size=SIZE[0], crop=crop) for peer in peers}
        for side, value in used.items():
            spent[side] += [value] if turn else []
    print(f"\n== {name} ==")
    for side, values in spent.items():
        ratios = sorted(theirs / mine for theirs, mine in zip(values, spent["maejax"], strict=True))
        ratio = f"{min(values) / min(spent['maejax']):5.2f} of ours ({ratios[0]:.2f} to {ratios[-1]:.2f} in a round)"
        print(
            f"  {side:16} {1 / min(values):8,.0f} images/s, {min(values) * 1e6:6.1f} us an image, {ratio}", flush=True
        )


def clock(path: Path) -> None:
    """Print images per second of one and of two workers by the clock, the best of several turns."""
    best = {1: 0.0, 2: 0.0}
    for _ in range(7):
        for workers in best:
            batches = batches_of(path, "src", workers)
            for _ in range(20):
                next(batches)
            start = time.perf_counter()
            for _ in range(100):
                next(batches)
            best[workers] = max(best[workers], 100 * BATCH / (time.perf_counter() - start))
            batches.close()
    print(f"\ntwo cores over one: {best[2] / best[1]:.2f} ({best[2]:,.0f} and {best[1]:,.0f} images/s)")


def cards() -> None:
    """Print how many images per second cards take of a ViT-Ti/4 at 32 pixels, by FLOP and peak alone."""
    encoder = ViT(image_size=SIZE, patch_size=4, dim=192, layers=12, heads=3)
    autoencoder = MAE(encoder=encoder, decoder=Decoder(dim=128, layers=2, heads=4))
    needs = {"pre-training": pretrain_flop(autoencoder), "fine-tuning": 3 * encode_flop(encoder)}
    for task, flop in needs.items():
        print(f"\nViT-Ti/4, {task}: {flop / 1e9:.2f} GFLOP an image")
        for card, peak in CARDS.items():
            low, high = (share * peak / flop for share in MFU)
            print(f"  {card}: {low:,.0f} to {high:,.0f} images/s at {MFU[0]:.0%} to {MFU[1]:.0%} of its peak")


if __name__ == "__main__":
    main()
