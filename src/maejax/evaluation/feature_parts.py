"""Parts of features, each computed alone: checked, and put together under one index."""

import json
from pathlib import Path
from typing import Any

from maejax.data.keys import ROWS, Key, Keys, Kind
from maejax.data.pieces import Part
from maejax.errors import Failed, InputError
from maejax.evaluation.feature_file import part_path, read_manifest
from maejax.evaluation.feature_formats import open_keys
from maejax.storage.atomic import write_atomically
from maejax.training.rundir import write_json


def gather(path: Path) -> dict[str, Any]:
    """Check the parts of `path`, NAME.npy, and write NAME.parquet, the keys of all, and NAME.json, the index.

    The features stay where they are: the index lists their files in order, each with the row of its first feature in
    the whole. Labels are numbered as without parts. Returns the index. Raises Failed for a part that is not there, and
    InputError for parts that do not belong together.
    """
    found = sorted(path.parent.glob(f"{path.stem}-?????-of-?????.json"))
    if not found:
        raise Failed(f"{path}: no part of it is there; compute them first, each with --part I/N")
    counts = {int(each.stem.rpartition("-")[2]) for each in found}
    if len(counts) > 1:
        listed = " and ".join(map(str, sorted(counts)))
        raise InputError(f"{path}: has parts of {listed}; remove those that do not count, {found[0]} for one")
    (count,) = counts
    files = [part_path(path, Part(number, count)) for number in range(count)]
    manifests = [read_manifest(file.with_suffix(".json")) for file in files]
    missing = [str(number) for number, manifest in enumerate(manifests) if manifest is None]
    if missing:
        more = f" and {len(missing) - 9} more" if len(missing) > 9 else ""
        raise Failed(
            f"{path}: part {', '.join(missing[:9])}{more} of {count} is not there, or not whole; compute it with "
            f"--part {missing[0]}/{count}, then gather again"
        )
    parts = [manifest for manifest in manifests if manifest is not None]
    recipes = [{name: value for name, value in part["recipe"].items() if name != "part"} for part in parts]
    for file, recipe in zip(files, recipes, strict=True):
        if wrong := [name for name in recipe if recipe[name] != recipes[0][name]]:
            raise InputError(
                f"{file} and {files[0]} differ in their {', '.join(wrong)}: {recipe[wrong[0]]} against "
                f"{recipes[0][wrong[0]]}; compute one of them again"
            )
    kinds = [Kind(tuple(classes), *rest) for part in parts for classes, *rest in part["kinds"]]
    keys = Keys(path, sum(part["images"] for part in parts), kinds)
    _write_keys(path.with_suffix(".parquet"), [file.with_suffix(".parquet") for file in files], keys, recipes[0])
    rows, listed, shape = 0, [], next((part["shape"] for part in parts if part["shape"]), [])
    for file, part in zip(files, parts, strict=True):
        listed.append({"features": file.name, "first": rows, "images": part["images"]})
        rows += part["images"]
    unreadable = sum(part["unreadable"] for part in parts)
    index = {"images": rows, "unreadable": unreadable, "shape": shape, "classes": list(keys.classes)}
    index |= {"recipe": recipes[0], "parts": listed}
    write_json(path.with_suffix(".json"), index)
    return index


def _write_keys(path: Path, parts: list[Path], keys: Keys, recipe: dict[str, Any]) -> None:
    import pyarrow.parquet as pq

    with write_atomically(path) as new, open_keys(new, keys, {"recipe": json.dumps(recipe)}) as write:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(ROWS):
                    names, numbers, kinds = (column.to_pylist() for column in batch.columns)
                    rows = zip(names, numbers, kinds, strict=True)
                    write([Key(name, number, kind or "") for name, number, kind in rows])
