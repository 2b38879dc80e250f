"""Any source of images -> balanced, shuffled tar shards with an index."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maejax.data.agreement import agree
from maejax.data.arrays import NPY, is_array, is_picture, read_pixels, stored_pixels
from maejax.data.augment import resize
from maejax.data.decode import decode, is_deep_png, is_tiff, opener_of
from maejax.data.form import Form
from maejax.data.keys import key_of
from maejax.data.order import epoch_order
from maejax.data.sources import Source, open_source
from maejax.errors import InputError, Stopped, UnreadableImage
from maejax.storage.atomic import write_atomically, write_whole
from maejax.storage.placed import hand_over, is_placed
from maejax.storage.redact import redact

_JOURNAL = "pack.jsonl"  # lies in the folder while it is being packed into: for whom, and which shards are done
_UNEVEN = ".uneven"  # shards from which images were left out, until their images are dealt out anew

JPEG_QUALITY = 95
_SUFFIX = {f: f".{f.lower()}" for f in ("PNG", "WEBP", "AVIF", "GIF", "BMP")} | {"JPEG": ".jpg", "TIFF": ".tif"}

AS_THEY_ARE = Form(image_type="auto", fits=False)  # each of its own type

Progress = Callable[[int, int | None], None]
Encode = Callable[[bytes | np.ndarray], tuple[bytes, str]]


def pack(
    src: str,
    dst: str,
    *,
    shard_size: int = 1000,
    shuffle_seed: int | None = 0,
    image_size: int | None = None,
    quality: int | None = None,
    labels: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    asked: Form = AS_THEY_ARE,
) -> dict:
    """Write the images of `src` into tar shards in the folder `dst`, and `index.json` last of all.

    The shards are called after the folder (`train/train-0000.tar`) and hold at most `shard_size` images each, in
    numbers that differ by one at the most. Of a folder in a bucket each shard is sent as it comes: there the numbers
    differ by the images that could not be read. The order is shuffled by `shuffle_seed` (None: that of the source).
    Labels come from the source or the file `labels`. See `reencode` for `image_size` and `quality`. With a type or
    bands in `asked`, all images are written as arrays of that form. Names of bands go to `bands.txt`. `workers` threads
    write a shard each (None: one for each core); their number changes no byte. `progress` gets the images done and in
    all.

    Returns the index: `total` images, `classes`, `skipped` (key -> reason), `problems` of the source, `shards` (name,
    samples, bytes, sha256) and `pack`, the arguments. Calling it again resumes an interrupted pack and leaves a
    finished one alone.

    Raises InputError for a source without readable images, and if `dst` holds other files; OSError on a full disk.
    """
    check_numbers(shard_size, image_size, quality, workers)
    source, folder = open_source(src, labels=labels), Path(dst).expanduser()
    turned = asked.image_type != "auto" or bool(asked.bands)
    if turned or asked.pages == "images":
        agree(source, asked)
    form = source.form if turned else asked
    name, shape = redact(str(src)), {"shard_size": shard_size, "shuffle_seed": shuffle_seed}
    arguments: dict[str, Any] = {"source": name, "images": len(source), **shape}
    given = [list(value) if isinstance(value, tuple) else value for value in asked] if asked != AS_THEY_ARE else None
    later = {"quality": quality, "labels": labels, "form": given}  # packs from before these were known lack them
    arguments |= {"image_size": image_size, **{name: value for name, value in later.items() if value is not None}}
    index = next(iter(read_lines(folder / "index.json", whole=True)), {})
    if index.get("pack") == arguments and all(is_there(folder, shard) for shard in index["shards"]):
        return index  # this very pack is finished
    records = _claim(folder, arguments, index)
    order = np.arange(len(source)) if shuffle_seed is None else epoch_order(len(source), shuffle_seed, 0)
    count = -(-len(source) // shard_size)
    names = [f"{folder.resolve().name}-{n:0{max(4, len(str(count - 1)))}d}.tar" for n in range(count)]
    run = ShardWriter(folder, workers or os.cpu_count() or 1, len(source), progress, hands_over=is_placed(folder))
    encode = partial(reencode, image_size=image_size, quality=quality, form=form, turned=turned)
    shards = run.write(source, names, np.array_split(order, count), encode, records)
    skipped = {key: reason for shard in shards for key, reason in shard.pop("skipped").items()}
    sizes = [shard["samples"] for shard in shards]
    if not any(sizes):
        first = ": ".join(next(iter(skipped.items())))
        raise InputError(f"{name}: none of {len(source)} images can be read; the first, {first}; check the files")
    if max(sizes) - min(sizes) > 1 and not run.hands_over:
        shards = _level(run, shards, shard_size)
    index = {"total": sum(shard["samples"] for shard in shards), "classes": list(source.classes), "skipped": skipped}
    if names := form.chosen or source.names:
        write_whole(folder / "bands.txt", "\n".join(names) + "\n")
    index |= {"problems": source.problems, "shards": shards, "pack": arguments}
    with write_atomically(folder / "index.json") as new:
        new.write_text(json.dumps(index, indent=1))
    shutil.rmtree(folder / _UNEVEN, ignore_errors=True)
    (folder / _JOURNAL).unlink()
    return index


def check_numbers(shard_size: int, image_size: int | None, quality: int | None, workers: int | None) -> None:
    """Check the numbers of a pack; raises InputError for the first that is out of range."""
    numbers = {"--shard-size": shard_size, "--image-size": image_size, "--quality": quality, "--workers": workers}
    for flag, number in numbers.items():
        if number is not None and (number < 1 or (flag == "--quality" and number > 100)):
            raise InputError(f"{flag} {number}: give at least 1" + (" and at most 100" if flag == "--quality" else ""))


def is_there(folder: Path, record: dict) -> bool:
    """Return whether the shard of a record is in a folder, of the same size."""
    path = folder / record["name"]
    return path.is_file() and path.stat().st_size == record["bytes"]


def _claim(folder: Path, arguments: dict, index: dict) -> dict[str, dict]:
    """Start the journal of a pack in the folder; returns the records of the shards that are done already, by name."""
    journal = read_lines(folder / _JOURNAL)
    if journal and journal[0].get("pack") == arguments:
        for path in (folder / _UNEVEN).glob("*.tar"):  # the dealing out was interrupted; it starts again
            path.replace(folder / path.name)
        records = journal[1:]
    elif index.get("pack") == arguments:  # was finished; some files are gone
        # With images left out, the shards may not be those of the plan.
        records = [] if index["skipped"] else [{**shard, "skipped": {}} for shard in index["shards"]]
    elif not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        records = []
    else:
        raise InputError(f"{folder}: holds other files, or another pack; choose a new folder, or empty this one")
    records = [record for record in records if is_there(folder, record)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.part"):  # of a pack that was killed
            path.unlink()
        with write_atomically(folder / _JOURNAL) as new:
            new.write_text("".join(json.dumps(line) + "\n" for line in [{"pack": arguments}, *records]))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}; choose another folder") from None
    return {record["name"]: record for record in records}


def read_lines(path: Path, whole: bool = False) -> list[dict]:
    """Read the objects of a JSON file, one a line (or `whole`: one in all), up to one that was cut."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        content = path.read_bytes()
        for line in [content] if whole else content.splitlines():
            found.append(json.loads(line))
    return [each for each in found if isinstance(each, dict)]


def _level(run: "ShardWriter", shards: list[dict], shard_size: int) -> list[dict]:
    """Deal out the images again after some were left out, so that the shards differ by one at the most."""
    uneven = run.folder / _UNEVEN
    uneven.mkdir(exist_ok=True)
    for shard in shards:
        (run.folder / shard["name"]).replace(uneven / shard["name"])
    source = open_source([str(uneven / shard["name"]) for shard in shards if shard["samples"]])
    count = -(-len(source) // shard_size)
    names, parts = [shard["name"] for shard in shards[:count]], np.array_split(np.arange(len(source)), count)

    def copy(data: Any) -> tuple[bytes, str]:
        return data, _suffix(data)  # the images are whole, and of the size they shall have

    shards = ShardWriter(run.folder, run.workers, 0, None).write(source, names, parts, copy, None)
    return [{name: value for name, value in shard.items() if name != "skipped"} for shard in shards]


@dataclass
class ShardWriter:
    """Writes shards into a folder by several threads, one shard each at a time.

    Records of finished shards go to the file `journal` there. With `by_folder`, an image whose class has a name lies in
    a folder of that name: no shard need know the numbers of all classes. With `hands_over`, a shard is sent to its
    bucket once it is whole, and cannot be read here any more.
    """

    folder: Path
    workers: int
    total: int | None
    progress: Progress | None
    journal: str = _JOURNAL
    by_folder: bool = False
    hands_over: bool = False
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    def write(
        self,
        source: Source,
        names: list[str],
        parts: list[np.ndarray],
        encode: Encode,
        records: dict | None,
        first: int = 0,
    ) -> list[dict]:
        """Write shard `names[k]` with the images `parts[k]`, unless it is in `records`; returns all records.

        Images are numbered from `first` on.
        """
        firsts = np.cumsum([first, *map(len, parts)]).tolist()
        keep = [(records or {}).get(name) for name in names]
        self.done += sum(len(part) for part, record in zip(parts, keep, strict=True) if record)
        # Threads: reading, decoding, resizing and hashing release the GIL.
        executor = ThreadPoolExecutor(min(self.workers, len(names)), thread_name_prefix="maejax-pack")
        try:
            futures = {
                executor.submit(self._write_shard, name, source, part, first, encode, records is not None): k
                for k, (name, part, first) in enumerate(zip(names, parts, firsts[:-1], strict=True))
                if keep[k] is None
            }
            for future in as_completed(futures):
                keep[futures[future]] = future.result()
        finally:
            if sys.exception() is not None:
                self.stop.set()  # the other threads need not finish the shards they have begun
            executor.shutdown(cancel_futures=True)
        return [record for record in keep if record is not None]

    def _write_shard(
        self, name: str, source: Source, part: np.ndarray, first: int, encode: Encode, journaled: bool
    ) -> dict:
        samples, skipped = 0, {}
        with write_atomically(self.folder / name) as new, new.open("w+b") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for number, i in enumerate(part.tolist(), first):
                    if self.stop.is_set():
                        raise Stopped
                    try:
                        data, suffix = encode(source.read(i))
                    except OSError as error:
                        remedy = "start the same command again when it can, or leave the file out"
                        raise InputError(f"{source.keys[i]}: cannot be read: {error.strerror}; {remedy}") from None
                    except UnreadableImage as error:
                        skipped[source.keys[i]] = str(error)
                    else:
                        kind = key_of(source, i).kind if self.by_folder else ""
                        stem = f"{kind}/{number:08d}" if kind else f"{number:08d}"
                        _add(tar, f"{stem}{suffix}", data)
                        if source.labels[i] >= 0 and not kind:
                            _add(tar, f"{stem}.cls", str(source.labels[i]).encode())
                        samples += 1
                    with self.lock:
                        self.done += 1
                        if self.progress is not None:
                            self.progress(self.done, self.total)
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())  # a record says that the shard is there, also after the power was cut
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        record = {"name": name, "samples": samples, "bytes": size, "sha256": digest, "skipped": skipped}
        if journaled:
            with self.lock, (self.folder / self.journal).open("a") as journal:
                journal.write(json.dumps(record) + "\n")
        if self.hands_over:
            hand_over(self.folder / name)
        return record


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and group are 0: the same input gives the same bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def reencode(
    data: bytes | np.ndarray,
    image_size: int | None,
    quality: int | None,
    form: Form = AS_THEY_ARE,
    turned: bool = False,
) -> tuple[bytes, str]:
    """Return the bytes of an image as a shard holds them, and their suffix.

    `image_size` is the longest short side, in pixels, `quality` that of JPEG, 1..100. Without either, files are copied
    byte for byte. Arrays are written as PNG if a picture can hold them, else as .npy; all images are that are `turned`
    into `form`. With `image_size`, images with a longer short side are resized to it. JPEG, WebP and AVIF are then
    written as JPEG (quality 95), other pictures as PNG, without alpha. With `quality`, these three are written as JPEG
    of that quality at any size if that is smaller.

    Raises UnreadableImage, also where it would only be copied.
    """
    if turned:
        return _encode_array(_shrink(read_pixels(data, form), image_size, form.no_data))
    if isinstance(data, np.ndarray) or not is_picture(data) or (is_deep_png(data) and image_size):
        pixels = stored_pixels(data, form)
        small = _shrink(pixels, image_size, form.no_data)
        if isinstance(data, bytes) and small.shape == pixels.shape:
            return data, _suffix(data)
        return _encode_array(small)
    suffix = _suffix(data)
    pixels = decode(data, 3)  # what cannot be read must not get into a shard
    lossy = suffix in (".jpg", ".webp", ".avif")
    small = _shrink(pixels, image_size)
    resized = small.shape != pixels.shape
    if not resized and not (lossy and quality):
        return data, suffix
    if (small == small[..., :1]).all():
        small = small[..., :1]
    if not lossy:
        return _encode(small, "PNG"), ".png"
    again = _encode(small, "JPEG", quality=quality or JPEG_QUALITY)
    return (again, ".jpg") if resized or len(again) < len(data) else (data, suffix)


def _shrink(pixels: np.ndarray, image_size: int | None, no_data: float | None = None) -> np.ndarray:
    height, width, _ = pixels.shape
    side = min(height, width)
    if image_size is None or side <= image_size:
        return pixels
    return resize(pixels, (height * image_size // side, width * image_size // side), no_data)


def _suffix(data: bytes) -> str:
    """Return the suffix of an image by its first bytes."""
    if is_array(data):
        return ".npy" if data.startswith(NPY) else ".tif" if is_tiff(data) else ".dcm"
    return _SUFFIX[opener_of(data).format or ""]


def _encode_array(pixels: np.ndarray) -> tuple[bytes, str]:
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3, 4):
        return _encode(pixels, "PNG"), ".png"
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(pixels))
    return buffer.getvalue(), ".npy"


def _encode(pixels: np.ndarray, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, format, **options)
    return buffer.getvalue()
