"""Features of all images in one file, or in a part of several: written as they come, in constant memory, resumable."""

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from maejax.data.agreement import agree
from maejax.data.form import Form
from maejax.data.keys import Keys, Kind, key_of, kind_of
from maejax.data.pieces import TOGETHER, WHOLE, Part, Pieces
from maejax.data.pipeline import check_readable
from maejax.data.sources import Source
from maejax.distributed.processes import broadcast_from_0
from maejax.errors import Failed, InputError, install
from maejax.evaluation.encoding import READING, Encoded, Layers, Pool, encode_source, feature_shape
from maejax.evaluation.feature_formats import SUFFIXES, write_features_as
from maejax.models.trees import named_arrays
from maejax.training.rundir import write_json

_log = logging.getLogger("maejax.data")
SAVE_SECONDS = 10.0  # between two notes of progress
HEADER = 128  # bytes of the header of a .npy file, whatever its shape


class Written(NamedTuple):
    """The content of a file of features: images, unreadable images, shape of a feature; and the seconds it took."""

    images: int
    unreadable: int
    shape: tuple[int, ...]
    resumed_at: int
    seconds: float


def check_path(path: Path, part: Part | None = None) -> None:
    """Check the name of a file of features; raises InputError for another suffix, or if pyarrow is missing."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"--out {path}: give a name that ends in {', '.join(SUFFIXES)}")
    if part is not None and path.suffix != ".npy":
        raise InputError(f"--out {path}: parts are .npy files beside their keys; give a name that ends in .npy")
    if path.suffix in (".npy", ".parquet"):
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise InputError(f"--out {path}: its keys are parquet, which needs pyarrow: {install('hf')}") from None


def write_features(
    model: Any,
    pieces: Pieces,
    path: Path,
    form: Form,
    *,
    part: Part | None = None,
    pool: Pool | None = "cls",
    layers: Layers = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    **reading: Any,
) -> Written:
    """Encode every image of a source, as `encode_source` does, and write features, labels and names to `path`.

    Rows are in the source's order, without unreadable images; `feature_formats` has the forms of the file. `form` is
    what the encoder asks of images. Several processes call this together, and the first one writes. Finished rows stay
    in PATH.part until the file is complete. A call with the same weights, images and settings resumes there; any other
    call starts anew. A `part` writes `part_path`, and last of all its manifest, a .json beside it; if that is there, it
    does nothing. `progress` is called with the images done, and in all if that is known.

    Raises InputError as `check_path` does, for images that do not fit, or if too many cannot be read. Raises Failed for
    a shard that does not come and for a full disk.
    """
    start = time.monotonic()
    check_path(path, part)
    reading, path = READING | reading, path if part is None else part_path(path, part)
    recipe = {
        "encoder": fingerprint(model.encoder),
        "source": pieces.identity,
        "together": TOGETHER,
        "part": list(part or WHOLE),
        "pool": pool,
        "layers": None if layers is None else list(layers),
        "crop_ratio": reading["crop_ratio"],
        "batch_size": reading["batch_size"],
        "size": list(model.config.encoder.image_size),
        "form": [list(value) if isinstance(value, tuple) else value for value in form._replace(first="")],
    }
    manifest = path.with_suffix(".json")
    if part is not None and (found := read_manifest(manifest)) and found["recipe"] == recipe:
        return Written(found["images"], found["unreadable"], tuple(found["shape"]), found["images"], 0.0)
    first = jax.process_index() == 0
    rows = Rows(path.with_name(path.name + ".part"), recipe, feature_shape(model, pool, layers), first)
    if first and pieces.total is not None:
        check_room(path, 4 * int(np.prod(rows.shape)) * (pieces.total - rows.count))
    begun, saved, done = rows.seen, time.monotonic(), rows.seen
    with rows, pieces.opened(rows.piece) as opened:
        for number, source in enumerate(opened, rows.piece):
            agree(source, form)
            rows.begin(source)
            for problem in source.problems if source not in pieces.local else ():
                _log.warning("%s", problem)
            if not number:
                check_readable(source, source.form.channels)
            at = rows.batches if number == rows.piece else 0
            for batch in encode_source(model, source, pool=pool, layers=layers, first=at, **reading):
                at, done = at + 1, done + int((batch.index >= 0).sum())
                rows.append(batch, source)
                if time.monotonic() - saved >= SAVE_SECONDS:
                    rows.note(number, at, done)
                    saved = time.monotonic()
                progress(done, pieces.total)
            rows.note(number + 1, 0, done)
    unreadable = done - rows.count
    if first:
        rows.finish(path, part is not None)
        if part is not None:
            about = {"images": rows.count, "unreadable": unreadable, "shape": rows.shape, "kinds": rows.kinds}
            write_json(manifest, {"recipe": recipe, **about})
        shutil.rmtree(rows.folder)
    return Written(rows.count, unreadable, rows.shape, begun, round(time.monotonic() - start, 1))


def part_path(path: Path, part: Part) -> Path:
    """Return the file of a part: NAME-00002-of-00008.npy."""
    return path.with_name(f"{path.stem}-{part.number:05d}-of-{part.count:05d}{path.suffix}")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Read the manifest of a part; None if there is none, or if its features are not there."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads(path.read_text())
        size = HEADER + 4 * found["images"] * int(np.prod(found["shape"], dtype=np.int64))
        if path.with_suffix(".npy").stat().st_size == size and path.with_suffix(".parquet").exists():
            return found
    return None


class Rows:
    """Features and keys as they come, in the folder of an unfinished file; in other processes than the first, a count.

    `piece` and `batches` say where to go on, `seen` how many images came before, `count` how many of them have a row.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any], shape: tuple[int, ...], first: bool):
        self.folder, self._recipe, self.shape, self._first = folder, recipe, shape, first
        self.kinds: list[Kind] = []
        note: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, KeyError):  # KeyError: of an earlier version
            found = json.loads((folder / "done.json").read_text()) if first else {}
            note = found if found.get("recipe") == recipe and self._whole(found) else {}
        numbers = (int(broadcast(note.get(name, 0))) for name in ("piece", "batches", "seen", "count"))
        self.piece, self.batches, self.seen, self.count = numbers
        if not first:
            return
        if not note:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.kinds = [Kind(tuple(classes), *rest) for classes, *rest in note.get("kinds", ())]
        self._features, self._keys = ((folder / name).open("ab") for name in ("features.npy", "keys.jsonl"))
        self._features.truncate(note.get("features", HEADER))
        self._keys.truncate(note.get("keys", 0))

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        for file in (self._features, self._keys) if self._first else ():
            with contextlib.suppress(OSError):  # what a full disk has no room for is not noted as written
                file.close()

    def _whole(self, note: dict[str, Any]) -> bool:
        sizes = ((self.folder / name).stat().st_size for name in ("features.npy", "keys.jsonl"))
        return all(size >= note[name] for size, name in zip(sizes, ("features", "keys"), strict=True))

    def begin(self, source: Source) -> None:
        """Note what the next source knows of its classes."""
        if (kind := kind_of(source)) not in self.kinds:
            self.kinds.append(kind)

    def append(self, batch: Encoded, source: Source) -> None:
        """Append the readable images of a batch of a source."""
        features, index = batch.features[batch.valid], batch.index[batch.valid].tolist()
        self.count += len(features)
        if not self._first:
            return
        lines = [json.dumps(key_of(source, i), ensure_ascii=False) for i in index]
        try:
            self._features.write(np.ascontiguousarray(features, np.float32).data)
            self._keys.write("".join(f"{line}\n" for line in lines).encode())
        except OSError as error:
            raise full(self.folder, error) from None

    def note(self, piece: int, batches: int, seen: int) -> None:
        """Note that all up to a batch of a piece is written."""
        if not self._first:
            return
        try:
            self._features.flush()
            self._keys.flush()
            sizes = {"features": self._features.tell(), "keys": self._keys.tell()}
            about = {"recipe": self._recipe, "piece": piece, "batches": batches, "seen": seen, "count": self.count}
            write_json(self.folder / "done.json", {**about, "kinds": self.kinds, **sizes})
        except OSError as error:
            raise full(self.folder, error) from None

    def finish(self, path: Path, part: bool) -> None:
        """Write the file from the rows, or that of a part."""
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(self.count, *self.shape)!r}, }}"
        with (self.folder / "features.npy").open("r+b") as file:
            file.write(b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little"))
            file.write(header.ljust(HEADER - 11).encode() + b"\n")
        keys = Keys(self.folder / "keys.jsonl", self.count, self.kinds)
        try:
            write_features_as(path, self.folder / "features.npy", keys, self._recipe, part=part)
        except OSError as error:
            raise full(self.folder, error) from None


def check_room(path: Path, size: int) -> None:
    """Check that a file of features has room on its disk, beside a copy of all but .npy; raises InputError."""
    size, free = size * (1 if path.suffix == ".npy" else 2), shutil.disk_usage(path.parent).free
    if size > free:
        raise InputError(f"--out {path}: needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; make room")


def full(folder: Path, error: OSError) -> Failed:
    """Return the error of a disk that cannot be written."""
    return Failed(f"{folder}: cannot be written: {error.strerror}; make room and start the same command again")


def broadcast(value: int) -> float:
    """Return the value of the first process."""
    return broadcast_from_0(value) if jax.process_count() > 1 else value


def fingerprint(model: Any) -> str:
    """Return a checksum of a model's weights, the same for equal weights in every process."""
    digest = hashlib.sha256()
    for name, array in sorted(named_arrays(model).items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
