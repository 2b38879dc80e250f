"""Validation of a classifier: exact top-1 and top-5 over all images, each once."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maejax.config import Config
from maejax.data.faults import Faults
from maejax.data.pipeline import Batch
from maejax.data.sources import Source
from maejax.tasks.task import Evaluation
from maejax.tasks.validation import best_so_far, valid_loader
from maejax.training.ema import as_evaluated
from maejax.training.loop import Watch
from maejax.training.losses import cross_entropy
from maejax.training.mesh import put_rows
from maejax.training.state import TrainState


class Accuracy:
    """Evaluates a classifier on held-out images. Several processes call this together.

    `best` is the highest top-1 accuracy so far, in percent, and `best_step` its step, both also of the run's earlier
    processes up to `start`. `images` is how many were scored the last time.
    """

    def __init__(self, config: Config, source: Source, directory: Path, mesh: Mesh, faults: Faults, start: int = 0):
        self.loader, self.mesh = valid_loader(config, source, faults), mesh
        best, self.best_step = best_so_far(directory, "val/acc1", start, sign=-1)
        self.best = max(0.0, best)
        self.images = 0
        self._sums = jax.jit(partial(score_batch, criterion=config.augment.criterion))

    def __call__(self, state: TrainState, step: int, watch: Watch) -> Evaluation:
        """Score a state, with its averaged weights where an average is kept; accuracies are in percent."""
        scores = self.score(as_evaluated(state).model, watch)
        if scores["val/acc1"] >= self.best:
            self.best, self.best_step = scores["val/acc1"], step
        return Evaluation({**scores, "val/acc1/best": self.best})

    def score(self, model: Any, watch: Watch = iter) -> dict[str, float]:
        """Average over all labelled images, each once: loss, and accuracies in percent."""
        totals: Counter[str] = Counter()
        for batch in watch(self.loader.iterate()):
            sums = jax.device_get(self._sums(model, put_rows(batch, self.mesh)))
            totals.update({name: float(value) for name, value in sums.items()})
        self.images = int(totals["count"])
        count = max(1, self.images)
        return {
            "val/loss": totals["loss"] / count,
            "val/acc1": 100 * totals["top1"] / count,
            "val/acc5": 100 * totals["top5"] / count,
        }


def score_batch(model: Any, batch: Batch, criterion: Any) -> dict[str, jax.Array]:
    """Sum loss, top-1 and top-5 hits over the valid rows of a batch that have a label, and count them.

    An image is a hit of the top k where fewer than k classes come before its own; of equal logits the lower class's
    comes first, so that a model that tells nothing apart scores no more than it should.
    """
    values = score_logits(model(model.normalize(batch.images)), batch.labels, criterion)
    values["count"] = jnp.ones_like(values["loss"])
    counted = batch.valid & (batch.labels >= 0)
    return {name: jnp.sum(jnp.where(counted, value, 0)) for name, value in values.items()}


def score_logits(logits: jax.Array, labels: jax.Array, criterion: Any) -> dict[str, jax.Array]:
    """Compute loss, top-1 and top-5 hit of every sample [B]; what a label of -1 gives means nothing."""
    labels = jnp.maximum(labels, 0).reshape(-1, 1)
    own = jnp.take_along_axis(logits, labels, axis=1)
    classes = jnp.arange(logits.shape[1]).reshape(1, -1)
    ahead = (logits > own) | ((logits == own) & (classes < labels)) | ~jnp.isfinite(logits)
    rank = jnp.sum(ahead, axis=1)
    loss = cross_entropy(logits, jax.nn.one_hot(labels[:, 0], logits.shape[1]), criterion)
    finite = jnp.isfinite(own[:, 0])  # a network that has come apart hits nothing
    return {"loss": loss, "top1": finite & (rank < 1), "top5": finite & (rank < 5)}
