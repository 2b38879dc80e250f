"""Features of all images of a source, in a file (`maejax features`)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from maejax.console import progress
from maejax.data.pipeline import check_readable
from maejax.data.sources import open_source
from maejax.errors import InputError
from maejax.evaluate.encoding import POOLS
from maejax.evaluate.feature_file import check_path, write_features
from maejax.weights.files import load


def run(
    console: Console,
    ckpt: str,
    images: str,
    out: Path,
    *,
    pool: str,
    layers: Sequence[int],
    labels: str | None,
    crop_ratio: float,
    batch_size: int,
    workers: int,
) -> dict[str, Any]:
    """Write the features of `images` to `out`; returns what was written, as JSON can hold it.

    Raises InputError and InputError for wrong input, before anything is encoded.
    """
    check_path(out)
    if pool not in (*POOLS, "none"):
        raise InputError(f"--pool {pool}: choose {', '.join(POOLS)}, or none for all tokens")
    if batch_size < 1 or workers < 0 or not 0 < crop_ratio <= 1:
        raise InputError("--batch-size is at least 1, --workers at least 0, --test-crop-ratio above 0 and at most 1")
    source = open_source(images, labels=labels)
    model = load(ckpt)
    try:
        for layer in layers:
            model.layer_number(layer)
    except ValueError as error:
        raise InputError(f"--layers: {error}") from None
    check_readable(source, model.config.encoder.channels)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with progress(console, "encoding", "images") as tell:
            written = write_features(
                model,
                source,
                out,
                pool=None if pool == "none" else pool,
                layers=layers or None,  # type: ignore[arg-type]
                crop_ratio=crop_ratio,
                batch_size=batch_size,
                workers=workers,
                progress=tell,
            )
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}; choose another place") from None
    return {"out": str(out), **dataclasses.asdict(written)}
