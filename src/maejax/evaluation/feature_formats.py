"""The forms of a file of features: .npz, .safetensors, .parquet, and .npy beside a .parquet of keys."""

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from maejax.data.keys import Key, Keys
from maejax.storage.atomic import write_atomically

SUFFIXES = (".npz", ".safetensors", ".parquet", ".npy")


def write_features_as(path: Path, features: Path, keys: Keys, recipe: dict[str, Any], *, part: bool = False) -> None:
    """Write features, float32 [n, ...] in a .npy file, with their keys to `path`, in the form of its suffix.

    .npz holds `features`, `labels`, `names` and `classes`. .safetensors holds `names` as UTF-8, a newline between two,
    and classes as JSON in its metadata. .parquet has `name`, `label`, `class`, flat `features`. .npy holds the features
    alone, for memory maps, and a .parquet of the same name the other three. Labels are int32, -1 for none. The keys of
    a `part` have the numbers of their own shards; `gather` numbers them anew.
    """
    about = {"recipe": json.dumps(recipe)}
    if path.suffix == ".npy":
        beside = path.with_suffix(".parquet")
        with write_atomically(beside) as new, open_keys(new, keys, about, raw=part) as write:
            for block in keys.blocks():
                write(block)
        features.replace(path)
        return
    with write_atomically(path) as new:
        rows = np.load(features, mmap_mode="r")
        if path.suffix == ".parquet":
            _write_parquet(new, rows, keys, about)
            return
        found = [key for block in keys.blocks() for key in block]
        labels, names = np.array([keys.label(key) for key in found], np.int32), [key.name for key in found]
        if path.suffix == ".npz":
            texts: dict[str, Any] = {"names": np.array(names, np.str_), "classes": np.array(keys.classes, np.str_)}
            _write_npz(new, {"features": rows, "labels": labels, **texts})
        else:  # from its version 0.8 on without reading it whole
            tensors = {"features": rows, "labels": labels, "names": np.frombuffer("\n".join(names).encode(), np.uint8)}
            save_file(tensors, new, {"classes": json.dumps(keys.classes), **about})


@contextmanager
def open_keys(
    path: Path, keys: Keys, about: dict[str, str], *, raw: bool = False
) -> Iterator[Callable[[list[Key]], None]]:
    """Open a .parquet of names, labels and classes; yields a function that writes a block of keys.

    Labels and classes are those of `keys`, or `raw` as the shards have them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(_columns(), metadata=about)
    with pq.ParquetWriter(path, schema) as writer:
        yield lambda block: writer.write_table(pa.table(_cells(block, keys, raw), schema=schema))


def _columns() -> dict[str, Any]:
    import pyarrow as pa

    return {"name": pa.string(), "label": pa.int32(), "class": pa.string()}


def _cells(block: list[Key], keys: Keys, raw: bool = False) -> list[list[Any]]:
    names = [key.name for key in block]
    if raw:
        return [names, [key.number for key in block], [key.kind or None for key in block]]
    labels = [keys.label(key) for key in block]
    return [names, labels, [keys.classes[i] if 0 <= i < len(keys.classes) else None for i in labels]]


def _write_parquet(path: Path, rows: np.ndarray, keys: Keys, about: dict[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    width, start = int(np.prod(rows.shape[1:])), 0
    types = _columns() | {"features": pa.list_(pa.float32(), width)}
    schema = pa.schema(types, metadata={**about, "shape": json.dumps(rows.shape[1:])})
    with pq.ParquetWriter(path, schema) as writer:
        for block in keys.blocks():
            flat = np.asarray(rows[start : start + len(block)]).reshape(-1)
            start += len(block)
            features = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
            writer.write_table(pa.table([*_cells(block, keys), features], schema=schema))


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as `np.savez` does, but without the time: equal features are equal bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
