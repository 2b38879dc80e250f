"""Opening a source of images: tar shards, image folders and arrays on the local disk, behind one interface."""

import glob
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from maejax.data.errors import DataError as DataError
from maejax.data.fill import Place
from maejax.data.samples import IMAGE_SUFFIXES, Listing, Sample, in_folder, in_tar


@dataclass(eq=False)
class Source:
    """A set of images that can be read at random, from several threads at once.

    `keys` names each image in messages. `labels` is int32 [n], -1 where there is none. `classes` are the names of the
    classes where they are known, else (). `problems` tells, in a sentence each, what could not be used; `lost` maps the
    shards that could not be read, or not to their end, to the reason.
    """

    keys: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    problems: list[str]
    lost: dict[str, str] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def total(self) -> int:
        """The number of images; a stream may not know it."""
        return len(self.keys)

    def place(self, i: int) -> Place | np.ndarray:
        """Say where image i lies, or give its pixels, uint8 [H, W] or [H, W, C]."""
        raise NotImplementedError

    def read(self, i: int) -> bytes | np.ndarray:
        """Return image i as `decode` takes it; raises OSError where its file can no longer be read."""
        place = self.place(i)
        return place.read() if isinstance(place, Place) else place


@dataclass(eq=False)
class FileSource(Source):
    """Encoded images, each a range of bytes of a file: a whole file in a folder, a member in a tar shard.

    `file` is int32 [n], an index into `files`; `offset` and `size` are int64 [n] in bytes; size -1 is to the end.
    """

    files: list[Path]
    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def place(self, i: int) -> Place:
        """Say where the encoded bytes of image i lie."""
        return Place(str(self.files[self.file[i]]), int(self.offset[i]), int(self.size[i]))


@dataclass(eq=False)
class ArraySource(Source):
    """Images that are held in memory as pixels, uint8 [n, H, W] or [n, H, W, C]."""

    images: np.ndarray

    def place(self, i: int) -> np.ndarray:
        """Return the pixels of image i, uint8 [H, W] or [H, W, C]."""
        return self.images[i]


def open_source(spec: str | Sequence[str]) -> Source:
    """Find every image and label that one spec, or several, stand for.

    A spec is a tar shard, an image folder (a sub-folder per class, or flat), a folder of tar shards, an image, or a
    .npz with `images` uint8 [n, H, W(, C)] and optionally `labels` int [n] and `classes`; brace lists
    (`{0000..0127}`, `{a,b}`), globs and `~` are expanded. Labels come from `.cls` and `.json` members; where there are
    none, from the names of the class folders, sorted. A single folder is no class.

    Raises DataError for what is missing or not supported, and where no image was found.
    """
    specs = [spec] if isinstance(spec, str) else list(spec)
    paths = [path for each in specs for path in _paths(each)]
    if any(path.suffix == ".npz" for path in paths):
        if len(paths) > 1:
            raise DataError(
                f"{' '.join(specs)}: a .npz is a source of its own; give it alone, or pack it into shards first"
            )
        return _open_arrays(paths[0])
    titles = Counter(path.name for path in paths)
    found = Listing()
    for path in paths:
        if path.is_dir():
            found.extend(in_folder(path))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            found.extend(Listing([Sample(str(path), path, 0, -1)], suffixes=Counter([path.suffix])))
        else:
            found.extend(in_tar(path, path.name if titles[path.name] == 1 else str(path)))
    if not found.samples:
        raise DataError(_nothing_in(specs, paths, found))
    return _gather(found)


def _gather(found: Listing) -> FileSource:
    samples = found.samples
    files = list(dict.fromkeys(sample.path for sample in samples))
    number = {path: i for i, path in enumerate(files)}
    classes: tuple[str, ...] = ()
    if any(sample.label is not None for sample in samples):
        labels = [-1 if sample.label is None else sample.label for sample in samples]
        classes = _classes_beside(files[0], max(labels))
    else:
        classes = tuple(sorted({sample.folder for sample in samples if sample.folder is not None}))
        classes = classes if len(classes) > 1 else ()
        label = {name: i for i, name in enumerate(classes)}
        labels = [label.get(sample.folder or "", -1) for sample in samples]
    return FileSource(
        keys=[sample.key for sample in samples],
        labels=np.array(labels, np.int32),
        classes=classes,
        problems=found.problems,
        lost=found.lost,
        files=files,
        file=np.array([number[sample.path] for sample in samples], np.int32),
        offset=np.array([sample.offset for sample in samples], np.int64),
        size=np.array([sample.size for sample in samples], np.int64),
    )


def _classes_beside(shard: Path, largest: int) -> tuple[str, ...]:
    """Return the class names in the index that `pack` writes beside its shards, () where there is no such index."""
    try:
        index = json.loads((shard.parent / "index.json").read_bytes())
        if any(entry["name"] == shard.name for entry in index["shards"]) and largest < len(index["classes"]):
            return tuple(map(str, index["classes"]))
    except (OSError, ValueError, KeyError, TypeError):  # somebody else's index.json, or none
        pass
    return ()


def _open_arrays(path: Path) -> ArraySource:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
            labels = arrays.get("labels", np.full(len(images), -1))
            classes = tuple(map(str, arrays.get("classes", ())))
    except KeyError:
        raise DataError(
            f"{path}: has no array named images; save uint8 images [n, H, W] or [n, H, W, C] there"
        ) from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as .npz: {error}; write it with numpy.savez") from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise DataError(
            f"{path}: images are {images.dtype} {list(images.shape)}; they must be uint8 [n, H, W] or [n, H, W, C]"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are {labels.dtype} {list(labels.shape)}; they must be int [{len(images)}]")
    keys = [f"{path.name}:{i}" for i in range(len(images))]
    return ArraySource(keys=keys, labels=labels.astype(np.int32), classes=classes, problems=[], images=images)


def _nothing_in(specs: list[str], paths: list[Path], found: Listing) -> str:
    seen = ", ".join(f"{suffix or '(none)'} x {count}" for suffix, count in found.suffixes.most_common(8))
    looked = f"looked at {len(paths)} path{'s' * (len(paths) > 1)} with {found.suffixes.total()} files"
    problems = "; ".join(found.problems[:3])
    return (
        f"{' '.join(specs)}: no image found; {looked}, suffixes seen: {seen or 'none'}; {problems}; "
        f"give tar shards or folders with {' '.join(IMAGE_SUFFIXES)} files"
    )


def _paths(spec: str) -> list[Path]:
    """Expand one spec to paths that exist; raises DataError for those that do not."""
    if re.match(r"(gs|s3|https?|hf)://|pipe:", spec):
        # Never the whole address: it may carry a token.
        kind = spec.split(":", 1)[0]
        raise DataError(
            f"{kind}: remote sources are not built yet; copy the shards to a local folder and give its path"
        )
    paths: list[Path] = []
    missing: list[str] = []
    for name in [spec] if Path(spec).expanduser().exists() else _braces(spec):
        path = Path(name).expanduser()
        if path.exists():
            paths.append(path)
        elif matches := sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207 (Path.glob takes hidden files too)
            paths += map(Path, matches)
        else:
            missing.append(name)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(f"{spec}: not found: {', '.join(missing[:3])}{more}; correct the path, or leave these out")
    for path in paths:
        if re.search(r"\.(tgz|tar\.\w+)$", path.name, re.IGNORECASE):
            raise DataError(f"{path}: compressed shards are not built yet; unpack it to a plain .tar first")
    return [shard for path in paths for shard in sorted(path.glob("[!.]*.tar")) or [path]]


def _braces(text: str) -> Iterator[str]:
    """Expand brace lists as bash does: `a{1,2}` -> a1 a2, `{08..10}` -> 08 09 10, nested and several ones too."""
    for opening in re.finditer("{", text):
        depth, cuts = 0, [opening.start()]
        for i in range(opening.start(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0 or (depth == 1 and text[i] == ","):
                cuts.append(i)
            if depth == 0:
                break
        if depth:
            continue
        parts = [text[a + 1 : b] for a, b in pairwise(cuts)]
        if len(parts) == 1 and (ends := re.fullmatch(r"(\d+)\.\.(\d+)", parts[0])):
            first, last = map(int, ends.groups())
            padded = any(len(end) > 1 and end[0] == "0" for end in ends.groups())
            width = max(map(len, ends.groups())) if padded else 0
            step = 1 if last >= first else -1
            parts = [f"{i:0{width}d}" for i in range(first, last + step, step)]
        elif len(parts) == 1:
            continue  # {x} stands for itself
        for part in parts:
            yield from _braces(text[: opening.start()] + part + text[cuts[-1] + 1 :])
        return
    yield text
