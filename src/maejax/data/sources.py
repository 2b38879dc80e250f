"""Opening a source of images: tar shards here or elsewhere, folders, tables and arrays, behind one interface."""

import contextlib
import hashlib
import json
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maejax.data.classes import LABEL_NAMES, class_of_folders, read_label
from maejax.data.expand import expand
from maejax.data.folder import PACKED, in_folder
from maejax.data.form import Form
from maejax.data.labels import LABEL_FILES, assign, read_labels
from maejax.data.listing import IMAGE_SUFFIXES, ByteRange, Listing, Sample, in_tar
from maejax.data.order import epoch_order
from maejax.data.stream import LocalShard, Stream, fetch_all, first_images, open_shards, read_index
from maejax.data.tables import TABLE_SUFFIXES, in_table
from maejax.errors import FormatError, InputError
from maejax.storage.pointer import pointer
from maejax.storage.redact import redact
from maejax.storage.retry import RetryPolicy

LOCAL_SHARD = 1000  # images
SAMPLED = 32  # images of a fingerprint
Spec = str | Sequence[str]


@dataclass(eq=False)
class Source:
    """A set of images that can be read at random, from several threads at once.

    `keys` names each image in messages. `labels` is int32 [n], -1 if there is none; `classes` are their names, () if
    unknown. `only` is the folder that all images lie in: a class if others say so, "" if there is none. `problems` are
    sentences on what could not be used, `lost` the shards that could not be read to their end. `form` is how images
    become pixels, and `names` are those of the bands that stand beside the files, () if there are none.
    """

    keys: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    problems: list[str]
    lost: dict[str, str] = field(default_factory=dict, kw_only=True)
    only: str = field(default="", kw_only=True)
    form: Form = field(default_factory=Form, kw_only=True)
    names: tuple[str, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def total(self) -> int:
        """The number of images; a stream may not know it."""
        return len(self.keys)

    def key(self, i: int) -> str:
        """Name image i, as messages do."""
        return self.keys[i]

    def stored(self, i: int) -> ByteRange | np.ndarray:
        """Return where the bytes of image i lie, or its pixels, [H, W] or [H, W, C]."""
        raise NotImplementedError

    def read(self, i: int) -> bytes | np.ndarray:
        """Return image i as `decode` takes it; raises OSError if its file can no longer be read."""
        image = self.stored(i)
        return image.read() if isinstance(image, ByteRange) else image

    def fingerprint(self) -> str:
        """Return a hash of the names of the images without folders, their labels, and the content of some of them."""
        digest = hashlib.sha256(json.dumps([re.split("[/:]", key)[-1] for key in self.keys]).encode())
        digest.update(self.labels.tobytes())
        for i in range(0, len(self), max(1, len(self) // SAMPLED)):
            with contextlib.suppress(OSError):
                image = self.read(i)
                digest.update(image if isinstance(image, bytes) else image.tobytes())
        return digest.hexdigest()

    def number_classes_as(self, classes: Sequence[str]) -> list[str]:
        """Number the labels by the place of their class in `classes`, matched by name, and take over `classes`.

        Images without labels in a single folder are of its class, if `classes` has it. Returns the names that `classes`
        lacks, sorted; then, or if either side has no names, nothing is changed.
        """
        if self.only in classes and (self.labels < 0).all():
            self.labels, self.classes = np.zeros(len(self), np.int32), (self.only,)
        if not classes or not self.classes:
            return []
        number = {name: i for i, name in enumerate(classes)}
        unknown = sorted(set(self.classes) - number.keys())
        if not unknown:
            table = np.array([number[name] for name in self.classes], np.int32)
            self.labels = np.where(self.labels < 0, -1, table[self.labels]).astype(np.int32)
            self.classes = tuple(classes)
        return unknown


@dataclass(eq=False)
class FileSource(Source):
    """Encoded images, each a range of bytes of a file: a whole file in a folder, a member in a tar shard.

    `file` is int32 [n], an index into `files`; `offset` and `size` are int64 [n] in bytes; size -1 is to the end.
    `page` is int32 [n], the number of a page of that file, -1 for the whole.
    """

    files: list[Path]
    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    page: np.ndarray

    def stored(self, i: int) -> ByteRange:
        """Return where the encoded bytes of image i lie."""
        return ByteRange(str(self.files[self.file[i]]), int(self.offset[i]), int(self.size[i]), int(self.page[i]))


@dataclass(eq=False)
class ArraySource(Source):
    """Images that are held in memory as pixels, [n, H, W] or [n, H, W, C] of any type."""

    images: np.ndarray

    def stored(self, i: int) -> np.ndarray:
        """Return the pixels of image i, [H, W] or [H, W, C]."""
        return self.images[i]


def open_source(
    spec: Spec, *, labels: str | Path | None = None, cache_dir: str = "", patience: RetryPolicy | None = None
) -> Source:
    """Open all images and labels of one spec, or several; docs/data.md lists the forms of a spec.

    Shards elsewhere are all fetched first, and kept in `cache_dir` or removed when the process ends. Labels come from
    `.cls` and `.json` files, else from the names of the class folders; names are numbered in sorted order. A single
    folder is no class. The file `labels` (see `read_labels`) replaces these. A file of `LABEL_FILES` beside images
    without any label is used too.
    Raises InputError for what is missing or not supported, and if no image was found.
    """
    specs, local, addresses, notes = places(spec)
    if not addresses:
        return open_local(specs, local, notes, labels)
    found, stream = _look(local, notes), open_shards(addresses, cache_dir, patience)
    usable = next(first_images(stream, found.problems), None) is not None
    fetched, lost = fetch_all(stream) if usable else ([], {})
    for path, shard in fetched:
        found.extend(in_tar(path, shard.title, shard.name))
    found.problems += [f"{name}: {reason}" for name, reason in lost.items()]
    found.lost |= lost
    if not usable:
        found.samples = []
    source = gather(specs, len(local) + len(addresses), found)
    return labelled(source, [*local, *(path for path, _ in fetched)], labels)


def open_files(names: Sequence[str]) -> Source:
    """Open single files as images, whatever their suffix; whether they are there is found out by reading them."""
    paths = [Path(name).expanduser() for name in names]
    found = Listing([Sample(str(path), ByteRange(str(path), 0, -1)) for path in paths])
    source = gather(list(names), len(paths), found)
    source.names = next(filter(None, map(read_names, {path.parent: 1 for path in paths})), ())
    return source


def open_stream(spec: Spec, *, cache_dir: str = "", patience: RetryPolicy | None = None) -> Source | Stream:
    """Open a spec for training: as a stream if shards must be fetched or unpacked, else as `open_source` does.

    Local images beside them form shards of `LOCAL_SHARD` images each, drawn at random. Raises as `open_source`.
    """
    specs, local, addresses, notes = places(spec)
    if not addresses:
        return open_local(specs, local, notes)
    stream = open_shards(addresses, cache_dir, patience)
    stream.total, stream.classes = read_index(addresses)
    if local:
        source = open_local(specs, local, notes)
        for n, part in enumerate(np.array_split(epoch_order(len(source), 0, 0), -(-len(source) // LOCAL_SHARD))):
            samples = [Sample(source.keys[i], source.stored(i), int(source.labels[i])) for i in part.tolist()]
            stream.shards.append(LocalShard(f"local images, part {n}", samples))
        stream.problems, stream.lost = source.problems, source.lost
        stream.total = None if stream.total is None else stream.total + len(source)
    return stream


def places(spec: Spec) -> tuple[list[str], list[Path], list[str], list[str]]:
    """Expand specs: the specs without secrets, plain local paths, addresses to fetch or unpack, notes on the rest."""
    specs, notes = [spec] if isinstance(spec, str) else list(spec), []
    found = [place for each in specs for place in expand(each, notes)]
    specs = [redact(each) for each in specs]
    local = [place for place in found if isinstance(place, Path) and not PACKED.search(place.name)]
    if len(found) > 1 and any(path.suffix == ".npz" for path in local):
        raise InputError(
            f"{' '.join(specs)}: a .npz is a source of its own; give it alone, or pack it into shards first"
        )
    addresses = [str(place) for place in found if isinstance(place, str) or PACKED.search(place.name)]
    return specs, local, addresses, notes


def open_local(
    specs: list[str],
    paths: list[Path],
    notes: list[str],
    labels: str | Path | None = None,
    titles: Counter[str] | None = None,
) -> Source:
    """Open the images of local paths; `titles` counts the names of shards, of which these may be a part."""
    arrays = paths[0].suffix == ".npz"
    source = _open_arrays(paths[0]) if arrays else gather(specs, len(paths), _look(paths, notes, titles))
    return labelled(source, paths, labels)


def _look(paths: list[Path], notes: list[str], titles: Counter[str] | None = None) -> Listing:
    titles = titles or Counter(path.name for path in paths)
    found = Listing(problems=notes)
    for path in paths:
        if path.is_dir():
            found.extend(in_folder(path))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            sample = Sample(str(path), ByteRange(str(path), 0, -1))
            found.extend(Listing([sample], suffixes=Counter([path.suffix])))
        else:
            title = path.name if titles[path.name] == 1 else str(path)
            found.extend((in_table if path.suffix.lower() in TABLE_SUFFIXES else in_tar)(path, title))
    return found


def labelled(source: Source, paths: list[Path], labels: str | Path | None) -> Source:
    """Take the labels from the label file `labels`, or from one beside images without labels; and names of bands."""
    folders = dict.fromkeys(path if path.is_dir() else path.parent for path in paths)
    source.names = source.names or next(filter(None, map(read_names, folders)), ())
    file = None if labels is None else Path(labels).expanduser()
    if file is None and (source.labels < 0).all():
        file = next((place / name for place in folders for name in LABEL_FILES if (place / name).is_file()), None)
    if file is None:
        return source
    try:
        numbers, classes, missing = assign(source.keys, read_labels(file))
        if len(missing) == len(source):
            raise FormatError(f"{file}: names none of {len(source)} images; the first is {source.keys[0]}")
        source.labels, source.classes = numbers, classes
        if missing:
            source.problems.append(f"{file}: {len(missing)} images are not named, the first is {missing[0]}")
    except (FormatError, OSError) as error:
        message = str(error) if isinstance(error, FormatError) else f"{file}: cannot be read: {error.strerror}"
        if labels is not None:
            raise InputError(message) from None
        source.problems.append(message)
    return source


def read_names(folder: Path) -> tuple[str, ...]:
    """Read the names of bands from the bands.txt of a folder, with commas or lines between; () if it has none."""
    path = folder / "bands.txt"
    try:
        text = path.read_text() if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return tuple(name.strip() for name in re.split(r"[,\n]", text) if name.strip())


def gather(specs: list[str], paths: int, found: Listing) -> FileSource:
    """Turn the samples of a listing into columns; raises InputError if there are none in so many paths."""
    samples = found.samples
    if not samples:
        seen = ", ".join(f"{suffix or '(none)'} x {count}" for suffix, count in found.suffixes.most_common(8))
        raise InputError(
            f"{' '.join(specs)}: no image found; looked at {paths} path{'s' * (paths > 1)} with "
            f"{found.suffixes.total()} files, suffixes seen: {seen or 'none'}; {'; '.join(found.sentences()[:3])}; "
            f"give tar shards or folders with {' '.join(IMAGE_SUFFIXES)} files"
        )
    images = [image for sample in samples if isinstance(image := sample.image, ByteRange)]
    number = {path: i for i, path in enumerate(dict.fromkeys(image.path for image in images))}
    labels, classes, only = _number(specs, found)
    if not classes and labels.max() >= 0:  # those of the index that `pack` writes beside its shards
        _, classes = read_index([str(Path(images[0].path).absolute())])
        classes = classes if labels.max() < len(classes) else ()
    return FileSource(
        keys=[sample.key for sample in samples],
        labels=labels,
        classes=classes,
        problems=found.sentences(),
        lost=found.lost,
        only=only,
        files=[Path(path) for path in number],
        file=np.array([number[image.path] for image in images], np.int32),
        offset=np.array([image.offset for image in images], np.int64),
        size=np.array([image.size for image in images], np.int64),
        page=np.array([image.page for image in images], np.int32),
    )


def _number(specs: list[str], found: Listing) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Return the labels of samples as numbers, the names of the classes, and the one folder that all images share.

    Numbers count before names, and both before the names of folders.
    """
    labels = [sample.label for sample in found.samples]
    folders, only, splits = class_of_folders({sample.folder for sample in found.samples})
    if splits:
        found.problems.append(f"{' '.join(specs)}: holds the splits {', '.join(splits)}, and all of them are read")
    names = {label for label in labels if isinstance(label, str)}
    numbered = any(isinstance(label, int) and label >= 0 for label in labels)
    if numbered and names:
        named = [sample.key for sample in found.samples if isinstance(sample.label, str)]
        found.leave_out("labels that are names where others are numbers", named[0], len(named))
    if not numbered and not names:
        labels = [folders[sample.folder] or -1 for sample in found.samples]
        names = {name for name in folders.values() if name}
        names = names if len(names) > 1 else set()
    classes = () if numbered else found.classes or tuple(sorted(names))
    number: dict[int | str, int] = {name: i for i, name in enumerate(classes)}
    numbers = [label if isinstance(label, int) else number.get(label, -1) for label in labels]
    return np.array(numbers, np.int32), found.classes or classes, only


def _open_arrays(path: Path) -> ArraySource:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
            given = next((arrays[name] for name in LABEL_NAMES if name in arrays), np.full(len(images), -1))
            classes, names = (tuple(map(str, arrays.get(name, ()))) for name in ("classes", "bands"))
            names = tuple(name.replace(",", " ") for name in names)
    except KeyError:
        raise InputError(f"{path}: has no array named images; save images [n, H, W] or [n, H, W, C] there") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        said = pointer(path.read_bytes()) if path.is_file() and path.stat().st_size < 1000 else ""
        raise InputError(f"{path}: {said or f'cannot be read as .npz: {error}; write it with numpy.savez'}") from None
    if images.dtype.kind not in "buif" or images.ndim not in (3, 4) or not images.size:
        form = f"{images.dtype} {list(images.shape)}"
        raise InputError(f"{path}: images are {form}; they must be numbers [n, H, W] or [n, H, W, C]")
    keys = [f"{path.name}:{i}" for i in range(len(images))]
    if len(given) != len(images):
        raise InputError(f"{path}: has {len(given)} labels for {len(images)} images; save one for each")
    found = Listing(classes=classes)
    for key, label in zip(keys, given.tolist(), strict=True):
        try:
            found.samples.append(Sample(key, images, read_label(label)))
        except ValueError as error:
            raise InputError(
                f"{path}: the label of image {len(found.samples)}: {error}; give a number or a name"
            ) from None
    labels, classes, _ = _number([str(path)], found)
    return ArraySource(
        keys=keys, labels=labels, classes=classes, problems=found.sentences(), names=names, images=images
    )
