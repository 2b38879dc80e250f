"""Evaluation from Python: `maejax evaluate` without a report."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from maejax.api.creation import Model
from maejax.api.dataset import Dataset, Images
from maejax.api.flags import ReadFlags
from maejax.data.form import form_for
from maejax.errors import InputError
from maejax.evaluation.evaluated import Evaluated, evaluate_encoder, named_protocols
from maejax.evaluation.labelled import pair
from maejax.models.pooling import pools
from maejax.pixels import Pixels
from maejax.weights.files import load


def evaluate(
    model: str | Path | Model,
    train: Images | Dataset,
    test: Images | Dataset,
    *,
    protocol: str | Sequence[str] = "all",
    pool: Literal["", "cls", "mean", "cls+mean", "map"] = "",
    control: bool = True,
    seed: int = 0,
    test_crop_ratio: float = 0.0,
    batch_size: int = 64,
    workers: int = os.cpu_count() or 1,
    log: Callable[[str], None] = lambda _: None,
    **pixels: Unpack[ReadFlags],
) -> Evaluated:
    """Evaluate the encoder of a model, or of what `load` reads, on labelled images, and untrained for `control`.

    `train` fits the probes and `test` measures them. The keyword arguments are those of `maejax evaluate`; `protocol`
    is knn, fewshot, linear, attentive, efficient, several of these, or all. `log` receives a line before each stage.
    Raises InputError if something is wrong, before anything is encoded.
    """
    protocols = named_protocols(protocol if isinstance(protocol, str) else ",".join(protocol))
    data = pair(*((each if isinstance(each, Dataset) else Dataset(each)).open_whole() for each in (train, test)))
    encoder: Any = (load(model) if isinstance(model, str | Path) else model).encoder
    known = pools(encoder.config)
    if pool and pool not in known:
        raise InputError(f"pool={pool!r}: this encoder has {', '.join(known)}")
    chosen = pool or known[-1]
    reading: dict[str, Any] = {"crop_ratio": test_crop_ratio, "batch_size": batch_size, "workers": workers}
    form = form_for(encoder.config, Pixels(**pixels))  # type: ignore[arg-type]
    return evaluate_encoder(encoder, data, protocols, form, pool=chosen, control=control, seed=seed, log=log, **reading)
