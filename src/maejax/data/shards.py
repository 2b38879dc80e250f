"""Opening a source of images: tar shards, folders, tables and arrays on the local disk, behind one interface."""

import glob
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from maejax.data.labels import LABEL_FILES, LabelError, assign, read_labels
from maejax.data.samples import IMAGE_SUFFIXES, Listing, Sample, in_folder, in_tar
from maejax.data.tables import TABLE_SUFFIXES, TableError, in_table, table_files


class DataError(ValueError):
    """The user's input is wrong; the message is one sentence that names it and says what to do."""


@dataclass(eq=False)
class Source:
    """A set of images that can be read at random, from several threads at once.

    `keys` names each image in messages. `labels` is int32 [n], -1 where there is none. `classes` are the names of the
    classes where they are known, else (). `problems` tells, in a sentence each, what could not be used.
    """

    keys: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    problems: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, i: int) -> bytes | np.ndarray:
        """Return image i as `decode` takes it: encoded bytes, or the pixels themselves, uint8 [H, W] or [H, W, C]."""
        raise NotImplementedError


@dataclass(eq=False)
class FileSource(Source):
    """Encoded images, each a range of bytes of a file: a whole file in a folder, a member in a tar shard.

    `file` is int32 [n], an index into `files`; `offset` and `size` are int64 [n] in bytes; size -1 is to the end.
    """

    files: list[Path]
    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def read(self, i: int) -> bytes:
        """Return the encoded bytes of image i; raises OSError where its file can no longer be read."""
        # Opening anew costs 6 us and keeps nothing open: a thousand shards would pass the usual limit on open files.
        with self.files[self.file[i]].open("rb", buffering=0) as file:
            file.seek(int(self.offset[i]))
            return file.read(int(self.size[i]))


@dataclass(eq=False)
class ArraySource(Source):
    """Images that are held in memory as pixels, uint8 [n, H, W] or [n, H, W, C]."""

    images: np.ndarray

    def read(self, i: int) -> np.ndarray:
        """Return the pixels of image i, uint8 [H, W] or [H, W, C]."""
        return self.images[i]


def open_source(spec: str | Sequence[str], labels: str | Path | None = None) -> Source:
    """Find every image and label that one spec, or several, stand for.

    A spec is a tar shard, an image folder (a sub-folder per class, or flat), a folder of tar shards, an image, a
    Hugging Face `datasets` folder, an arrow or parquet file with an image column or a folder of these, or a
    .npz with `images` uint8 [n, H, W(, C)] and optionally `labels` int [n] and `classes`; brace lists
    (`{0000..0127}`, `{a,b}`), globs and `~` are expanded. Labels come from `.cls` and `.json` members; where there are
    none, from the names of the class folders, sorted. A single folder is no class. `labels` names a file
    (csv, tsv, json, jsonl: see `read_labels`) that takes the place of all these; where no image has a label, a
    `labels.csv` (or .tsv, .json, .jsonl) beside the images is used.

    Raises DataError for what is missing or not supported, and where no image was found.
    """
    specs = [spec] if isinstance(spec, str) else list(spec)
    paths = [path for each in specs for path in _paths(each)]
    if any(path.suffix == ".npz" for path in paths):
        if len(paths) > 1:
            raise DataError(
                f"{' '.join(specs)}: a .npz is a source of its own; give it alone, or pack it into shards first"
            )
        return _labelled(_open_arrays(paths[0]), paths, labels)
    titles = Counter(path.name for path in paths)
    found = Listing()
    for path in paths:
        if path.is_dir():
            found.extend(in_folder(path))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            found.extend(Listing([Sample(str(path), path, 0, -1)], suffixes=Counter([path.suffix])))
        else:
            title = path.name if titles[path.name] == 1 else str(path)
            try:
                found.extend((in_table if path.suffix.lower() in TABLE_SUFFIXES else in_tar)(path, title))
            except TableError as error:
                raise DataError(str(error)) from None
    if not found.samples:
        raise DataError(_nothing_in(specs, paths, found))
    return _labelled(_gather(found), paths, labels)


def _labelled(source: Source, paths: list[Path], labels: str | Path | None) -> Source:
    """Take the labels from a label file: the one that is named, or one beside images that have none."""
    if labels is not None:
        file = Path(labels).expanduser()
    elif (source.labels < 0).all():
        places = dict.fromkeys(path if path.is_dir() else path.parent for path in paths)
        file = next((place / name for place in places for name in LABEL_FILES if (place / name).is_file()), None)
    else:
        file = None
    if file is None:
        return source
    try:
        found = assign(source.keys, read_labels(file))
        if len(found.missing) == len(source):
            raise LabelError(f"{file}: names none of {len(source)} images; the first is {source.keys[0]}")
    except (LabelError, OSError) as error:
        message = str(error) if isinstance(error, LabelError) else f"{file}: cannot be read: {error.strerror}"
        if labels is not None:
            raise DataError(message) from None
        source.problems.append(message)
        return source
    source.labels, source.classes = found.labels, found.classes
    if found.missing:
        source.problems.append(f"{file}: {len(found.missing)} images are not named, the first is {found.missing[0]}")
    return source


def _gather(found: Listing) -> FileSource:
    samples = found.samples
    files = list(dict.fromkeys(sample.path for sample in samples))
    number = {path: i for i, path in enumerate(files)}
    classes: tuple[str, ...] = ()
    if any(sample.label is not None for sample in samples):
        labels = [-1 if sample.label is None else sample.label for sample in samples]
        classes = found.classes or _classes_beside(files[0], max(labels))
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
    try:
        return [file for path in paths for file in (path.is_dir() and _files_in(path)) or [path]]
    except TableError as error:
        raise DataError(str(error)) from None


def _files_in(folder: Path) -> list[Path]:
    """Return the shards or tables that a folder stands for, [] for a folder of images."""
    return sorted(folder.glob("[!.]*.tar")) or table_files(folder)


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
