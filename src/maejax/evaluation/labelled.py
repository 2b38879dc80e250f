"""Labelled images of an evaluation: a source on this machine, or pieces whose shards are fetched one by one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from maejax.data.agreement import agree
from maejax.data.form import Form
from maejax.data.keys import Key, Kind, key_of, kind_of, numbering
from maejax.data.part import take
from maejax.data.pieces import Pieces, open_pieces
from maejax.data.pipeline import check_readable
from maejax.data.sources import Source, open_source
from maejax.errors import InputError
from maejax.evaluation.encoding import encode_source, read
from maejax.models.pooling import Pool
from maejax.models.vit import VisionTransformer

NAMES = ("--train-dataset-shards", "--valid-dataset-shards")


class EvalSplits(NamedTuple):
    """Labelled images to train the evaluators on and to test them with.

    `classes` names the labels, or is empty. They are known after the last image where some shard must be fetched.
    """

    train: Source | Pieces
    test: Source | Pieces
    classes: tuple[str, ...]


class Side(NamedTuple):
    """Labelled images of a split, encoded: features [n, D], labels [n], and their numbers `rows` [n] over all pieces.

    `tokens` are all tokens, float16 [n, 1 + N, D], mapped into memory, or None. `sizes` are the numbers of images of
    the pieces. `unreadable` counts the images with a label that could not be read. `keys` and `kinds` name the classes.
    """

    images: Source | Pieces
    form: Form
    sizes: list[int]
    features: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    tokens: np.ndarray | None
    unreadable: int
    keys: list[Key]
    kinds: list[Kind]


def open_labelled(spec: str, *, labels: str | None = None, cache_dir: str = "") -> Source | Pieces:
    """Open images as a source where all of them lie on this machine, else as pieces; raises as `open_source`."""
    pieces = open_pieces(spec, labels=labels, cache_dir=cache_dir)
    if pieces.shards:
        return pieces
    (first, *more) = pieces.local
    return first if isinstance(first, Source) and not more else open_source(spec, labels=labels)


def pair(train: Source | Pieces, test: Source | Pieces) -> EvalSplits:
    """Number the classes of `test` as in `train`; raises InputError without labels or two classes, or for a new one.

    Where one of them is in pieces, `number` does so once all are encoded.
    """
    if isinstance(train, Pieces) or isinstance(test, Pieces):
        if isinstance(train, Source):
            _check_two(train.labels)
        if isinstance(test, Source) and not test.only:  # one folder may be a class of the training images
            _check_any(NAMES[1], test.labels)
        if train.classes and (extra := sorted({*test.classes} - {*train.classes})):
            _refuse(extra)
        return EvalSplits(train, test, ())
    extra = test.number_classes_as(train.classes)
    _check(train.labels, test.labels, extra)
    return EvalSplits(train, test, train.classes)


def encode_labelled(
    encoder: VisionTransformer,
    images: Source | Pieces,
    form: Form,
    name: str,
    pool: Pool,
    tokens_path: Path | None,
    reading: dict[str, Any],
    log: Callable[[str], None] = lambda _: None,
    *,
    named: bool = False,
) -> Side:
    """Encode the labelled images of a source or of pieces, in order; all tokens go to a file if a path is given.

    `log` receives the problems of pieces; `named` asks for keys, which `number` needs. Raises InputError if the first
    piece has no label or no readable image, and Failed for a shard that does not come.
    """
    features, labels, rows, keys = [], [], [], []
    sizes: list[int] = []
    kinds: list[Kind] = []
    unreadable, several = 0, isinstance(images, Pieces)
    with nullcontext() if tokens_path is None else tokens_path.open("wb") as tokens, _opened(images, form) as opened:
        for source in opened:
            start = sum(sizes)
            if several:
                _check_piece(source, name, first=not sizes, log=log)
            sizes.append(len(source))
            if (kind := kind_of(source)) not in kinds:
                kinds.append(kind)
            folder = several and bool(source.only) and not source.classes  # it may be a class beside others
            for batch in encode_source(encoder, source, pool=pool if tokens is None else None, **reading):
                known = (batch.index >= 0) & ((batch.labels >= 0) | folder)
                used = known & batch.valid
                found, index = batch.features[used], batch.index[used]
                unreadable += int((known & ~batch.valid).sum())
                if tokens is not None:
                    tokens.write(np.ascontiguousarray(found, np.float16).data)
                    found = np.asarray(encoder.pooled(found, pool))
                features.append(found)
                labels.append(batch.labels[used])
                rows.append(start + index.astype(np.int64))
                keys += [key_of(source, i) for i in index.tolist()] if named else []
    x, y, numbers = (np.concatenate(parts) for parts in (features, labels, rows))
    shape = (len(x), encoder.config.prefix + encoder.patches, encoder.config.dim)
    mapped = None if tokens_path is None or not len(x) else np.memmap(tokens_path, np.float16, "r", shape=shape)
    return Side(images, form, sizes, x, y, numbers, mapped, unreadable, keys, kinds)


def number(train: Side, test: Side) -> tuple[Side, Side, tuple[str, ...]]:
    """Number the classes of both sides alike, now that all pieces are known; images without a class are left out.

    Also returns the names of the classes. Raises InputError as `pair`.
    """
    (classes, label), (_, own_label) = numbering(train.kinds), numbering(test.kinds)
    place = {name: i for i, name in enumerate(classes)}
    of_train = [label(key) for key in train.keys]
    of_test = [place.get(key.kind, own_label(key)) for key in test.keys]
    extra = {key.kind for key in test.keys} - {"", *classes} if classes else ()
    _check(np.array(of_train), np.array(of_test), sorted(extra))
    return _labelled(train, of_train), _labelled(test, of_test), classes


def read_rows(side: Side, rows: np.ndarray, encoder: VisionTransformer, reading: dict[str, Any]) -> np.ndarray:
    """Read images of a side by their places there, [n, H, W, C] of the encoder's type, one piece after the other."""
    wanted, starts = side.rows[rows], np.cumsum([0, *side.sizes])
    piece = np.searchsorted(starts, wanted, side="right") - 1
    numbers, found = np.unique(piece).tolist(), {}
    with _opened(side.images, side.form, numbers) as opened:
        for n, source in zip(numbers, opened, strict=True):
            here = np.unique(wanted[piece == n])
            found |= dict(zip(here.tolist(), read(take(source, here - starts[n]), encoder, reading), strict=True))
    return np.stack([found[row] for row in wanted.tolist()])


@contextmanager
def _opened(images: Source | Pieces, form: Form, numbers: Sequence[int] | None = None) -> Iterator[Iterator[Source]]:
    """Open a source, or the pieces of these numbers, in order and with their form; None for all."""
    if isinstance(images, Source):
        yield iter([images])
        return
    with (images if numbers is None else images.chosen(numbers)).opened() as opened:
        yield (_agreed(source, form) for source in opened)


def _agreed(source: Source, form: Form) -> Source:
    agree(source, form)
    return source


def _check_piece(source: Source, name: str, *, first: bool, log: Callable[[str], None]) -> None:
    for problem in source.problems:
        log(problem)
    if not first:
        return
    check_readable(source, source.form.channels)
    if not source.only and (source.labels < 0).all():
        raise InputError(f"{name}: no image of the first shard has a label; use class folders or .cls members")


def _check(train: np.ndarray, test: np.ndarray, extra: Sequence[str]) -> None:
    """Check labels: some on both sides, two classes to train on, and no class in `extra`, which training lacks."""
    _check_any(NAMES[0], train)
    _check_any(NAMES[1], test)
    if extra:
        _refuse(extra)
    _check_two(train)


def _refuse(extra: Sequence[str]) -> NoReturn:
    raise InputError(f"{NAMES[1]} has classes that {NAMES[0]} lacks: {', '.join(extra[:5])}")


def _check_two(labels: np.ndarray) -> None:
    _check_any(NAMES[0], labels)
    if len(np.unique(labels[labels >= 0])) < 2:
        raise InputError(f"{NAMES[0]} has images of one class only; evaluation needs at least two")


def _check_any(name: str, labels: np.ndarray) -> None:
    if (labels < 0).all():
        remedy = "use class folders, .cls members or a label file (--labels)"
        raise InputError(f"{name}: no image has a label; {remedy}")


def _labelled(side: Side, labels: list[int]) -> Side:
    numbers = np.array(labels, np.int32)
    keep = numbers >= 0
    if keep.all():
        return side._replace(labels=numbers)
    tokens = None if side.tokens is None else _kept(side.tokens, np.flatnonzero(keep))
    return side._replace(features=side.features[keep], labels=numbers[keep], rows=side.rows[keep], tokens=tokens)


def _kept(tokens: Any, rows: np.ndarray) -> np.ndarray:
    """Return rows of tokens that are mapped into memory, mapped too: they may be larger than it."""
    shape, size = (len(rows), *tokens.shape[1:]), 256
    kept = np.memmap(f"{tokens.filename}-kept", np.float16, "w+", shape=shape) if len(rows) else tokens[:0]
    for start in range(0, len(rows), size):
        kept[start : start + size] = tokens[rows[start : start + size]]
    return kept
