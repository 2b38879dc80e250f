"""Images of the user's program as a source: arrays, what can be indexed, and what can be gone through."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from maejax.data.classes import LABEL_NAMES, read_label
from maejax.data.listing import Sample
from maejax.data.sources import ArraySource, Source
from maejax.data.stream import LocalShard, OpenShard, Stream
from maejax.errors import InputError
from maejax.storage.retry import RetryPolicy

IMAGE_NAMES = ("image", "images", "img", "pixel_values")
MOST = 1 << 31  # images; more is a pipeline that repeats without end


@dataclass(eq=False)
class IndexedSource(Source):
    """Images of an object with a length and items by number, each read when it is needed."""

    items: Any

    def stored(self, i: int) -> np.ndarray:
        """Return the pixels of image i."""
        return one_image(self.items[i], self.keys[i])[0]


class Repeatable:
    """Samples of what can be gone through again and again, in its own order: one by one, or in batches.

    `again` returns an iterator from the first image on. Names of classes are numbered in the order of `classes`; None
    leaves them names. Raises InputError if there is no image, and for what is none.
    """

    def __init__(self, again: Callable[[], Iterator[Any]], name: str, classes: Sequence[str] | None):
        self._again, self._name, self._classes = again, name, classes

    def __iter__(self) -> Generator[Sample, None, None]:
        count = 0
        for item in self._again():
            for image, label in images_of(item, f"{self._name}:{count}"):
                if isinstance(label, str) and self._classes is not None:
                    label = number_of_class(label, self._classes, self._name)
                yield Sample(f"{self._name}:{count}", image, label)
                count += 1
        if not count:
            raise InputError(f"{self._name} gave no image: it has to begin anew each time that it is gone through")


class InOrder(OpenShard):
    """Samples that keep their order: each is a window of its own."""

    def windows(self, sizes: Iterator[int]) -> Iterator[list[Sample]]:
        """Yield the samples one by one."""
        return super().windows(repeat(1))


@dataclass(eq=False)
class OwnStream(Stream):
    """A stream of one shard, the images of a `Repeatable`."""

    images: Repeatable | None = field(default=None, kw_only=True)

    @property
    def size(self) -> str:
        """How much it holds, in words, where the number of images is not known."""
        return f"images of {self.shards[0].name}"

    def open(self, number: int, patience: RetryPolicy | None = None) -> OpenShard:
        """Begin with the first image."""
        assert self.images is not None
        return InOrder(iter(self.images))


def open_own(
    images: Any,
    name: str,
    *,
    labels: Sequence[Any] | np.ndarray | None = None,
    classes: Sequence[str] = (),
    whole: bool = False,
    labelled: bool = False,
) -> Source | Stream:
    """Open images of the user's program under a name; with `whole`, as a source whatever they are.

    An array [n, H, W] or [n, H, W, C], or an object with `len` and items by number, is a source. What can be gone
    through again is a stream; with `whole` it is read into memory. An item is an image [H, W] or [H, W, C], a pair of
    image and label, or a mapping with both; what is gone through may give batches of these. With `labelled` all items
    are read for their labels, unless `labels` has them. Raises InputError for anything else.
    """
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "buif" or images.ndim not in (3, 4) or not images.size:
            form = f"{images.dtype} {list(images.shape)}"
            raise InputError(f"{name}: images are {form}; they must be numbers [n, H, W] or [n, H, W, C]")
        return ArraySource(**columns(name, len(images), labels, classes), images=images)
    if is_indexed(images):
        count = len(images)
        if count >= MOST:
            raise InputError(f"{name} has no end: leave out what repeats it, since training begins epochs by itself")
        if not count:
            raise InputError(f"{name} holds no image")
        if labelled and labels is None:
            labels = [one_image(images[i], f"{name}:{i}")[1] for i in range(count)]
        return IndexedSource(**columns(name, count, labels, classes), items=images)
    samples = Repeatable(beginnings(images, name), name, None if whole else classes)
    if not whole:
        if labels is not None:
            raise InputError(f"{name}: labels beside images have to be of images with numbers; give pairs instead")
        shard = LocalShard(name, ())
        return OwnStream([shard], Path(), False, RetryPolicy(), classes=tuple(classes), images=samples)
    read = list(samples)
    labels = [sample.label for sample in read] if labels is None else labels
    return IndexedSource(**columns(name, len(read), labels, classes), items=[sample.image for sample in read])


def is_indexed(images: Any) -> bool:
    """Return whether an object has a length and items by number; some pipelines have the methods and fail."""
    if isinstance(images, Mapping) or not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        return False
    try:
        len(images)
    except TypeError:
        return False
    return True


def beginnings(images: Any, name: str) -> Callable[[], Iterator[Any]]:
    """Return a function that begins to go through images; raises InputError if that is possible only once."""
    if isinstance(images, Iterator):
        kind = type(images).__name__
        raise InputError(
            f"{name}: a {kind} is gone through once, and training takes each image many times: give the function that "
            "makes it, such as Dataset(lambda: images())"
        )
    make: Any = images
    if isinstance(images, Iterable):
        return lambda: iter(make)
    if callable(images):
        return lambda: iter(make())
    raise InputError(
        f"{name}: {type(images).__name__} is no source of images: give a place, an array [n, H, W, C], an object with "
        "len() and items by number, one to go through, or a function that returns such a one"
    )


def columns(name: str, count: int, labels: Any, classes: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a source of so many images; names of classes are numbered in the order of `classes`.

    Raises InputError if labels and images differ in number, or for a label that is no class.
    """
    found = [-1] * count
    if labels is not None:
        if len(labels) != count:
            raise InputError(f"{name}: has {len(labels)} labels for {count} images; give one for each")
        try:
            found = [read_label(label) for label in labels]
        except ValueError as error:
            raise InputError(f"{name}: {error}; a label is a number or a name") from None
    classes = tuple(classes) or tuple(sorted({label for label in found if isinstance(label, str)}))
    numbers = [number_of_class(each, classes, name) if isinstance(each, str) else each for each in found]
    numbers = np.array(numbers, np.int32)
    return {"keys": [f"{name}:{i}" for i in range(count)], "labels": numbers, "classes": classes, "problems": []}


def number_of_class(label: str, classes: Sequence[str], name: str) -> int:
    """Return the place of a class among `classes`; raises InputError if it is none of them."""
    if label not in classes:
        known = f"none of the classes {', '.join(classes)}" if classes else "a name: give classes=[...] in their order"
        raise InputError(f"{name}: the label {label!r} is {known}")
    return list(classes).index(label)


def images_of(item: Any, key: str) -> list[tuple[np.ndarray, int | str]]:
    """Return the images and labels of an item, which may be a batch [B, H, W, C]; raises InputError if it is none."""
    pixels, label = parts(item, key)
    if pixels.ndim != 4:
        return [(check_image(pixels, key), label_of(label, key))]
    labels = [-1] * len(pixels) if label is None else list(np.asarray(label))
    if len(labels) != len(pixels):
        raise InputError(f"{key}: a batch of {len(pixels)} images has {len(labels)} labels; give one for each")
    return [(image, label_of(each, key)) for image, each in zip(pixels, labels, strict=True)]


def one_image(item: Any, key: str) -> tuple[np.ndarray, int | str]:
    """Return the image and the label of an item; raises InputError if it is no image."""
    pixels, label = parts(item, key)
    return check_image(pixels, key), label_of(label, key)


def parts(item: Any, key: str) -> tuple[np.ndarray, Any]:
    """Split an item into pixels and label, None for none; raises InputError if it is no image."""
    label = None
    if isinstance(item, Mapping):
        name = next((name for name in IMAGE_NAMES if name in item), None)
        if name is None:
            had = ", ".join(map(str, item))
            raise InputError(f"{key}: a mapping with {had}: call the image `image` and its class `label`")
        label = next((item[each] for each in LABEL_NAMES if each in item), None)
        item = item[name]
    elif isinstance(item, tuple | list) and len(item) == 2:
        item, label = item
    picture: Any = item
    if getattr(picture, "mode", "") in ("P", "CMYK", "LA", "PA"):  # of Pillow, with bands that are no colours
        picture = picture.convert("RGB")
    try:
        pixels = np.asarray(picture)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor of PyTorch on a GPU, or one with a gradient
        raise InputError(f"{key}: {type(item).__name__} cannot be read as an array: {error}") from None
    return pixels, label


def check_image(pixels: np.ndarray, key: str) -> np.ndarray:
    """Return pixels if they are those of one image; raises InputError if not."""
    if pixels.dtype.kind not in "buif" or pixels.ndim not in (2, 3) or not pixels.size:
        found = f"{pixels.dtype} {list(pixels.shape)}"
        raise InputError(f"{key} is {found}: an image is an array of numbers [H, W] or [H, W, C]")
    return pixels


def label_of(label: Any, key: str) -> int | str:
    """Read a label, -1 for none; raises InputError if it is no class."""
    try:
        return read_label(label.tolist() if hasattr(label, "tolist") else label)
    except ValueError as error:
        raise InputError(f"{key}: the label {error}; give a number or a name") from None
