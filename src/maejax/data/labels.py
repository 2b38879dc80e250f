"""A file of image names and their classes: csv, tsv, json or jsonl."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maejax.errors import FormatError

LABEL_FILES = ("labels.csv", "labels.tsv", "labels.json", "labels.jsonl")
_NAMES = ("file_name", "filename", "file", "image", "image_id", "img", "name", "path", "key", "id")
_CLASSES = ("label", "labels", "class", "class_name", "cls", "category", "target", "breed")


def read_labels(path: Path) -> dict[str, str]:
    """Read a label file: the name of an image -> its class, both as text.

    A csv or tsv has a column of names and one of classes, with a header (`file_name,label`; other columns are left
    alone). With just these two it needs no header. A json is an object {name: class} or a list of objects with such
    fields; a jsonl has one of these objects in a line. Raises FormatError if the file has no such form or names an
    image twice with different classes, and OSError.
    """
    suffix = path.suffix.lower()
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix in (".csv", ".tsv"):
            pairs = _from_table(text, "\t" if suffix == ".tsv" else "," if "," in text else ";", path)
        elif suffix in (".json", ".jsonl"):
            lines = suffix == ".jsonl"
            pairs = _from_json([json.loads(s) for s in text.splitlines() if s.strip()] if lines else json.loads(text))
        else:
            raise FormatError(f"{path}: a label file is .csv, .tsv, .json or .jsonl")
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise FormatError(f"{path}: is no {suffix[1:]} file: {error}") from None
    except KeyError as error:
        raise FormatError(f"{path}: has no {error.args[0]}") from None
    table: dict[str, str] = {}
    for name, kind in pairs:
        name = name.strip().replace("\\", "/").removeprefix("./")
        if table.setdefault(name, kind.strip()) != kind.strip():
            raise FormatError(f"{path}: {name} is {table[name]} and also {kind.strip()}; keep one of the two lines")
    if not table:
        raise FormatError(f"{path}: names no image")
    return table


def _from_table(text: str, delimiter: str, path: Path) -> list[tuple[str, str]]:
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    name, kind = (next((head.index(each) for each in known if each in head), None) for known in (_NAMES, _CLASSES))
    header = name is not None or kind is not None
    if max(map(len, rows), default=0) == 2:
        name, kind = (1 - kind, kind) if kind is not None else (name or 0, 1 - (name or 0))
    elif name is None or kind is None:
        raise KeyError(f"columns of names and classes, it has {', '.join(head) or 'none'}; call them file_name, label")
    for row in rows[header:]:
        if len(row) <= max(name, kind):
            raise FormatError(f"{path}: the line {delimiter.join(row)!r} has no class")
    return [(row[name], row[kind]) for row in rows[header:]]


def _from_json(content: object) -> list[tuple[str, str]]:
    if isinstance(content, dict):
        return [(name, _text(kind)) for name, kind in content.items()]
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise KeyError('object {"name": "class"}, nor a list of objects')
    pairs = []
    for entry in content:
        name, kind = (next((entry[each] for each in known if each in entry), None) for known in (_NAMES, _CLASSES))
        if name is None or kind is None:
            raise KeyError(f"file_name and label in {json.dumps(entry)[:80]}")
        pairs.append((_text(name), _text(kind)))
    return pairs


def _text(value: object) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise KeyError(f"name or number where it says {json.dumps(value)[:80]}")
    return str(value)


def assign(keys: Sequence[str], table: dict[str, str]) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Find the class of each image, by its key in a source, in the table of a label file.

    A name in the table may be the end of the image's path, its file name, or either without the suffix; the longest
    match counts. Classes that are all whole numbers are the labels themselves; others are numbered in sorted order.
    Returns labels int32 [n], -1 if there is none; the names of the classes, () for numbers; the keys without a label.
    """
    depth = 1 + max(name.count("/") for name in table)
    found: list[str | None] = []
    for key in keys:
        parts = re.split("[/:]", key)[-depth:]
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        names = (name for tail in tails for name in (tail, tail.rpartition(".")[0]))
        found.append(next((table[name] for name in names if name in table), None))
    if all(kind.isdecimal() and int(kind) < 2**31 for kind in table.values()):
        classes, number = (), {kind: int(kind) for kind in table.values()}
    else:
        classes = tuple(sorted(set(table.values())))
        number = {kind: i for i, kind in enumerate(classes)}
    labels = np.array([-1 if kind is None else number[kind] for kind in found], np.int32)
    return labels, classes, [key for key, kind in zip(keys, found, strict=True) if kind is None]
