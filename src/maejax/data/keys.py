"""Names and labels of images from many pieces, and how their classes are numbered once all pieces are known."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from maejax.data.sources import Source

ROWS = 4096  # read or written at a time


class Kind(NamedTuple):
    """The classes of a piece of a source: their names, the one folder of its images, whether it has numbers alone."""

    classes: tuple[str, ...]
    only: str
    numbered: bool


class Key(NamedTuple):
    """The name of an image, the number of its class, -1 for none, and the name of the class, "" if it is not known."""

    name: str
    number: int
    kind: str


def kind_of(source: Source) -> Kind:
    """Return what a source knows of its classes."""
    return Kind(source.classes, source.only, not source.classes and bool((source.labels >= 0).any()))


def key_of(source: Source, i: int) -> Key:
    """Return the key of an image. A folder that all images share may be a class beside those of other pieces."""
    number, classes = int(source.labels[i]), source.classes
    if number < 0:
        return Key(source.keys[i], -1, "" if classes else source.only)
    return Key(source.keys[i], number, classes[number] if number < len(classes) else "")


def settle(kinds: list[Kind]) -> tuple[tuple[str, ...], bool]:
    """Return the names of all classes, () if they have none, and whether labels are numbers without names.

    Numbers count before names, as in a source. If pieces differ in their classes, those of all are numbered in sorted
    order.
    """
    if any(kind.numbered for kind in kinds):
        return (), True
    named = {kind.classes for kind in kinds if kind.classes}
    only = {kind.only for kind in kinds if kind.only and not kind.classes}
    if len(named) == 1 and not only:
        return named.pop(), False
    names = {name for classes in named for name in classes} | only
    return (tuple(sorted(names)) if len(names) > 1 else ()), False


def numbering(kinds: list[Kind]) -> tuple[tuple[str, ...], Callable[[Key], int]]:
    """Return the names of all classes, and the function that gives the label of a key, -1 if it has none.

    The number of a key counts within its piece, so it is a label only where no class has a name.
    """
    classes, numbered = settle(kinds)
    place = {name: i for i, name in enumerate(classes)}
    if numbered:
        return classes, lambda key: -1 if key.kind else key.number
    return classes, lambda key: place.get(key.kind, -1)


class Keys:
    """The keys in a file of `count` lines of JSON, with the labels of all kinds of pieces that they come from."""

    def __init__(self, path: Path, count: int, kinds: list[Kind]):
        self.path, self.count, self.kinds = path, count, kinds
        self.classes, self.label = numbering(kinds)

    def blocks(self) -> Iterator[list[Key]]:
        """Yield the keys in order, `ROWS` at a time."""
        with self.path.open(encoding="utf-8") as file:
            while lines := list(islice(file, ROWS)):
                yield [Key(*json.loads(line)) for line in lines]
