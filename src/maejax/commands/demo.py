"""`maejax demo`: the whole job in ten minutes: pack real images, pre-train, evaluate the encoder, write a report."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from rich.console import Console

from maejax.commands.command import DONE, STOPPED, Command, check_writable, command_line, prepare_devices
from maejax.commands.train import say_stopped
from maejax.config import Config, with_flags
from maejax.errors import InputError
from maejax.recipes import recipe

# Found by search on 2 CPU cores, see docs/demo.md.
_DATA = {"channels": 1, "mean": (0.286,), "std": (0.353,), "random_crop": "none", "test_crop_ratio": 1.0}
_MODEL = {"image_size": "28", "patch_size": 7, "layers": 4, "dim": 128, "heads": 4, "norm_pix_loss": True}
_DECODER = {"dec_layers": 1, "dec_dim": 64, "dec_heads": 4}
_STEPS = {
    "learning_rate": 4.8e-3,
    "training_steps": 4000,
    "warmup_steps": 200,
    "eval_interval": 1000,
    "watch_interval": 500,
    "save_interval": 500,  # for the playground, which shows how a run learned
    "keep_checkpoints": 8,
}
_BATCHES = {"train_batch_size": 128, "valid_batch_size": 500, "train_loader_workers": 1, "valid_loader_workers": 1}
RECIPE: dict[str, Any] = {**_DATA, **_MODEL, **_DECODER, **_STEPS, **_BATCHES}
FEATURES = "cls+mean"
DRAWS = 10  # of 100 labels


class Split(NamedTuple):
    """Images uint8 [n, H, W, C] and labels int32 [n] of one split, as the loader delivers them."""

    images: Any
    labels: Any


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Write the seconds of a stage to `seconds`."""
    start = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - start, 1)


@dataclass(frozen=True)
class DemoCommand(Command):
    """Do the whole job on embedded real images in about ten minutes: pack, pre-train, evaluate, report."""

    output_dir: str = "runs"
    """Folder of all runs."""
    name: str = "demo"
    """Name of this run and of its folder."""
    seed: int = 0
    """Seed of weights, masks and order."""
    training_steps: int | None = None
    """Shorten the training to this many steps; the scores shrink with it."""

    to_stdout: ClassVar[bool] = True

    def config(self) -> Config:
        """Resolve the flags of the training; `training_steps` shortens it, and its warm-up in proportion."""
        data = f"{self.output_dir}/{self.name}/data"
        seeds = dict.fromkeys(("init_seed", "noise_seed", "shuffle_seed", "dropout_seed"), self.seed)
        config = with_flags(
            recipe("pretrain"),
            **RECIPE,
            **seeds,
            output_dir=self.output_dir,
            name=self.name,
            train_dataset_shards=f"{data}/train/train-*.tar",
            valid_dataset_shards=f"{data}/test/test-*.tar",
            watch=f"{data}/test/test-*.tar",
        )
        if self.training_steps is None:
            return config
        warmup = RECIPE["warmup_steps"] * self.training_steps // RECIPE["training_steps"]
        return with_flags(config, training_steps=self.training_steps, warmup_steps=warmup)

    def run(self, console: Console) -> dict[str, Any]:
        """Run the demo and return what report.json holds; nothing if a signal stopped it after saving."""
        if "://" in self.output_dir:
            raise InputError(f"--output-dir {self.output_dir}: the demo writes to a folder of this machine; name one")
        directory, config = Path(self.output_dir) / self.name, self.config()
        check_writable("--output-dir", directory, folder=True)
        prepare_devices()
        from maejax.data import fashion_mnist
        from maejax.data.packing import pack
        from maejax.tasks import pretrain

        seconds: dict[str, float] = {}
        with timed(seconds, "pack"):
            console.print("[bold]1  Packing[/] 20,000 embedded images (Fashion-MNIST, MIT licence) into tar shards")
            for split in ("train", "test"):
                pack(str(fashion_mnist.path(split)), str(directory / "data" / split))
        console.print("[bold]2  Pre-training[/] a masked autoencoder on 18,000 of them, without labels")
        with timed(seconds, "pre-train"):
            trained = pretrain.run(config, console)
        if not trained.done:
            say_stopped(console, str(directory))
            return {}
        console.print("[bold]3  Evaluating[/] the frozen encoder: kNN and linear probes on 2,000 test images")
        with timed(seconds, "evaluate"):
            scores = evaluate(config, trained.model)
        return write_results(config, directory, scores, seconds)

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print the scores as a table, what they mean, and where the report and the pictures are."""
        if not result:
            return
        from maejax.evaluation.scores import score_table

        directory = Path(self.output_dir) / self.name
        console.print(score_table(result["scores"]))
        console.print(result["explanation"], highlight=False)
        console.print(f"report   {directory / 'report.html'}", highlight=False)
        console.print(f"pictures {directory / 'reconstructions.png'}", highlight=False)

    def following(self, result: dict[str, Any]) -> str:
        """Return the playground, which shows how the model learned."""
        return command_line("serve", Path(self.output_dir) / self.name)

    def exit_code(self, result: dict[str, Any]) -> int:
        """Return 75 for a demo that was stopped after saving."""
        return DONE if result else STOPPED


def read_split(config: Config, spec: str) -> Split:
    """Read a whole split through the loader, as the model sees it in evaluation."""
    import numpy as np

    from maejax.data import pipeline, sources

    size, crop, channels = config.image_shape, config.augment.test_crop_ratio, config.data.channels
    source = sources.open_source(spec)
    loader = pipeline.evaluation_loader(source, size, crop_ratio=crop, channels=channels, batch_size=500)
    batches = list(loader.iterate())
    valid = np.concatenate([batch.valid for batch in batches])
    return Split(*(np.concatenate([getattr(b, field) for b in batches])[valid] for field in Split._fields))


def evaluate(config: Config, model: Any) -> dict[str, dict[str, float]]:
    """Score an encoder, the same untrained, and pixels in percent: kNN, linear probes with all and with 100 labels."""
    import numpy as np

    from maejax.evaluation.encoding import extract
    from maejax.evaluation.knn import knn_accuracy
    from maejax.evaluation.probe import few_label_probe, linear_probe
    from maejax.models.build import initial_model

    untrained = initial_model(model.config, model.compute, config.seeds.init_seed)
    # Pixels are centred by their normalisation, which makes them the stronger control for kNN.
    kinds: dict[str, Callable[[Any], Any]] = {
        "pretrained": partial(extract, model, pool=FEATURES),
        "untrained": partial(extract, untrained, pool=FEATURES),
        "pixels": lambda images: np.asarray(model.normalize(images)).reshape(len(images), -1),
    }
    data = config.data
    train, test = (read_split(config, spec) for spec in (data.train_dataset_shards, data.valid_dataset_shards))
    scores = {}
    for kind, features in kinds.items():
        four = features(train.images), train.labels, features(test.images), test.labels
        few, spread = few_label_probe(*four, labels=100, draws=DRAWS)
        found = {"knn": knn_accuracy(*four), "linear": linear_probe(*four), "linear_100": few, "linear_100_std": spread}
        scores[kind] = {measure: round(float(score), 2) for measure, score in found.items()}
    return scores


def write_results(
    config: Config, directory: Path, scores: dict[str, dict[str, float]], seconds: dict[str, float]
) -> dict[str, Any]:
    """Write report.json, the pictures and report.html; returns what report.json holds."""
    from maejax.evaluation.scores import explain
    from maejax.pages.frames import draw_slider, read_frames
    from maejax.pages.history import History
    from maejax.pages.page import section
    from maejax.pages.report import Report, write_report
    from maejax.pages.run_charts import charts, numbers
    from maejax.training.rundir import write_json

    history = History.read(directory)
    picture = directory / "reconstructions.png"
    shutil.copy(directory / "images" / f"{config.optimization.training_steps}.png", picture)
    result = {
        "scores": scores,
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "images": {"train": 18_000, "test": 2_000},
        "features": FEATURES,
        "seed": config.seeds.init_seed,
        "training_steps": config.optimization.training_steps,
        "loss": {name: history.last(f"{name}/loss")[1] for name in ("train", "val")},
        "explanation": explain(scores),
    }
    write_json(directory / "report.json", result)
    frames = read_frames(directory), history.step
    report = Report(
        title="A masked autoencoder, pre-trained and evaluated",
        scores=scores,
        seconds=seconds,
        more=[
            section("Reconstructions over time", draw_slider({"reconstructed": frames})),
            section("Curves", charts(history)),
            section("Numbers", numbers(history)),
        ],
        config=history.config["flags"],
        command="maejax demo",
        licence="Images: a part of Fashion-MNIST, copyright 2017 Zalando SE, MIT licence.",
    )
    write_report(directory / "report.html", report)
    return result
