"""What pre-training is worth on a few thousand real photos: the table of docs/clothing.md, made by `make clothing`.

    python benchmarks/clothing.py [--data ../shared/data/clothing-small.tar] [--seeds 0 1 2] [--share 1.0]

A small ViT is pre-trained on the training photos without their labels; then its encoder is judged frozen (kNN, linear
probe), fine-tuned in part and as a whole, beside the untrained encoder and the same network trained from scratch for as
many epochs. DATA is a tar, or a folder, that has train, validation and test, each with a folder per class. The best
checkpoint is chosen on the validation photos, and the test photos are looked at once. --share shortens all training.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

MODEL = "--image-size 64 --patch-size 8 --layers 6 --dim 192 --heads 6".split()
MAE = "--dec-layers 2 --dec-dim 96 --dec-heads 3 --norm-pix-loss --train-batch-size 128 --learning-rate 1e-3".split()
TUNE = """--auto-augment none --random-erasing 0 --mixup 0 --cutmix 0 --train-batch-size 64
--crop-scale 0.35 --weight-decay 0.05 --droppath 0.1 --test-crop-ratio 1""".split()
EPOCHS = {"pretrain": 150, "finetune": 25, "probe": 60}
ROWS = {
    "knn": "k nearest neighbours, frozen", "probe": "linear probe, frozen", "partial": "fine-tuned, last block",
    "full": "fine-tuned, all blocks",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/clothing-small.tar"))
    parser.add_argument("--out", type=Path, default=Path("runs/clothing"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=1.0)
    args = parser.parse_args()
    if not args.data.exists():
        sys.exit(f"{args.data} does not exist: name photos with --data (make clothing DATA=...), see --help")
    shards = pack(args.data, args.out)
    found = [Judged(args.out, shards, seed, args.share).scores() for seed in args.seeds]
    (args.out / "scores.json").write_text(json.dumps(found, indent=2) + "\n")
    report(found)


def pack(data: Path, out: Path) -> dict[str, str]:
    """Pack the photos small, so that reading them costs little; returns the shards of each part."""
    out.mkdir(parents=True, exist_ok=True)
    folder = data
    if data.is_file():
        folder = out / "photos"
        if not folder.exists():
            with tarfile.open(data) as tar:
                tar.extractall(folder.with_suffix(".part"), filter="data")
            folder.with_suffix(".part").rename(folder)
    parts = {}
    for part in ("train", "validation", "test"):
        source = next((path for path in [folder / part, *folder.glob(f"*/{part}")] if path.is_dir()), None)
        if source is None:
            sys.exit(f"{data} has no folder {part}, with a folder per class")
        maejax("pack", source, out / "shards" / part, "--image-size", 80)
        parts[part] = f"{out}/shards/{part}/*.tar"
    return parts


def maejax(*args) -> str:
    """Run a command of maejax; ends the program where it fails."""
    command = [sys.executable, "-m", "maejax.cli", *map(str, args)]
    print("$ maejax", *args, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}\nmaejax {args[0]} ended with {done.returncode}")
    return done.stdout


class Judged:
    """One seed: pre-trained, and judged in every way, with its controls."""

    def __init__(self, out: Path, shards: dict[str, str], seed: int, share: float):
        self.out, self.shards, self.seed, self.share = out, shards, seed, share
        images = json.loads((out / "shards" / "train" / "index.json").read_text())["images"]
        self.per_epoch = {batch: images / batch for batch in (64, 128, 512)}

    def steps(self, what: str, batch: int) -> list:
        """Give the flags of the length of a training."""
        epochs = max(1.0, EPOCHS[what] * self.share)
        steps = max(1, round(epochs * self.per_epoch[batch]))
        return ["--training-steps", steps, "--warmup-steps", steps // 10, "--log-interval", max(1, steps // 20)]

    def train(self, name: str, mode: str, *flags) -> Path:
        """Train on the training photos and return the run."""
        run = self.out / f"{name}-{self.seed}"
        seeds = [flag for seed in ("init", "shuffle", "noise", "dropout") for flag in (f"--{seed}-seed", self.seed)]
        maejax(
            "train", "--mode", mode, "--output-dir", self.out, "--name", run.name, *MODEL, *seeds,
            "--train-dataset-shards", self.shards["train"], *flags,
        )  # fmt: skip
        return run

    def test(self, run: Path, mode: str) -> float:
        """Score the best checkpoint of a run on the test photos."""
        best = run / "best" if (run / "best").exists() else run
        name = f"{run.name}-test"
        maejax(
            "train", "--mode", mode, "--eval-only", "--pretrained-ckpt", best, "--image-size", 64,
            "--test-crop-ratio", 1, "--valid-dataset-shards", self.shards["test"], "--output-dir", self.out,
            "--name", name, "--valid-batch-size", 64,
        )  # fmt: skip
        return json.loads((self.out / name / "evaluation.json").read_text())["val/acc1"]

    def tune(self, name: str, *flags) -> float:
        """Fine-tune, choose by the validation photos, test."""
        steps = self.steps("finetune", 64)
        every = max(1, steps[1] // 10)
        valid = [
            "--valid-dataset-shards",
            self.shards["validation"],
            "--valid-batch-size",
            64,
            "--eval-interval",
            every,
        ]
        return self.test(self.train(name, "finetune", *TUNE, *steps, *valid, *flags), "finetune")

    def probe(self, name: str, *start) -> float:
        """Sweep linear probes, choose by the validation photos, test."""
        flags = [
            "--train-batch-size", 512, "--valid-batch-size", 64, "--crop-scale", 0.35, "--test-crop-ratio", 1,
            "--cache-features", 5, "--valid-dataset-shards", self.shards["validation"], *self.steps("probe", 512),
        ]  # fmt: skip
        return self.test(self.train(name, "linear", *flags, *start), "linear")

    def scores(self) -> dict[str, dict[str, float]]:
        """Make every run of this seed; accuracies on the test photos in percent."""
        mae = self.train("mae", "pretrain", *MAE, *self.steps("pretrain", 128))
        start = ["--pretrained-ckpt", mae]
        maejax(
            "evaluate", mae, "--train-dataset-shards", self.shards["train"], "--valid-dataset-shards",
            self.shards["test"], "--protocol", "knn", "--test-crop-ratio", 1, "--out", self.out / f"knn-{self.seed}",
            "--seed", self.seed,
        )  # fmt: skip
        told = json.loads((self.out / f"knn-{self.seed}" / "report.json").read_text())["scores"]
        pretrained = {
            "knn": max(value for name, value in told["pretrained"].items() if name.startswith("knn")),
            "probe": self.probe("probe", *start),
            "partial": self.tune("partial", *start, "--finetune-blocks", 1, "--learning-rate", 2e-3),
            "full": self.tune("full", *start, "--learning-rate", 2e-3, "--lr-decay", 0.75),
        }
        control = {
            "knn": max(value for name, value in told["untrained"].items() if name.startswith("knn")),
            "probe": self.probe("probe-untrained"),
            "partial": self.tune("partial-untrained", "--finetune-blocks", 1, "--learning-rate", 2e-3),
            "full": self.tune("scratch", "--learning-rate", 2e-3),
        }
        return {"pretrained": pretrained, "untrained": control}


def report(found: list[dict[str, dict[str, float]]]) -> None:
    """Print the table, in percent of the test photos: mean and deviation over the seeds."""
    table = Table("", "pre-trained", "untrained, or from scratch")
    for row, title in ROWS.items():
        table.add_row(title, *(cell([each[kind][row] for each in found]) for kind in ("pretrained", "untrained")))
    Console().print(table)


def cell(values: list[float]) -> str:
    """Write mean and standard deviation."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
