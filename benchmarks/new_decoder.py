"""Going on from an encoder alone, against from scratch, on photos; prints a table.

python benchmarks/new_decoder.py ../shared/data/clothing-by-sender.tar

The encoder was pre-trained on Fashion-MNIST, the demo's images, and is written as timm has it: without a decoder. Both
runs then take the same steps on the photos; frozen steps cost less, so the one from scratch gets no fewer seconds.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from clothing import MODEL, PRETRAIN, prepare
from rich.console import Console

from maejax.config import with_flags
from maejax.data import fashion_mnist
from maejax.data.sources import open_source
from maejax.evaluation.labelled import pair
from maejax.evaluation.protocols import score
from maejax.recipes import recipe
from maejax.tasks import pretrain
from maejax.training.log import read_metrics
from maejax.training.memory import keep_freed_memory
from maejax.training.rundir import write_json
from maejax.weights import files, run_directory

FIRST, STEPS, FROZEN = 800, 600, 60
KINDS = {
    "start": "the encoder of Fashion-MNIST, as it is",
    "on": f"goes on from it: a new decoder, {FROZEN} steps with the encoder frozen",
    "scratch": "from scratch",
}


def run(name: str, seed: int, out: Path, steps: int, shards: dict[str, str], **more):
    """Pre-train; returns the run's directory and its seconds."""
    chosen = {**MODEL, **PRETRAIN, "train_loader_workers": 2, **more}
    seeds = {f"{which}_seed": seed for which in ("init", "dropout", "shuffle", "noise")}
    config = with_flags(
        recipe("pretrain"), **chosen, **seeds, output_dir=str(out), name=f"{name}-{seed}", training_steps=steps,
        warmup_steps=steps // 10, train_dataset_shards=shards["train"], valid_dataset_shards=shards["validation"],
    )  # fmt: skip
    start = time.monotonic()
    with (out / f"{name}-{seed}.log").open("a") as log:
        done = pretrain.run(config, Console(file=log, width=120))
    if not done.done:
        sys.exit("stopped; the same command continues")
    return done.directory, time.monotonic() - start


def judge(path: Path, shards: dict[str, str]) -> float:
    """Return the 20-NN accuracy, in percent, on the test photos, with all photos of training as neighbours."""
    encoder = files.load(path)
    data = pair(open_source(shards["train"]), open_source(shards["test"]))
    found = score(getattr(encoder, "encoder", encoder), data, ("knn",), batch_size=128, workers=2, seed=0).accuracies
    return float(found["knn_20"])


def measure(seed: int, out: Path, photos: dict[str, str], fashion: dict[str, str]) -> dict[str, dict[str, float]]:
    """Measure one seed: of each kind the loss on held-out photos, the 20-NN accuracy, and the seconds of training."""
    first, _ = run("fashion", seed, out, FIRST, fashion)
    encoder = out / f"encoder-{seed}.safetensors"
    files.write(run_directory.read(first), encoder, "timm")
    found = {"start": {"knn": judge(encoder, photos)}}
    going = {"pretrained_ckpt": str(encoder), "new_decoder": True, "freeze_encoder_steps": FROZEN}
    for kind, more in (("on", going), ("scratch", {})):
        directory, seconds = run(kind, seed, out, STEPS, photos, **more)
        loss = read_metrics(directory / "metrics.jsonl", "val/loss")[-1][1]
        found[kind] = {"loss": loss, "knn": judge(directory, photos), "seconds": seconds}
    return found


def table(results: list[dict[str, dict[str, float]]]) -> str:
    """Format mean and spread over the seeds."""
    lines = ["| | loss on held-out photos | 20-NN on the test photos, % | seconds |", "|---|---|---|---|"]
    for kind, title in KINDS.items():
        cells = []
        for name, digits in (("loss", 4), ("knn", 1), ("seconds", 0)):
            values = [seed[kind][name] for seed in results if name in seed[kind]]
            spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 and digits else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}" if values else "")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a tar or a folder with train, validation and test, a folder per class")
    parser.add_argument("--out", type=Path, default=Path("runs/going-on"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    photos, fashion = prepare(args.data, args.out), {}
    for split, place in (("train", "train"), ("validation", "test")):
        with np.load(fashion_mnist.path(place)) as file:
            images = np.repeat(file["images"].reshape(-1, 28, 28, 1)[:10_000], 3, axis=3)
        np.savez(args.out / f"{split}.npz", images=images[:500] if split == "validation" else images)
        fashion[split] = str(args.out / f"{split}.npz")
    results = []
    for seed in range(args.seeds):
        results.append(measure(seed, args.out, photos, fashion))
        print(results[-1], flush=True)
        write_json(args.out / "results.json", results)
    print(table(results))


if __name__ == "__main__":
    main()
