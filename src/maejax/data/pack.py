"""Any source of images -> balanced, shuffled tar shards with an index."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from maejax.data.augment import resize
from maejax.data.decode import UnreadableImage, decode
from maejax.data.pipeline import epoch_order
from maejax.data.shards import DataError, Source, open_source

JPEG_QUALITY = 95
_BEGUN = "pack.json"  # lies in the folder while it is being packed into, and tells for whom


def pack(
    src: str,
    dst: str,
    *,
    shard_size: int = 1000,
    shuffle_seed: int | None = 0,
    image_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Write the images of `src` into tar shards in the folder `dst`, and `index.json` beside them last of all.

    The shards are called after the folder (`train/train-0000.tar`) and hold equal shares, at most `shard_size` images
    each, shuffled by `shuffle_seed` (None: in the order of the source), with `.cls` members where there are labels.
    Encoded images are copied byte for byte, arrays become PNG; with `image_size`, images with a longer short side are
    resized to it, and written as JPEG (quality 95) where they were JPEG or WebP, else as PNG, without alpha. The same
    input gives the same bytes. `progress` is called with the number of images done and of all.

    Returns the index: `total` images written, `classes`, `skipped` (key -> reason, for images that cannot be read),
    `shards` (name, samples, bytes, sha256) and `pack`, the arguments. A pack that was interrupted is done again by the
    same call; one that is finished is left alone.

    Raises DataError for a source that cannot be opened or has no readable image, and where `dst` holds other files.
    """
    if shard_size < 1 or (image_size is not None and image_size < 1):
        raise DataError(f"shard_size {shard_size} and image_size {image_size} must be at least 1")
    source = open_source(src)
    folder = Path(dst).expanduser()
    arguments = {
        "source": src,
        "images": len(source),
        "shard_size": shard_size,
        "shuffle_seed": shuffle_seed,
        "image_size": image_size,
    }
    finished = _claim(folder, arguments)
    if finished is not None:
        return finished

    order = np.arange(len(source)) if shuffle_seed is None else epoch_order(len(source), shuffle_seed, 0)
    count = -(-len(source) // shard_size)
    shards: list[dict] = []
    skipped: dict[str, str] = {}
    done = 0
    for number, part in enumerate(np.array_split(order, count)):
        path = folder / f"{folder.resolve().name}-{number:0{max(4, len(str(count - 1)))}d}.tar"
        temporary = path.with_suffix(".tar.part")
        samples = 0
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in part.tolist():
                try:
                    data, suffix = _encoded(source, i, image_size)
                except UnreadableImage as error:
                    skipped[source.keys[i]] = str(error)
                else:
                    _add(tar, f"{done:08d}{suffix}", data)
                    if source.labels[i] >= 0:
                        _add(tar, f"{done:08d}.cls", str(source.labels[i]).encode())
                    samples += 1
                done += 1
                if progress is not None:
                    progress(done, len(source))
        temporary.replace(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shards.append({"name": path.name, "samples": samples, "bytes": path.stat().st_size, "sha256": digest})
    total = sum(shard["samples"] for shard in shards)
    if not total:
        key, reason = next(iter(skipped.items()))
        raise DataError(f"{src}: none of {len(source)} images can be read; the first, {key}: {reason}; check the files")
    index = {
        "total": total,
        "classes": list(source.classes),
        "skipped": skipped,
        "shards": shards,
        "pack": arguments,
    }
    temporary = folder / "index.json.part"
    temporary.write_text(json.dumps(index, indent=1))
    temporary.replace(folder / "index.json")
    (folder / _BEGUN).unlink()
    return index


def _claim(folder: Path, arguments: dict) -> dict | None:
    """Return the index where this very pack is finished; otherwise mark the folder as being packed into."""
    index = _pack_in(folder / "index.json")
    if index is not None and index["pack"] == arguments:
        files = [(folder / shard["name"], shard["bytes"]) for shard in index["shards"]]
        if all(path.exists() and path.stat().st_size == size for path, size in files):
            return index
    else:
        begun = _pack_in(folder / _BEGUN)
        if (folder.exists() and not folder.is_dir()) or (
            folder.is_dir() and any(folder.iterdir()) and (begun is None or begun["pack"] != arguments)
        ):
            raise DataError(f"{folder}: holds other files, or another pack; choose a new folder, or empty this one")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _BEGUN).write_text(json.dumps({"pack": arguments}))
    return None


def _pack_in(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "pack" in content else None


def _encoded(source: Source, i: int, image_size: int | None) -> tuple[bytes, str]:
    """Return the bytes of image i as a shard will hold them, and their suffix."""
    data = source.read(i)
    if isinstance(data, np.ndarray):
        pixels, suffix = (data if data.ndim == 3 else data[..., None]), ".png"
        if pixels.shape[2] not in (1, 3, 4):
            raise DataError(
                f"{source.keys[i]}: has {pixels.shape[2]} channels; image files hold 1, 3 or 4; use the .npz as it is"
            )
        if image_size is not None and min(pixels.shape[:2]) > image_size:
            pixels = _shrink(pixels, image_size)
        return _encode(pixels, "PNG"), suffix
    suffix = PurePosixPath(source.keys[i]).suffix.lower()
    pixels = decode(data, 3)  # also where it is only copied: what cannot be read must not get into a shard
    if image_size is None or min(pixels.shape[:2]) <= image_size:
        return data, suffix
    if (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    lossy = suffix in (".jpg", ".jpeg", ".webp")
    return _encode(_shrink(pixels, image_size), "JPEG" if lossy else "PNG"), ".jpg" if lossy else ".png"


def _shrink(pixels: np.ndarray, short: int) -> np.ndarray:
    height, width, _ = pixels.shape
    side = min(height, width)
    return resize(pixels, (0, 0, height, width), (height * short // side, width * short // side))


def _encode(pixels: np.ndarray, format: str) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(buffer, format, **({"quality": JPEG_QUALITY} if format == "JPEG" else {}))
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and group are 0: the same input gives the same bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
