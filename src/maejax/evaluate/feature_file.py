"""Features of a whole source in one file, written as they come: in constant memory, and resumable."""

import hashlib
import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maejax.data.augment import build_eval
from maejax.data.pipeline import Batch, Loader
from maejax.data.sources import Source
from maejax.errors import InputError
from maejax.evaluate.encoding import Pool, stream
from maejax.models.trees import named_arrays
from maejax.training.rundir import write_json

SUFFIXES = (".npz", ".safetensors", ".parquet")
ROWS = 4096  # rows that are copied at a time
SAVE_SECONDS = 10.0


@dataclass(frozen=True)
class Written:
    """What a file of features holds: images, those that could not be read, the shape of a feature, seconds."""

    images: int
    unreadable: int
    shape: tuple[int, ...]
    resumed_at: int
    seconds: float


def check_path(path: Path) -> None:
    """Refuse a file that cannot be written; before anything is computed.

    Raises:
        InputError: another suffix than .npz, .safetensors or .parquet, or pyarrow is missing.

    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"--out {path}: give a name that ends in {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise InputError(f"--out {path}: parquet needs pyarrow: pip install 'maejax[hf]'") from None


def write_features(
    model: Any,
    source: Source,
    path: Path,
    *,
    pool: Pool | None = "cls",
    layers: Sequence[int] | None = None,
    crop_ratio: float = 0.875,
    batch_size: int = 256,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Encode every image of a source and write `features`, `labels` and `names` to `path`, in the source's order.

    Images are resized to the model's size / `crop_ratio` and cropped at the centre. Images that cannot be read are left
    out. Features are float32 as `extract` gives them, labels int32 (-1: none), names the source's keys; the names of
    the classes go along. In .npz these are arrays; in .safetensors `names` are UTF-8 bytes with a newline between two,
    and the classes are JSON in the metadata; in .parquet columns `name`, `label`, `class`, `features` (flattened).

    What is done is kept in PATH.part until the file is whole. A call with the same weights, images and settings goes on
    there; another one starts anew. `progress` is called with images done and in all.

    Raises:
        InputError: see `check_path`; or too many images cannot be read.

    """
    start = time.monotonic()
    check_path(path)
    part = path.with_name(path.name + ".part")
    size = model.config.encoder.image_size
    recipe = {
        "encoder": fingerprint(model.encoder),
        "images": len(source),
        "first": source.keys[0],
        "last": source.keys[-1],
        "pool": pool,
        "layers": None if layers is None else list(layers),
        "crop_ratio": crop_ratio,
        "batch_size": batch_size,
        "size": list(size),
    }
    first = _done(part, recipe)
    loader = Loader(
        source,
        build_eval(size, crop_ratio),
        batch_size=batch_size,
        channels=model.config.encoder.channels,
        size=size,
        shuffle=False,
        workers=workers,
    )
    batches: list[Batch] = []  # those on their way through the encoder

    def images() -> Iterator[np.ndarray]:
        for batch in loader.iterate(first):
            batches.append(batch)
            yield batch.images

    rows: np.memmap | None = np.load(part / "features.npy", mmap_mode="r+") if first else None
    valid = np.load(part / "valid.npy") if first else np.zeros(len(source), bool)
    done, saved = first * batch_size, time.monotonic()
    for features in stream(model, images(), batch_size, pool, layers):
        if rows is None:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            shape = (len(source), *features.shape[1:])
            rows = np.lib.format.open_memmap(part / "features.npy", mode="w+", dtype=np.float32, shape=shape)
        real = batches[0].index >= 0  # the last batch is padded
        count = int(real.sum())
        rows[done : done + count] = features[real]
        valid[done : done + count] = batches.pop(0).valid[real]
        done += count
        if done < len(source) and time.monotonic() - saved >= SAVE_SECONDS:
            rows.flush()
            np.save(part / "valid.npy", valid)
            write_json(part / "done.json", {"recipe": recipe, "batches": done // batch_size})
            saved = time.monotonic()
        if progress is not None:
            progress(done, len(source))
    assert rows is not None  # a source has images
    new = part / f"new{path.suffix}"
    _WRITERS[path.suffix](new, _Table(rows, valid, source, recipe))
    shape = rows.shape[1:]
    del rows
    new.replace(path)
    shutil.rmtree(part)
    return Written(int(valid.sum()), int((~valid).sum()), shape, first * batch_size, round(time.monotonic() - start, 1))


def fingerprint(model: Any) -> str:
    """Return a checksum of a model's weights, the same for equal weights in every process."""
    digest = hashlib.sha256()
    for name, array in sorted(named_arrays(model).items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _done(part: Path, recipe: dict[str, Any]) -> int:
    """Return how many batches an interrupted call with the same recipe has left behind."""
    try:
        found = json.loads((part / "done.json").read_text())
    except (OSError, ValueError):
        return 0
    return int(found["batches"]) if found["recipe"] == recipe else 0


class _Table:
    """The rows to write: features on disk, read a few at a time, those of unreadable images left out."""

    def __init__(self, rows: np.ndarray, valid: np.ndarray, source: Source, recipe: dict[str, Any]):
        self.rows, self.shape = rows, rows.shape[1:]
        self.index = np.flatnonzero(valid)
        self.labels = np.asarray(source.labels[self.index], np.int32)
        self.names = [source.keys[i] for i in self.index.tolist()]
        self.classes, self.recipe = source.classes, recipe

    def chunks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, len(self.index), ROWS):
            place = slice(start, start + ROWS)
            yield place, np.ascontiguousarray(self.rows[self.index[place]])


def _write_npz(path: Path, table: _Table) -> None:
    arrays = {
        "labels": table.labels,
        "names": np.array(table.names, np.str_),
        "classes": np.array(table.classes, np.str_),
    }
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as file:
            shape = (len(table.index), *table.shape)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
            for _, chunk in table.chunks():
                file.write(chunk.astype("<f4", copy=False).tobytes())
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(f"{name}.npy", buffer.getvalue())


def _write_safetensors(path: Path, table: _Table) -> None:
    # The format is a length, a JSON header and the bytes; writing it here lets the features pass through in parts.
    names = "\n".join(table.names).encode()
    sizes = {
        "features": ("F32", [len(table.index), *table.shape], 4 * len(table.index) * int(np.prod(table.shape))),
        "labels": ("I32", [len(table.index)], 4 * len(table.index)),
        "names": ("U8", [len(names)], len(names)),
    }
    header: dict[str, Any] = {
        "__metadata__": {"classes": json.dumps(table.classes), "recipe": json.dumps(table.recipe)}
    }
    end = 0
    for name, (dtype, shape, size) in sizes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, chunk in table.chunks():
            file.write(chunk.astype("<f4", copy=False).tobytes())
        file.write(table.labels.astype("<i4").tobytes() + names)


def _write_parquet(path: Path, table: _Table) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = int(np.prod(table.shape))
    named = dict(enumerate(table.classes))
    schema = pa.schema(
        [
            ("name", pa.string()),
            ("label", pa.int32()),
            ("class", pa.string()),
            ("features", pa.list_(pa.float32(), width)),
        ],
        metadata={"recipe": json.dumps(table.recipe), "shape": json.dumps(table.shape)},
    )
    with pq.ParquetWriter(path, schema) as writer:
        for place, chunk in table.chunks():
            labels = table.labels[place]
            columns = [
                pa.array(table.names[place], pa.string()),
                pa.array(labels),
                pa.array([named.get(label) for label in labels.tolist()], pa.string()),
                pa.FixedSizeListArray.from_arrays(pa.array(chunk.reshape(-1)), width),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


_WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors, ".parquet": _write_parquet}
