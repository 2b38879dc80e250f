"""Shards packed in parts, each by itself and from shards where they lie, and put together under one index."""

import json
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maejax.data.agreement import agree
from maejax.data.form import Form
from maejax.data.keys import Kind, kind_of, settle
from maejax.data.order import epoch_order
from maejax.data.packing import AS_THEY_ARE, Progress, ShardWriter, check_numbers, is_there, read_lines, reencode
from maejax.data.pieces import WHOLE, Part, are_shards, open_each_shard
from maejax.data.sources import Source, open_source, places
from maejax.errors import Failed, InputError
from maejax.storage.atomic import write_whole
from maejax.storage.redact import redact


def pack_part(
    src: str,
    dst: str,
    part: Part,
    *,
    shard_size: int = 1000,
    shuffle_seed: int | None = 0,
    image_size: int | None = None,
    quality: int | None = None,
    labels: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    asked: Form = AS_THEY_ARE,
) -> dict[str, Any]:
    """Write the shards of a part of `src`, and last of all its manifest; arguments are those of `pack`.

    Each shard of the source becomes shards of its own, FOLDER-00012-0003.tar, of at most `shard_size` images, shuffled
    within it: so no part need see another, and two fetched shards at most are on the disk. Folders, tables and arrays
    are shuffled as a whole, and a part writes its share of the shards. The bytes of a shard depend on no part. Named
    classes become folders in the shards. Calling it again resumes an interrupted part and leaves a finished one alone.
    Returns the manifest, or the index if all parts are gathered into it. Raises as `pack`, and Failed for a shard that
    does not come.
    """
    check_numbers(shard_size, image_size, quality, workers)
    folder = Path(dst).expanduser()
    pieces = open_each_shard(src, labels=labels, part=part)
    whole = open_source(src, labels=labels) if pieces is None else None
    given = [list(value) if isinstance(value, tuple) else value for value in asked] if asked != AS_THEY_ARE else None
    identity = whole.fingerprint() if pieces is None else pieces.identity  # type: ignore[union-attr]
    arguments: dict[str, Any] = {"source": redact(src), "identity": identity, "part": list(part)}
    arguments |= {"shard_size": shard_size, "shuffle_seed": shuffle_seed, "image_size": image_size, "quality": quality}
    arguments |= {"labels": labels, "form": given}
    name = f"{part.number:05d}-of-{part.count:05d}.json"
    manifest, journal = folder / f"part-{name}", f"pack-{name}l"
    same = {key: value for key, value in arguments.items() if key != "part"}
    for path, done in ((manifest, arguments), (folder / "index.json", same if part == WHOLE else None)):
        found = next(iter(read_lines(path, whole=True)), {})
        if found.get("pack", {}) == done and all(is_there(folder, shard) for shard in found["shards"]):
            return found
    records = _claim(folder, journal, arguments)
    turned = asked.image_type != "auto" or bool(asked.bands)
    writer = ShardWriter(folder, workers or os.cpu_count() or 1, None, progress, journal, True, hands_over=True)
    shards, kinds, problems, bands = [], [], [], ()

    def write(source: Source, stem: str, seed: int | None, mine: Part) -> None:
        """Write a share of the shards that a source becomes."""
        nonlocal shards, bands
        if turned or asked.pages == "images":
            agree(source, asked)
        form = source.form if turned else asked
        bands = bands or form.chosen or source.names
        order = np.arange(len(source)) if seed is None else epoch_order(len(source), seed, 0)
        count = -(-len(source) // shard_size)
        names, rows = [f"{stem}-{n:04d}.tar" for n in range(count)], np.array_split(order, count)
        encode = partial(reencode, image_size=image_size, quality=quality, form=form, turned=turned)
        share = mine.of(count)
        chosen, first = slice(share.start, share.stop), sum(map(len, rows[: share.start]))
        if share:
            shards += writer.write(source, names[chosen], rows[chosen], encode, records, first)
        kinds.append(kind_of(source))
        problems.extend(source.problems)

    stem = folder.resolve().name
    if whole is not None:
        write(whole, stem, shuffle_seed, part)
    with nullcontext(()) if pieces is None else pieces.opened() as opened:
        for number, source in zip(() if pieces is None else pieces.numbers, opened, strict=pieces is not None):
            seed = None if shuffle_seed is None else shuffle_seed + number
            write(source, f"{stem}-{number:05d}", seed, WHOLE)
    skipped = {key: reason for shard in shards for key, reason in shard.pop("skipped").items()}
    result = {"total": sum(shard["samples"] for shard in shards), "kinds": kinds, "skipped": skipped}
    result |= {"problems": problems, "bands": list(bands), "shards": shards, "pack": arguments}
    write_whole(manifest, json.dumps(result, indent=1))
    (folder / journal).unlink()
    return result


def pack_shards(src: str, dst: str, **options: Any) -> dict[str, Any]:
    """Pack shards where they lie, one after another, and write the index; as one part that is gathered at once.

    Options, errors and the returned index are those of `pack_part` and `gather_shards`.
    """
    done = pack_part(src, dst, WHOLE, **options)
    return done if "classes" in done else gather_shards(dst)


def lie_elsewhere(src: str) -> bool:
    """Return whether a source is shards alone, some of which must be fetched; raises InputError as `open_source`."""
    _, local, addresses, _ = places(src)
    return bool(addresses) and are_shards(local)


def gather_shards(dst: str) -> dict[str, Any]:
    """Check that all parts of a pack are in a folder, and write its index.json in the place of their manifests.

    Returns the index. Raises Failed for a part that is not there, and InputError for parts that do not belong together.
    """
    folder = Path(dst).expanduser()
    manifests = [read_lines(path, whole=True)[0] for path in sorted(folder.glob("part-?????-of-?????.json"))]
    index = next(iter(read_lines(folder / "index.json", whole=True)), None)
    if not manifests and index is not None:
        return index
    if not manifests:
        raise Failed(f"{folder}: no part of a pack is there; pack them first, each with --part I/N")
    arguments = [{k: v for k, v in each["pack"].items() if k != "part"} for each in manifests]
    counts = {each["pack"]["part"][1] for each in manifests}
    for each in arguments:
        if wrong := [name for name in each if each[name] != arguments[0][name]]:
            both = f"{each[wrong[0]]} against {arguments[0][wrong[0]]}"
            raise InputError(f"{folder}: its parts differ in their {', '.join(wrong)}: {both}; pack one of them again")
    if len(counts) > 1:
        listed = " and ".join(map(str, sorted(counts)))
        raise InputError(f"{folder}: has parts of {listed}; remove the part-*.json and the shards of those")
    (count,) = counts
    here = {each["pack"]["part"][0] for each in manifests if all(is_there(folder, s) for s in each["shards"])}
    if missing := sorted(set(range(count)) - here):
        first = f"{missing[0]}/{count}"
        raise Failed(f"{folder}: {len(missing)} of {count} parts are not there, or not whole, the first {first}")
    kinds = [Kind(tuple(classes), *rest) for each in manifests for classes, *rest in each["kinds"]]
    index = {"total": sum(each["total"] for each in manifests), "classes": list(settle(kinds)[0])}
    index |= {"skipped": {key: why for each in manifests for key, why in each["skipped"].items()}}
    index |= {"problems": [problem for each in manifests for problem in each["problems"]]}
    index |= {"shards": [shard for each in manifests for shard in each["shards"]], "pack": arguments[0]}
    if bands := next(filter(None, (each["bands"] for each in manifests)), []):
        write_whole(folder / "bands.txt", "\n".join(bands) + "\n")
    write_whole(folder / "index.json", json.dumps(index, indent=1))
    for path in [*folder.glob("part-?????-of-?????.json"), *folder.glob("*.part")]:  # also what killed parts left
        path.unlink()
    return index


def _claim(folder: Path, journal: str, arguments: dict[str, Any]) -> dict[str, dict]:
    """Start the journal of a part beside those of others; returns the records of its finished shards, by name."""
    others = [path for path in folder.glob("*") if path.suffix not in (".part", ".tar", ".json", ".jsonl")]
    same = {key: value for key, value in arguments.items() if key != "part"}
    for path in [*folder.glob("part-*.json"), *folder.glob("pack-*.jsonl")]:
        found = next(iter(read_lines(path, whole=path.suffix == ".json")), {}).get("pack", {})
        others += [path] if {key: value for key, value in found.items() if key != "part"} != same else []
    if others or (folder / "index.json").exists():
        raise InputError(f"{folder}: holds other files, or another pack; choose a new folder, or empty this one")
    lines = read_lines(folder / journal)
    records = [line for line in lines[1:] if is_there(folder, line)] if lines[:1] == [{"pack": arguments}] else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / journal, "".join(json.dumps(line) + "\n" for line in [{"pack": arguments}, *records]))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}; choose another folder") from None
    return {record["name"]: record for record in records}
