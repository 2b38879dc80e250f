"""`maejax features`: features of all images of a source, in a file."""

import os
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from maejax.commands.command import check_writable, command_line, prepare_devices
from maejax.commands.early_stop import early_stop
from maejax.commands.inspect import Unstated
from maejax.console import plain, progress
from maejax.errors import InputError
from maejax.options.job import Processes
from maejax.pixels import Pixels


@dataclass(frozen=True)
class Encode(Unstated, Pixels, Processes):
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

    def join(self) -> bool:
        """Join the processes of `--distributed`, and find the devices; return whether this process writes."""
        from maejax.distributed.processes import join

        return prepare_devices(partial(join, **{field.name: getattr(self, field.name) for field in fields(Processes)}))

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
    """File to write: .npz, .safetensors, .parquet, or .npy, which has names and labels in a .parquet beside it."""
    pool: str = ""
    """cls: the cls token. mean: the mean of the patch tokens. cls+mean: both. map: the encoder's own attention pooling.
    none: all tokens. Empty: map, else cls, else mean, whichever the encoder has."""
    layers: tuple[int, ...] = ()
    """Blocks after which features are taken, 0 the first, -1 the last. Empty: the encoder's output."""
    part: str = ""
    """I/N: do part I of N alone, counted from 0; slurm or kubernetes: as the variables of an array or an indexed
    job say; slurm/N: where the array has some parts of N alone. The file is then NAME-0000I-of-0000N.npy; a finished
    part is left as it is."""
    gather: bool = False
    """Check that all parts are there and fit, and write NAME.json, their index, and NAME.parquet; encode nothing."""
    cache_dir: str = ""
    """Folder that keeps fetched shards. Empty: a shard is removed once it is encoded, and two are here at most."""

    def outputs(self) -> dict[str, bool]:
        """Name what is written."""
        return {"out": False}

    def brings(self) -> tuple[str, ...]:
        """Name the manifests of parts, and their keys to gather them."""
        return (*super().brings(), *(("*.parquet",) if self.gather else ()))

    def run(self, console: Console) -> dict[str, Any]:
        """Write the features and return what was written; raises InputError before anything is encoded.

        SIGTERM and Ctrl-C end the process with exit code 75: the same command goes on.
        """
        with early_stop():
            return self._run(console)

    def _run(self, console: Console) -> dict[str, Any]:
        """Do what `run` says."""
        out = Path(self.out)
        from maejax.data.pieces import WHOLE, open_pieces, read_part

        part = read_part(self.part) if self.part else None
        check_writable("--out", self.out)
        if self.gather:
            if part is not None:
                raise InputError("--gather is for all parts: leave --part out")
            from maejax.evaluation.feature_parts import gather

            return {"out": str(out.with_suffix(".json")), **gather(out)}
        first = self.join()
        console = console if first else Console(quiet=True)
        from maejax.data.form import form_for
        from maejax.data.sources import Source
        from maejax.evaluation import feature_file
        from maejax.storage.lock import held

        feature_file.check_path(out, part)
        self.check(self.pool, "none")
        pieces = open_pieces(self.images, labels=self.labels or None, part=part or WHOLE, cache_dir=self.cache_dir)
        model = self.load(self.ckpt)
        try:
            for layer in self.layers:
                model.layer_number(layer)
        except ValueError as error:
            raise InputError(f"--layers: {error}") from None
        for problem in (problem for each in pieces.local if isinstance(each, Source) for problem in each.problems):
            plain(console, problem)
        pool = None if self.pool == "none" else self.chosen_pool(self.pool, model.config.encoder, 0)
        chosen: dict[str, Any] = {"pool": pool, "layers": self.layers or None, "part": part}
        file = out if part is None else feature_file.part_path(out, part)
        alone = held(file, str(file), "wait for it, or choose another --out") if first else nullcontext()
        form = form_for(model.config.encoder, self)
        what = "encoding" if part is None else f"part {part.number} of {part.count}"
        with alone, progress(console, what, "images") as report:
            written = feature_file.write_features(model, pieces, out, form, progress=report, **chosen, **self.reading)
        return {"out": str(file), **written._asdict()}

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print in one line what was written, or gathered."""
        files = f"{len(result['parts'])} files that {result['out']} lists" if self.gather else result["out"]
        plain(console, f"{result['images']:,} features of shape {list(result['shape'])} in {files}")

    def following(self, result: dict[str, Any]) -> str:
        """Return how good the features are; of a part, what is to be done after the last."""
        if self.part:
            words = "features", self.ckpt, self.images, "--out", self.out, "--gather"
            return f"{command_line(*words)} (after the last part)"
        return f"{command_line('evaluate', self.ckpt, *self.stated())} (needs labelled images)"
