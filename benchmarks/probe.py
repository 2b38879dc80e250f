"""Speed of a probe on cached features over a live probe: images a second of an epoch.

python benchmarks/probe.py runs/clothing/packed runs/clothing/mae-0

Photos are those of `make clothing`. Live: the median over the steps of a run. Cached: all steps of a sweep of seven
rates together, compilation included, an image counted once however many heads see it.
"""

import argparse
import json
import statistics
from pathlib import Path

from rich.console import Console

from maejax.config import with_flags
from maejax.recipes import recipe
from maejax.tasks import classify
from maejax.training.log import read_metrics

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("shards", type=Path, help="folder with train/train-*.tar and validation/validation-*.tar")
parser.add_argument("ckpt", type=Path, help="pre-trained run")
parser.add_argument("--out", type=Path, default=Path("runs/probe-speed"))
parser.add_argument("--epochs", type=int, default=90)
args = parser.parse_args()

told = json.loads((args.ckpt / "config.json").read_text())
images, flags = told["images"], told["flags"]
model = {name: flags[name] for name in ("image_size", "patch_size", "layers", "dim", "heads", "channels")}
batch = 256
config = with_flags(
    recipe("linear"), **model, train_batch_size=batch, valid_batch_size=128, log_interval=1, save_interval=10**6,
    train_loader_workers=2, valid_loader_workers=2, pretrained_ckpt=str(args.ckpt), output_dir=str(args.out),
    train_dataset_shards=str(args.shards / "train" / "train-*.tar"),
    valid_dataset_shards=str(args.shards / "validation" / "validation-*.tar"),
)  # fmt: skip
steps = 2 * images // batch
classify.run(with_flags(config, name="live", training_steps=steps, warmup_steps=1), Console())
rates = [rate for _, rate in read_metrics(args.out / "live" / "metrics.jsonl", "train/images_per_second")]
live = statistics.median(rates[2:])
steps = args.epochs * images // batch
classify.run(
    with_flags(config, name="cached", training_steps=steps, warmup_steps=steps // 9, cache_features=1), Console()
)
speed = json.loads((args.out / "cached" / "sweep.json").read_text())["speed"]
heads = speed["heads"]["images_per_second"]
print(f"live {live:,.0f} images/s; cached {heads:,.0f} images/s with 7 heads: {heads / live:.0f} times as many")
