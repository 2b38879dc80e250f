"""Accuracy of a classifier on held-out images: each counts once, on any number of hosts."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from maejax.config import Config
from maejax.data.augment import build_eval
from maejax.data.pipeline import Loader
from maejax.data.shards import Source
from maejax.tasks.training import faults_allowed
from maejax.training.average import as_evaluated
from maejax.training.classification import Criterion, count_right
from maejax.training.log import read_metrics
from maejax.training.mesh import put_batch
from maejax.training.processes import share
from maejax.training.state import TrainState


class Measured(NamedTuple):
    """Number of images, share of them in percent that were right at first and within five guesses, and mean loss."""

    images: int
    top1: float
    top5: float
    loss: float


class Accuracy:
    """Measures classifiers on one source. Several processes call this together."""

    def __init__(self, config: Config, source: Source, size: tuple[int, int], mesh: Mesh):
        self.mesh = mesh
        self.loader = Loader(
            source, build_eval(size, config.augment.test_crop_ratio),
            batch_size=config.data.valid_batch_size, channels=config.data.channels, size=size,
            shuffle=False, workers=config.data.valid_loader_workers, process_index=jax.process_index(),
            process_count=jax.process_count(), faults=faults_allowed(config),
        )  # fmt: skip
        self._sums = jax.jit(partial(_sums, criterion=config.augment.criterion))

    def measure(self, model: Any) -> Measured:
        """Measure a classifier on all images that can be read and have a label."""
        sums = np.zeros(4)
        for batch in self.loader.iterate():
            used = batch.valid & (batch.labels >= 0)
            rows = {"images": batch.images, "labels": np.maximum(batch.labels, 0), "used": used}
            sums += jax.device_get(self._sums(model, put_batch(rows, self.mesh)))
        count = max(1, sums[0])
        return Measured(int(sums[0]), 100 * sums[1] / count, 100 * sums[2] / count, sums[3] / count)


def _sums(model: Any, batch: dict[str, jax.Array], *, criterion: Criterion) -> jax.Array:
    return count_right(model(model.normalize(batch["images"])), batch["labels"], batch["used"], criterion)


class AccuracyJudge:
    """Judges the states of a run by their accuracy, those of the averaged weights where an average is kept.

    `best` is the highest top-1 accuracy in percent so far and `best_step` its step, both also of the run's earlier
    processes up to `start`.
    """

    def __init__(self, config: Config, source: Source, directory: Path, mesh: Mesh, start: int = 0):
        self.accuracy = Accuracy(config, source, config.image_shape, mesh)
        metrics = directory / "metrics.jsonl"
        earlier = read_metrics(metrics, "val/acc1") if metrics.exists() else []
        best, step = max(((value, -step) for step, value in earlier if step <= start), default=(-1.0, 0))
        self.best, self.best_step = share(best), int(share(-step))

    def __call__(self, state: TrainState, step: int) -> dict[str, float]:
        """Measure a state."""
        found = self.accuracy.measure(as_evaluated(state).model)
        if found.top1 > self.best:
            self.best, self.best_step = found.top1, step
        return {
            "val/loss": found.loss, "val/acc1": found.top1, "val/acc5": found.top5, "val/acc1/best": self.best,
        }  # fmt: skip

    def picture_path(self, step: int) -> Path:
        """Name no picture: a classifier has none."""
        return Path("images", f"{step}.none")
