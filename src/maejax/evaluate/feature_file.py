"""Features of a whole source in one file: written as they come, in constant memory, and resumable."""

import contextlib
import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from maejax.data.sources import Source
from maejax.errors import InputError, install
from maejax.evaluate.encoding import READING, Layers, Pool, encode_source
from maejax.models.trees import named_arrays
from maejax.training.rundir import write_json

SUFFIXES = (".npz", ".safetensors", ".parquet")
ROWS = 4096  # rows of one group in a parquet file
SAVE_SECONDS = 10.0  # between two notes of progress


class Written(NamedTuple):
    """The content of a file of features: images, unreadable images, shape of a feature; and the seconds it took."""

    images: int
    unreadable: int
    shape: tuple[int, ...]
    resumed_at: int
    seconds: float


def check_path(path: Path) -> None:
    """Check the name of a file of features; raises InputError for another suffix, or if pyarrow is missing."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"--out {path}: give a name that ends in {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise InputError(f"--out {path}: parquet needs pyarrow: {install('hf')}") from None


def write_features(
    model: Any,
    source: Source,
    path: Path,
    *,
    pool: Pool | None = "cls",
    layers: Layers = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **reading: Any,
) -> Written:
    """Encode every image of a source, as `encode_source` does, and write `features`, `labels` and `names` to `path`.

    Rows are in the source's order, without unreadable images. Features are float32 as of `extract`, labels int32 (-1:
    none), names the source's keys. .npz holds arrays, with `classes` as a fourth. .safetensors holds `names` as UTF-8,
    a newline between two, and classes as JSON in its metadata. .parquet has `name`, `label`, `class`, flat `features`.

    Finished rows stay in PATH.part until the file is complete. A call with the same weights, images and settings
    resumes there; any other call starts anew. `progress` is called with the images done and the images in all. Raises
    InputError as `check_path` does, or if too many images cannot be read.
    """
    start = time.monotonic()
    check_path(path)
    part, reading = path.with_name(path.name + ".part"), READING | reading
    batch_size = reading["batch_size"]
    recipe = {
        "encoder": fingerprint(model.encoder),
        "images": len(source),
        "first": source.keys[0],
        "last": source.keys[-1],
        "pool": pool,
        "layers": None if layers is None else list(layers),
        "crop_ratio": reading["crop_ratio"],
        "batch_size": batch_size,
        "size": list(model.config.encoder.image_size),
        "form": [list(value) if isinstance(value, tuple) else value for value in source.form._replace(first="")],
    }
    first, kept = 0, 0
    with contextlib.suppress(OSError, ValueError, KeyError):  # KeyError: of an earlier version
        found = json.loads((part / "done.json").read_text())
        if found["recipe"] == recipe:
            first, kept = found["batches"], found["kept"]
    rows: np.memmap | None = np.load(part / "features.npy", mmap_mode="r+") if first else None
    valid = np.load(part / "valid.npy") if first else np.zeros(len(source), bool)
    done, saved = first * batch_size, time.monotonic()
    for batch, features in encode_source(model, source, pool=pool, layers=layers, first=first, **reading):
        if rows is None:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            shape = (len(source), *features.shape[1:])
            rows = np.lib.format.open_memmap(part / "features.npy", mode="w+", dtype=np.float32, shape=shape)
            with (part / "features.npy").open("r+b") as file:  # a map of a disk that fills up ends the process
                os.posix_fallocate(file.fileno(), 0, (part / "features.npy").stat().st_size)
        count, images = int(batch.valid.sum()), int((batch.index >= 0).sum())  # the last batch is padded
        rows[kept : kept + count] = features[batch.valid]
        valid[done : done + images] = batch.valid[batch.index >= 0]
        done, kept = done + images, kept + count
        if done < len(source) and time.monotonic() - saved >= SAVE_SECONDS:
            rows.flush()
            np.save(part / "valid.npy", valid)
            write_json(part / "done.json", {"recipe": recipe, "batches": done // batch_size, "kept": kept})
            saved = time.monotonic()
        progress(done, len(source))
    assert rows is not None  # a source has images
    new, shape = part / f"new{path.suffix}", rows.shape[1:]
    _write(new, rows[:kept], source, np.flatnonzero(valid), recipe)
    del rows
    new.replace(path)
    shutil.rmtree(part)
    return Written(kept, len(source) - kept, shape, first * batch_size, round(time.monotonic() - start, 1))


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as `np.savez` does, but without the time: equal features are equal bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def fingerprint(model: Any) -> str:
    """Return a checksum of a model's weights, the same for equal weights in every process."""
    digest = hashlib.sha256()
    for name, array in sorted(named_arrays(model).items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _write(path: Path, rows: np.ndarray, source: Source, index: np.ndarray, recipe: dict[str, Any]) -> None:
    """Write features, labels and names of the images `index`, without reading all of a memory-mapped array."""
    labels, names = np.asarray(source.labels[index], np.int32), [source.keys[i] for i in index.tolist()]
    about = {"recipe": json.dumps(recipe)}
    if path.suffix == ".npz":
        texts: dict[str, Any] = {"names": np.array(names, np.str_), "classes": np.array(source.classes, np.str_)}
        _write_npz(path, {"features": rows, "labels": labels, **texts})
    elif path.suffix == ".safetensors":  # from its version 0.8 on
        tensors = {"features": rows, "labels": labels, "names": np.frombuffer("\n".join(names).encode(), np.uint8)}
        save_file(tensors, path, {"classes": json.dumps(source.classes), **about})
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        classes, width = dict(enumerate(source.classes)), int(np.prod(rows.shape[1:]))
        text, floats = pa.string(), pa.list_(pa.float32(), width)
        types = {"name": text, "label": pa.int32(), "class": text, "features": floats}
        schema = pa.schema(types, metadata={**about, "shape": json.dumps(rows.shape[1:])})
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, len(rows), ROWS):
                place = slice(start, start + ROWS)
                named = [classes.get(label) for label in labels[place].tolist()]
                flat = pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(rows[place]).reshape(-1)), width)
                writer.write_table(pa.table([names[place], labels[place], named, flat], schema=schema))
