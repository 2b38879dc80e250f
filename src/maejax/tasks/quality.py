"""Quality while a model trains: nearest neighbours and effective rank of its frozen features on a few images."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maejax.config import Config
from maejax.data.agreement import agree
from maejax.data.faults import Faults
from maejax.data.form import asked_form
from maejax.data.part import spread
from maejax.data.pipeline import Batch, check_readable
from maejax.data.sources import Source, open_source
from maejax.errors import InputError
from maejax.evaluation.encoding import encode
from maejax.evaluation.knn import leave_one_out
from maejax.evaluation.rank import effective_rank
from maejax.models.description import MAE
from maejax.models.flops import encode_flop, pretrain_flop
from maejax.models.pooling import pools
from maejax.tasks.task import Evaluation
from maejax.tasks.validation import valid_loader
from maejax.training.loop import Watch
from maejax.training.mesh import put_rows, replicated
from maejax.training.state import TrainState

IMAGES = 1000
KEPT = 2**28  # bytes of decoded images that stay in memory, on all hosts together
SHARE = 0.01  # of the training's arithmetic, that --watch-interval 0 spends
NEIGHBOURS = 20


class Quality:
    """Encodes a few images and judges their features. Several processes call this together."""

    best_step = -1  # the loss chooses the checkpoint that is kept as the best

    def __init__(self, config: Config, source: Source, mesh: Mesh, faults: Faults):
        self._loader, self._mesh = valid_loader(config, source, faults), mesh
        height, width = config.image_shape
        size = height * width * config.data.channels * np.dtype(source.form.image_type).itemsize
        self._keeps, self._kept = len(source) * size <= KEPT, []
        self._encode = jax.jit(_encode, out_shardings=replicated(mesh))

    def __call__(self, state: TrainState, step: int, watch: Watch = iter) -> Evaluation:
        """Compute `watch/rank` and, where images of two classes have labels, `watch/knn` in percent."""
        features, batches = [], []
        for batch in watch(self._kept or self._loader.iterate()):
            rows = self._encode(state.model, put_rows(batch, self._mesh))
            features.append(jax.device_get([part.addressable_data(0) for part in rows]))
            if self._keeps:
                batches.append(batch)
        self._kept = batches
        x, labels, valid = (np.concatenate(parts) for parts in zip(*features, strict=True))
        metrics = {"watch/rank": effective_rank(x[valid])}
        labelled = valid & (labels >= 0)
        if len(np.unique(labels[labelled])) > 1:
            metrics["watch/knn"] = leave_one_out(x[labelled], labels[labelled], k=NEIGHBOURS)
        return Evaluation(metrics)


def _encode(model: Any, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return features [B, D] of a batch as `maejax evaluate` has them, its labels [B], and which rows are valid [B]."""
    pool = "cls+mean" if "cls+mean" in pools(model.config.encoder) else "mean"
    return encode(model, batch.images, pool).astype("float32"), batch.labels, batch.valid


def open_watched(config: Config) -> Source | None:
    """Open the images of `--watch`, in the form of the training images; None without the flag.

    Raises InputError if they do not fit or cannot be read, and for `--watch-interval` alone.
    """
    if not config.run.watch:
        if config.run.watch_interval:
            raise InputError(f"--watch-interval {config.run.watch_interval} is for the images of --watch: give them")
        return None
    source = open_source(config.run.watch, cache_dir=config.data.cache_dir)
    check_readable(source, agree(source, asked_form(config.data, config.data.channels)).channels)
    return spread(source, IMAGES)


def watch_interval(config: Config, model: MAE, images: int) -> int:
    """Choose the steps between two looks: those of the flag, or so many that a look costs `SHARE` of them."""
    if config.run.watch_interval:
        return config.run.watch_interval
    step = config.data.train_batch_size * pretrain_flop(model)
    steps = images * encode_flop(model.encoder) / (SHARE * step)
    return config.run.log_interval * max(1, math.ceil(steps / config.run.log_interval))
