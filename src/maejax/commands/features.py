"""`maejax features`: features of all images of a source, in a file."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from maejax.commands.command import check_writable, prepare_devices
from maejax.commands.inspect import Unstated
from maejax.console import plain, progress
from maejax.errors import InputError
from maejax.pixels import Pixels


@dataclass(frozen=True)
class Encode(Unstated, Pixels):
    """How images are encoded, as flags of the commands that encode them."""

    labels: str = field(default="", kw_only=True)
    """File with the class of each image: csv, tsv or json, file name (or stem) and class."""
    test_crop_ratio: float = field(default=0.0, kw_only=True)
    """Images are resized to image size / ratio, then cropped. 0: .875 up to 224 pixels, else 1."""
    batch_size: int = field(default=64, kw_only=True)
    """Images that are encoded together."""
    workers: int = field(default=os.cpu_count() or 1, kw_only=True)
    """Threads that read and decode; 0: the main one alone."""

    def check(self, pool: str, *more: str) -> None:
        """Check the flags, of which `pool` may be one of `more` too; raises InputError for the first that is wrong."""
        from maejax.models.pooling import POOLS

        if pool and pool not in (*POOLS, *more):
            raise InputError(f"--pool {pool}: choose one of {', '.join((*POOLS, *more))}")
        if self.batch_size < 1 or self.workers < 0 or not 0 <= self.test_crop_ratio <= 1:
            least = "--batch-size is at least 1, --workers at least 0"
            raise InputError(f"{least}, --test-crop-ratio at least 0 and at most 1")

    @property
    def reading(self) -> dict[str, Any]:
        """The flags as arguments of `encode_source`."""
        return {"crop_ratio": self.test_crop_ratio, "batch_size": self.batch_size, "workers": self.workers}


@dataclass(frozen=True)
class FeaturesCommand(Encode):
    """Write the encoder's features of every image, with labels and names, to one file.

    Nothing is masked or augmented. The same command continues a call that was interrupted.
    """

    ckpt: str = field(metadata={"positional": "CKPT"})
    """Run directory or checkpoint, or anything else that `maejax inspect` takes."""
    images: str = field(metadata={"positional": "IMAGES"})
    """Anything that --train-dataset-shards takes."""
    out: str
    """File to write: .npz, .safetensors or .parquet."""
    pool: str = ""
    """cls: the cls token. mean: the mean of the patch tokens. cls+mean: both. map: the encoder's own attention pooling.
    none: all tokens. Empty: map, else cls, else mean, whichever the encoder has."""
    layers: tuple[int, ...] = ()
    """Blocks after which features are taken, 0 the first, -1 the last. Empty: the encoder's output."""

    def run(self, console: Console) -> dict[str, Any]:
        """Write the features and return what was written; raises InputError before anything is encoded."""
        out = Path(self.out)
        check_writable("--out", self.out)
        prepare_devices()
        from maejax.data import pipeline, sources
        from maejax.data.agreement import agree
        from maejax.data.form import form_for
        from maejax.evaluate import feature_file
        from maejax.storage.lock import held

        feature_file.check_path(out)
        self.check(self.pool, "none")
        source = sources.open_source(self.images, labels=self.labels or None)
        model = self.load(self.ckpt)
        try:
            for layer in self.layers:
                model.layer_number(layer)
        except ValueError as error:
            raise InputError(f"--layers: {error}") from None
        pipeline.check_readable(source, agree(source, form_for(model.config.encoder, self)).channels)
        for problem in source.problems:
            plain(console, problem)
        pool = None if self.pool == "none" else self.chosen_pool(self.pool, model.config.encoder, 0)
        chosen: dict[str, Any] = {"pool": pool, "layers": self.layers or None}
        alone = held(out, str(out), "wait for it, or choose another --out")
        with alone, progress(console, "encoding", "images") as report:
            written = feature_file.write_features(model, source, out, progress=report, **chosen, **self.reading)
        return {"out": str(out), **written._asdict()}

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print in one line what was written."""
        plain(console, f"{result['images']:,} features of shape {list(result['shape'])} in {self.out}")
