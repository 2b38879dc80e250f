"""Validation of a masked autoencoder: the loss on held-out images under masks that never change, and pictures."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maejax.config import Config
from maejax.data.display import shown_bands
from maejax.data.faults import Faults
from maejax.data.form import split_bands
from maejax.data.pipeline import Batch, Loader, evaluation_loader
from maejax.data.sources import Source
from maejax.distributed.processes import broadcast_from_0
from maejax.evaluation.reconstruction import draw_grid, reconstruct
from maejax.models import masking
from maejax.models.mae import MaskedAutoencoder
from maejax.pages.frames import add_frame
from maejax.storage.atomic import write_atomically
from maejax.tasks.task import Evaluation
from maejax.training.log import read_metrics
from maejax.training.loop import Watch
from maejax.training.mesh import first_device, first_rows, local_copy, put_rows
from maejax.training.state import TrainState

_log = logging.getLogger("maejax.tasks")

PICTURES = 8  # reconstructions drawn at every validation


def fixed_order(noise_seed: int, index: jax.Array, grid: tuple[int, int], kind: Any = "random") -> jax.Array:
    """Draw the order [B, N] of each validation image from (seed, its number): the same mask at every validation."""
    key = jax.random.key(noise_seed)
    return jax.vmap(lambda i: masking.draw(kind, jax.random.fold_in(key, i), 1, grid)[0])(index.astype(jnp.uint32))


class Validation:
    """Evaluates the reconstruction of held-out images and draws the first few. Several processes call this together.

    `best` is the smallest loss so far and `best_step` its step, both also of the run's earlier processes up to `start`.
    """

    def __init__(self, config: Config, source: Source, directory: Path, mesh: Mesh, faults: Faults, start: int = 0):
        self.loader = valid_loader(config, source, faults)
        self.seed = config.seeds.noise_seed
        self.mask: masking.Kind | masking.Custom = config.mae.mask
        self.directory, self.mesh = directory, mesh
        self.show = shown_bands(config.data.show_bands, split_bands(config.data.bands), config.data.channels)
        self.best, self.best_step = best_so_far(directory, "val/loss", start)
        self._sums = jax.jit(self._loss_and_count)

    def _loss_and_count(self, model: MaskedAutoencoder, batch: Batch):
        order = self.order(model, batch.index)
        losses = model(batch.images, order, every=True).loss
        return jnp.sum(losses * batch.valid), jnp.sum(batch.valid)

    def order(self, model: MaskedAutoencoder, index: jax.Array) -> jax.Array:
        """Draw the order [B, N] of the patches of the validation images of these numbers."""
        return fixed_order(self.seed, index, model.config.encoder.grid, self.mask)

    def __call__(self, state: TrainState, step: int, watch: Watch = iter) -> Evaluation:
        """Average the loss over all validation images, each once; draw `images/<step>.png`, and a few for the page."""
        total, count, first = 0.0, 0, None
        for batch in watch(self.loader.iterate()):
            first = first_rows(batch, 2 * PICTURES, self.mesh) if first is None else first
            loss, valid = jax.device_get(self._sums(state.model, put_rows(batch, self.mesh)))
            total, count = total + float(loss), count + int(valid)
        loss = total / max(1, count)
        if loss <= self.best:
            self.best, self.best_step = loss, step
        model, path, pictures = local_copy(state.model, self.mesh), self.directory / "images" / f"{step}.png", None
        shows = model.config.drawable  # type: ignore[attr-defined]
        if first is not None and shows and jax.process_index() == 0:
            try:
                with first_device():
                    rows = np.flatnonzero(first.valid)[:PICTURES]
                    order = np.asarray(self.order(model, jnp.asarray(first.index[rows])))  # type: ignore[arg-type]
                    path.parent.mkdir(exist_ok=True)
                    drawn = reconstruct(model, first.images[rows], order, self.show)
                    with write_atomically(path) as new:
                        draw_grid(drawn).save(new, "PNG")
                    add_frame(self.directory, step, drawn.original, drawn.masked, drawn.pasted)
                pictures = path
            except OSError as error:
                _log.error("the pictures of step %s were not written: %s", step, error.strerror or error)
        return Evaluation({"val/loss": loss, "val/loss/best": self.best}, pictures)


def valid_loader(config: Config, source: Source, faults: Faults) -> Loader:
    """Build the loader of this host's validation batches: one pass in order, the last batch padded."""
    return evaluation_loader(
        source,
        config.image_shape,
        crop_ratio=config.augment.test_crop_ratio,
        channels=config.data.channels,
        batch_size=config.data.valid_batch_size,
        workers=config.data.valid_loader_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        faults=faults,
    )


def best_so_far(directory: Path, metric: str, start: int, sign: int = 1) -> tuple[float, int]:
    """Read the smallest value of a metric up to a step of a run, and its last step; with `sign` -1 the largest.

    It is infinite, and the step 0, where the run has none. All processes call this and get what the first one reads.
    """
    earlier = read_metrics(directory / "metrics.jsonl", metric)
    best = min(((sign * value, -step) for step, value in earlier if step <= start), default=(float("inf"), 0))
    return sign * broadcast_from_0(best[0]), -int(broadcast_from_0(best[1]))
