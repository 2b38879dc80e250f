"""Speed of `maejax features` by two processes on a core each over one process on one core, in turns.

    python benchmarks/features_processes.py --images 192 --turns 3

The encoder is a ViT-S/16 of random weights, the images are arrays of 224 pixels. Seconds are those of encoding and
writing that the command reports, compilation included; what a process needs to start is left out.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import maejax
from maejax.models.build import initial_model
from maejax.models.description import ViT

CORES = sorted(os.sched_getaffinity(0))[:2]


def encode(folder: Path, processes: int) -> float:
    """Encode by so many processes, each pinned to a core; return the seconds of the slowest."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ["--coordinator", f"localhost:{port}", "--num-processes", str(processes)] if processes > 1 else []
    command = [sys.executable, "-m", "maejax", "features", "encoder.safetensors", "images.npz", "--json"]
    command += ["--out", f"{processes}.npz", "--batch-size", "32", "--workers", "1", *together]
    started = [
        subprocess.Popen(
            ["taskset", "-c", str(CORES[i]), *command, *(["--process-id", str(i)] if together else [])],
            cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        for i in range(processes)
    ]  # fmt: skip
    ended = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"a process ended with {[process.returncode for process in started]}")
    return max(json.loads(printed)["seconds"] for printed in ended)


def main() -> None:
    """Time both in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = initial_model(ViT(dim=384, heads=6))
        maejax.save(model, folder / "encoder.safetensors", to="timm")
        images = np.random.default_rng(0).integers(0, 256, (given.images, 224, 224, 3), np.uint8)
        np.savez(folder / "images.npz", images=images)
        ratios = []
        for _ in range(given.turns):
            one, two = encode(folder, 1), encode(folder, 2)
            ratios.append(one / two)
            print(f"one process {given.images / one:.1f} images/s, two {given.images / two:.1f}", flush=True)
        with np.load(folder / "1.npz") as a, np.load(folder / "2.npz") as b:
            apart = np.abs(a["features"] - b["features"]).max() / np.abs(a["features"]).max()
    print(f"two over one: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); apart {apart:.1e}")


if __name__ == "__main__":
    main()
