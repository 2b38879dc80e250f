"""Opening a source of images: tar shards here or elsewhere, folders, tables and arrays, behind one interface."""

import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maejax.data.expand import PACKED, expand
from maejax.data.fill import Place
from maejax.data.labels import LABEL_FILES, assign, read_labels
from maejax.data.listing import IMAGE_SUFFIXES, Listing, Sample, in_folder, in_tar
from maejax.data.order import epoch_order
from maejax.data.stream import Here, Item, Remote, Stream, fetch_all, first_images, name_shards, open_folder, read_index
from maejax.data.tables import TABLE_SUFFIXES, in_table
from maejax.errors import FormatError, InputError
from maejax.storage.redact import redact
from maejax.storage.retry import RetryPolicy

LOCAL_SHARD = 1000  # images


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

    def key(self, i: int) -> str:
        """Name image i, as messages do."""
        return self.keys[i]

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


def open_source(
    spec: str | Sequence[str],
    *,
    labels: str | Path | None = None,
    cache_dir: str = "",
    patience: RetryPolicy | None = None,
) -> Source:
    """Find every image and label that one spec, or several, stand for; what is not here is fetched, all of it.

    A spec is a tar shard, an image folder (a sub-folder per class, or flat), a folder of tar shards, an image, a
    Hugging Face `datasets` folder, an arrow or parquet file with an image column or a folder of these, or a
    .npz with `images` uint8 [n, H, W(, C)] and optionally `labels` int [n] and `classes`; brace lists
    (`{0000..0127}`, `{a,b}`), globs and `~` are expanded. Shards may be packed (.tar.gz, .tar.zst) and lie elsewhere:
    http(s)://, hf://datasets/OWNER/NAME/PATH, gs://, s3://, what else fsspec knows, or the output of a command,
    `pipe:COMMAND`. `@FILE` is a list of specs, one a line, which may lie elsewhere too.

    Labels come from `.cls` and `.json` members; where there are none, from the names of the class folders, sorted. A
    single folder is no class. `labels` names a file (csv, tsv, json, jsonl: see `read_labels`) that takes the place of
    all these; where no image has a label, a `labels.csv` (or .tsv, .json, .jsonl) beside the images is used. What is
    fetched is kept in `cache_dir`, or goes when the process ends.

    Raises InputError for what is missing or not supported, and where no image was found.
    """
    specs, local, addresses = _places(spec)
    if not addresses:
        return _open_local(specs, local, labels)
    _refuse_arrays(specs, local)
    shards, folder = name_shards(addresses), open_folder(cache_dir)
    found = _look(local)
    if next(first_images(Stream(shards, folder, bool(cache_dir), RetryPolicy()), found.problems), None) is None:
        raise InputError(_nothing_in(specs, len(local) + len(addresses), found))
    fetched, lost = fetch_all(shards, folder, patience or RetryPolicy())
    for path, title in fetched:
        found.extend(in_tar(path, title))
    found.problems += [f"{name}: {reason}" for name, reason in lost.items()]
    found.lost |= lost
    if not found.samples:
        raise InputError(_nothing_in(specs, len(local) + len(addresses), found))
    return _labelled(_gather(found), [*local, *(path for path, _ in fetched)], labels)


def open_stream(
    spec: str | Sequence[str], *, cache_dir: str = "", patience: RetryPolicy | None = None
) -> Source | Stream:
    """Open a spec for training: a stream where shards must be fetched or unpacked, else as `open_source` does.

    Local images beside them take part as shards of `LOCAL_SHARD` images each, drawn at random.

    Raises InputError for what is missing or not supported.
    """
    specs, local, addresses = _places(spec)
    if not addresses:
        return _open_local(specs, local)
    _refuse_arrays(specs, local)
    total, classes = read_index(addresses)
    shards: list[Remote | Here] = [*name_shards(addresses)]
    found = Listing()
    if local:
        source = _open_local(specs, local)
        found.problems, found.lost = source.problems, source.lost
        parts = np.array_split(epoch_order(len(source), 0, 0), -(-len(source) // LOCAL_SHARD))
        shards += [Here(f"local images, part {n}", _items(source, part)) for n, part in enumerate(parts)]
        total = None if total is None else total + len(source)
    return Stream(
        shards,
        open_folder(cache_dir),
        keep=bool(cache_dir),
        patience=patience or RetryPolicy(),
        total=total,
        classes=classes,
        problems=found.problems,
        lost=found.lost,
    )


def _items(source: Source, numbers: np.ndarray) -> list[Item]:
    return [Item(source.place(i), int(source.labels[i]), source.keys[i]) for i in numbers.tolist()]


def _places(spec: str | Sequence[str]) -> tuple[list[str], list[Path], list[str]]:
    """Expand specs: the specs, what is local and plain, and the addresses of what must be fetched or unpacked."""
    specs = [spec] if isinstance(spec, str) else list(spec)
    local: list[Path] = []
    addresses: list[str] = []
    for place in (place for each in specs for place in expand(each)):
        if isinstance(place, str) or PACKED.search(place.name):
            addresses.append(str(place))
        else:
            local.append(place)
    return [redact(each) for each in specs], local, addresses


def _refuse_arrays(specs: list[str], paths: list[Path]) -> None:
    if any(path.suffix == ".npz" for path in paths):
        raise InputError(
            f"{' '.join(specs)}: a .npz is a source of its own; give it alone, or pack it into shards first"
        )


def _open_local(specs: list[str], paths: list[Path], labels: str | Path | None = None) -> Source:
    if len(paths) == 1 and paths[0].suffix == ".npz":
        return _labelled(_open_arrays(paths[0]), paths, labels)
    _refuse_arrays(specs, paths)
    found = _look(paths)
    if not found.samples:
        raise InputError(_nothing_in(specs, len(paths), found))
    return _labelled(_gather(found), paths, labels)


def _look(paths: list[Path]) -> Listing:
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
            except FormatError as error:
                raise InputError(str(error)) from None
    return found


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
            raise FormatError(f"{file}: names none of {len(source)} images; the first is {source.keys[0]}")
    except (FormatError, OSError) as error:
        message = str(error) if isinstance(error, FormatError) else f"{file}: cannot be read: {error.strerror}"
        if labels is not None:
            raise InputError(message) from None
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
        raise InputError(
            f"{path}: has no array named images; save uint8 images [n, H, W] or [n, H, W, C] there"
        ) from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as .npz: {error}; write it with numpy.savez") from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise InputError(
            f"{path}: images are {images.dtype} {list(images.shape)}; they must be uint8 [n, H, W] or [n, H, W, C]"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: labels are {labels.dtype} {list(labels.shape)}; they must be int [{len(images)}]")
    keys = [f"{path.name}:{i}" for i in range(len(images))]
    return ArraySource(keys=keys, labels=labels.astype(np.int32), classes=classes, problems=[], images=images)


def _nothing_in(specs: list[str], paths: int, found: Listing) -> str:
    seen = ", ".join(f"{suffix or '(none)'} x {count}" for suffix, count in found.suffixes.most_common(8))
    looked = f"looked at {paths} path{'s' * (paths > 1)} with {found.suffixes.total()} files"
    problems = "; ".join(found.problems[:3])
    return (
        f"{' '.join(specs)}: no image found; {looked}, suffixes seen: {seen or 'none'}; {problems}; "
        f"give tar shards or folders with {' '.join(IMAGE_SUFFIXES)} files"
    )
