"""Shards against the index beside them: sizes, checksums, numbers of images, and whether every image is whole."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from maejax.data.arrays import stored_pixels
from maejax.data.form import Form
from maejax.data.listing import in_tar
from maejax.errors import InputError, UnreadableImage


class Verified(NamedTuple):
    """Counts of what was found, and its faults: pairs of the name of a shard or image and a reason."""

    shards: int
    images: int
    bytes: int
    wrong: list[tuple[str, str]]


def verify(
    dst: str, *, deep: bool = False, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Verified:
    """Read every shard of the folder `dst` again and compare it with its `index.json`.

    Compared are bytes, sha256 and samples, as far as the index has them. Each shard has to be a whole tar; with `deep`,
    each of its images has to decode. Shards that the index does not name are wrong too. `workers` threads read a shard
    each (None: one for each core). `progress` is called with the number of bytes done and of all. Raises InputError if
    there is no index, or it cannot be read.
    """
    folder = Path(dst).expanduser()
    try:
        index = json.loads((folder / "index.json").read_bytes())
        entries: list[dict[str, Any]] = [{**entry, "name": str(entry["name"])} for entry in index["shards"]]
    except OSError:
        unfinished = (folder / "pack.jsonl").exists()
        why = "the pack is not finished: start it again" if unfinished else "maejax pack writes one beside its shards"
        raise InputError(f"{folder}: has no index.json; {why}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder / 'index.json'}: is no index of shards; pack them again") from None
    named = {entry["name"] for entry in entries}
    wrong = [(path.name, "is not in the index") for path in sorted(folder.glob("[!.]*.tar")) if path.name not in named]
    total = sum((folder / entry["name"]).stat().st_size for entry in entries if (folder / entry["name"]).is_file())
    done = images = 0
    with (
        ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="maejax-verify") as executor,
        closing(executor.map(lambda entry: _check(folder, entry, deep), entries)) as checks,  # type: ignore[type-var]
    ):
        for size, count, reasons in checks:
            done, images = done + size, images + count
            wrong += reasons
            if progress is not None:
                progress(done, total)
    if "total" in index and index["total"] != images and not wrong:
        wrong.append(("index.json", f"tells of {index['total']} images, the shards hold {images}"))
    return Verified(len(entries), images, done, wrong)


def _check(folder: Path, entry: dict[str, Any], deep: bool) -> tuple[int, int, list[tuple[str, str]]]:
    """Return the bytes, the images and the faults of one shard."""
    name, path = entry["name"], folder / entry["name"]
    try:
        size = path.stat().st_size
        if size != entry.get("bytes", size):
            return size, 0, [(name, f"has {size:,} bytes instead of {entry['bytes']:,}")]
        wrong = []
        if "sha256" in entry:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry["sha256"]:
                wrong.append((name, f"has the sha256 {digest[:16]}... instead of {str(entry['sha256'])[:16]}..."))
        found = in_tar(path, name)
        wrong += [(name, problem.removeprefix(f"{path}: ")) for problem in found.problems]
        count = len(found.samples)
        if count != entry.get("samples", count):
            wrong.append((name, f"holds {count} images instead of {entry['samples']}"))
        for sample in found.samples if deep else ():
            try:
                stored_pixels(sample.image.read(), Form(pages="bands"))  # type: ignore[union-attr]
            except UnreadableImage as error:
                wrong.append((sample.key, str(error)))
    except FileNotFoundError:
        return 0, 0, [(name, "is missing")]
    except OSError as error:
        return 0, 0, [(name, f"cannot be read: {error.strerror or error}")]
    return size, count, wrong
