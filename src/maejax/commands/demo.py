"""The whole job in ten minutes: pack real images, pre-train, judge the encoder, write a report (`maejax demo`)."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from maejax.config import Config, recipe, with_flags
from maejax.data import fashion_mnist
from maejax.data.packing import pack
from maejax.data.pipeline import evaluation_loader
from maejax.data.sources import open_source
from maejax.errors import InputError
from maejax.evaluate.encoding import extract
from maejax.evaluate.knn import knn_accuracy
from maejax.evaluate.probe import few_label_probe, linear_probe
from maejax.evaluate.report import Report, write_report
from maejax.evaluate.scores import explain, score_table
from maejax.models.build import initial_model
from maejax.tasks import pretrain
from maejax.training.log import read_metrics
from maejax.training.rundir import read_config, write_json

# Found by search on 2 CPU cores, see docs/demo.md.
RECIPE: dict[str, Any] = {
    "channels": 1,
    "mean": (0.286,),
    "std": (0.353,),
    "image_size": "28",
    "patch_size": 7,
    "random_crop": "none",
    "test_crop_ratio": 1.0,
    "layers": 4,
    "dim": 128,
    "heads": 4,
    "dec_layers": 1,
    "dec_dim": 64,
    "dec_heads": 4,
    "norm_pix_loss": True,
    "train_batch_size": 128,
    "valid_batch_size": 500,
    "learning_rate": 4.8e-3,
    "training_steps": 4000,
    "warmup_steps": 200,
    "eval_interval": 1000,
    "save_interval": 1000,
    "log_interval": 50,
    "train_loader_workers": 1,
    "valid_loader_workers": 1,
}
FEATURES = "cls+mean"
DRAWS = 10  # of 100 labels


@dataclass(frozen=True)
class Split:
    """Images uint8 [n, H, W, C] and labels int32 [n] of one split, as the loader gives them."""

    images: np.ndarray
    labels: np.ndarray


class Stopwatch:
    """Seconds by the name of a stage."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)


def demo_config(output_dir: str, name: str, seed: int, training_steps: int | None) -> Config:
    """Resolve the demo's flags; `training_steps` shortens it, warm-up in proportion."""
    config = with_flags(
        recipe("pretrain"),
        **RECIPE,
        output_dir=output_dir,
        name=name,
        train_dataset_shards=f"{output_dir}/{name}/data/train/train-*.tar",
        valid_dataset_shards=f"{output_dir}/{name}/data/test/test-*.tar",
        init_seed=seed,
        noise_seed=seed,
        shuffle_seed=seed,
        dropout_seed=seed,
    )
    if training_steps is None:
        return config
    warmup = RECIPE["warmup_steps"] * training_steps // RECIPE["training_steps"]
    return with_flags(config, training_steps=training_steps, warmup_steps=warmup)


def run(
    console: Console, *, output_dir: str = "runs", name: str = "demo", seed: int = 0, training_steps: int | None = None
) -> dict[str, Any] | None:
    """Run the demo and return what report.json holds; None if a signal stopped it after saving."""
    if "://" in output_dir:
        raise InputError(f"--output-dir {output_dir}: the demo writes to a folder of this machine; name one")
    config = demo_config(output_dir, name, seed, training_steps)
    directory = Path(output_dir) / name
    watch = Stopwatch()
    with watch.stage("pack"):
        console.print("[bold]1  Packing[/] 20,000 embedded images (Fashion-MNIST, MIT licence) into tar shards")
        for split in ("train", "test"):
            pack(str(fashion_mnist.path(split)), str(directory / "data" / split))
    console.print("[bold]2  Pre-training[/] a masked autoencoder on 18,000 of them, without labels")
    with watch.stage("pre-train"):
        trained = pretrain.run(config, console)
    if not trained.done:
        return None
    console.print("[bold]3  Judging[/] the frozen encoder: kNN and linear probes on 2,000 test images")
    with watch.stage("evaluate"):
        train, test = (read_split(config, flag) for flag in ("train_dataset_shards", "valid_dataset_shards"))
        model = trained.model
        untrained = initial_model(model.config, model.compute, config.seeds.init_seed)
        scores = {
            "pretrained": judge(lambda s: extract(model, s.images, pool=FEATURES), train, test),
            "untrained": judge(lambda s: extract(untrained, s.images, pool=FEATURES), train, test),
            "pixels": judge(lambda s: pixels(model, s.images), train, test),
        }
    console.print(score_table(scores))
    console.print(explain(scores), highlight=False)
    return write_results(config, directory, scores, watch.seconds, read_config(directory), console)


def read_split(config: Config, flag: str) -> Split:
    """Read a whole split through the loader, as the model sees it in evaluation."""
    source = open_source(getattr(config.data, flag))
    loader = evaluation_loader(
        source,
        config.image_shape,
        crop_ratio=config.augment.test_crop_ratio,
        channels=config.data.channels,
        batch_size=500,
    )
    batches = list(loader.iterate())
    valid = np.concatenate([batch.valid for batch in batches])
    return Split(*(np.concatenate([getattr(b, field) for b in batches])[valid] for field in ("images", "labels")))


def pixels(model: Any, images: np.ndarray) -> np.ndarray:
    """Flatten images to their normalised pixels [n, H * W * C]: centred, they are the stronger control for kNN."""
    return np.asarray(model.normalize(images)).reshape(len(images), -1)


def judge(features: Callable[[Split], np.ndarray], train: Split, test: Split) -> dict[str, float]:
    """Score features [n, D] of images by kNN, a linear probe with all labels and one with 100 labels, in percent."""
    train_x, test_x = features(train), features(test)
    few, spread = few_label_probe(train_x, train.labels, test_x, test.labels, labels=100, draws=DRAWS)
    scores = {
        "knn": knn_accuracy(train_x, train.labels, test_x, test.labels),
        "linear": linear_probe(train_x, train.labels, test_x, test.labels),
        "linear_100": few,
        "linear_100_std": spread,
    }
    return {measure: round(float(score), 2) for measure, score in scores.items()}


def write_results(config, directory, scores, seconds, written, console) -> dict[str, Any]:
    """Write report.json, the pictures and report.html, and say where they are."""
    metrics = directory / "metrics.jsonl"
    losses = {name: read_metrics(metrics, f"{name}/loss") for name in ("train", "val")}
    picture = directory / "reconstructions.png"
    shutil.copy(directory / "images" / f"{config.optimization.training_steps}.png", picture)
    result = {
        "scores": scores,
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "images": {"train": 18_000, "test": 2_000},
        "features": FEATURES,
        "seed": config.seeds.init_seed,
        "training_steps": config.optimization.training_steps,
        "loss": {name: values[-1][1] for name, values in losses.items()},
        "explanation": explain(scores),
    }
    write_json(directory / "report.json", result)
    report = Report(
        title="A masked autoencoder, pre-trained and judged",
        scores=scores,
        seconds=result["seconds"],
        losses=losses,
        pictures={"Test images after the last step": picture},
        config=written["flags"],
        command="maejax demo",
        x_label="step",
        licence="Images: a part of Fashion-MNIST, copyright 2017 Zalando SE, MIT licence.",
    )
    write_report(directory / "report.html", report)
    console.print(f"report   {directory / 'report.html'}", highlight=False)
    console.print(f"pictures {picture}", highlight=False)
    return result
