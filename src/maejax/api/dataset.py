"""Images to train and evaluate on: of a place, or of the user's own program."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from maejax.data.agreement import agree
from maejax.data.arrays import read_pixels
from maejax.data.form import asked_form
from maejax.data.own_images import open_own
from maejax.data.sources import Source, open_source, open_stream
from maejax.data.stream import Stream
from maejax.errors import InputError
from maejax.pixels import Pixels


class Indexed(Protocol):
    """What has a length, and items by number."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, i: Any, /) -> Any:
        """Return item i."""
        ...


Images = str | Path | np.ndarray | Indexed | Iterable[Any] | Callable[[], Iterable[Any]]


class Dataset:
    """Images, and their labels if they have some.

    `images` is one of these:

    - a place: whatever `maejax train` takes, such as a folder, shards or an address;
    - an array [n, H, W] or [n, H, W, C];
    - an object with `len` and items by number, such as a list, a dataset of PyTorch or Hugging Face, or a MapDataset
      of Grain;
    - what can be gone through again, such as a tf.data or Grain pipeline or a loader of PyTorch, or a function that
      returns such a one.

    An item is an image [H, W] or [H, W, C], a pair of image and label, or a mapping with `image` and `label`; what is
    gone through may give batches of these. `labels` are those of an array or of items by number, or the name of a label
    file of a place. `classes` are the names of the classes by number. `name` stands for images of one's own in messages
    and in config.json. Raises InputError where nothing can be read.
    """

    def __init__(
        self,
        images: Images,
        *,
        labels: Sequence[Any] | np.ndarray | str | Path | None = None,
        classes: Sequence[str] = (),
        name: str = "",
    ):
        self.images, self._labels, self._classes = images, labels, classes
        self.place = str(images) if isinstance(images, str | Path) else ""
        if not self.place and isinstance(labels, str | Path):
            raise InputError(f"labels={str(labels)!r}: a label file is for a place; give the labels themselves")
        self.plain = bool(self.place) and labels is None  # a command can open it by its name
        self.name = self.place or f"python:{name or type(images).__name__}"

    def open(self, cache_dir: str = "", *, labelled: bool = False) -> Source | Stream:
        """Open the images for training; with `labelled`, labels of items are read first if none were given."""
        if self.place and self._labels is None:
            return open_stream(self.place, cache_dir=cache_dir)
        if self.place:
            return self.open_whole(cache_dir)
        return open_own(self.images, self.name, labels=self._labels, classes=self._classes, labelled=labelled)  # type: ignore[arg-type]

    def open_whole(self, cache_dir: str = "") -> Source:
        """Open the images so that each can be read by number, with their labels; raises InputError if none is there.

        Shards elsewhere are fetched; what is gone through is read into memory.
        """
        if self.place:
            return open_source(self.place, labels=self._labels, cache_dir=cache_dir)  # type: ignore[arg-type]
        given: dict[str, Any] = {"labels": self._labels, "classes": self._classes}
        return open_own(self.images, self.name, **given, whole=True, labelled=True)  # type: ignore[return-value]

    @cached_property
    def source(self) -> Source:
        """The images by number, opened when this is first used; see `open_whole`."""
        source = self.open_whole()
        agree(source, asked_form(Pixels(), 3))
        return source

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self) -> np.ndarray:
        """The class of each image, int32 [n]; -1 if there is none."""
        return self.source.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes by number, () if they are not known."""
        return self.source.classes

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        """Return pixels [H, W, C] and label of image i, before any crop."""
        if not 0 <= i < len(self.source):
            raise IndexError(f"{self.name} has the images 0 to {len(self.source) - 1}, and no {i}")
        return read_pixels(self.source.read(i), self.source.form), int(self.source.labels[i])
