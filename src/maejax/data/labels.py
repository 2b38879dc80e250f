"""A file of image names and their classes: csv, tsv, json or jsonl."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maejax.data.listing import IMAGE_SUFFIXES
from maejax.errors import FormatError

LABEL_FILES = ("labels.csv", "labels.tsv", "labels.json", "labels.jsonl", "metadata.csv", "metadata.jsonl")
_NAMES = ("file_name", "filename", "file", "image", "image_id", "img", "name", "path", "key", "id")
_CLASSES = ("label", "labels", "class", "class_name", "cls", "category", "target", "breed")


def read_labels(path: Path) -> dict[str, str]:
    """Read a label file: the name of an image -> its class, both as text; "" for no class.

    A csv or tsv has a column of names and one of classes, with a header (`file_name,label`; other columns are left
    alone). With just these two it needs no header. A json is an object {name: class} or a list of objects with such
    fields; a jsonl has one of these objects in a line. An empty class, null and -1 are no class. Text is UTF-8, or
    UTF-16 with its mark. Raises FormatError if the file has no such form or names an image twice with different
    classes, and OSError.
    """
    suffix = path.suffix.lower()
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        if suffix in (".csv", ".tsv"):
            pairs = _from_table(_rows(text, "\t" if suffix == ".tsv" else ",;\t"), path)
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
        name, kind = name.strip().replace("\\", "/").removeprefix("./"), kind.strip()
        kind = "" if kind == "-1" else kind
        if table.setdefault(name, kind) != kind:
            raise FormatError(f"{path}: {name} is {table[name]} and also {kind}; keep one of the two lines")
    if not table:
        raise FormatError(f"{path}: names no image")
    return table


def _rows(text: str, delimiters: str) -> list[list[str]]:
    """Split a table into rows of cells, by the delimiter that gives rows of one length and names without delimiters."""
    split = {mark: [row for row in csv.reader(text.splitlines(), delimiter=mark) if row] for mark in delimiters}
    for rows in split.values():
        names = "".join(row[0] for row in rows)
        if len({len(row) for row in rows}) == 1 < len(rows[0]) and not any(other in names for other in delimiters):
            return rows
    return split[next((mark for mark in delimiters if mark in text), delimiters[0])]


def _from_table(rows: list[list[str]], path: Path) -> list[tuple[str, str]]:
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    name, kind = (next((head.index(each) for each in known if each in head), None) for known in (_NAMES, _CLASSES))
    header = name is not None or kind is not None
    if max(map(len, rows), default=0) == 2 and (kind is not None or path.stem != "metadata"):  # that may hold captions
        if not header:  # words that are not known here stand above the names of files
            suffixes = [row[0].strip().lower().endswith(IMAGE_SUFFIXES) for row in rows]
            header = len(rows) > 1 and not suffixes[0] and all(suffixes[1:])
        name, kind = (1 - kind, kind) if kind is not None else (name or 0, 1 - (name or 0))
    elif name is None or kind is None:
        raise KeyError(f"columns of names and classes, it has {', '.join(head) or 'none'}; call them file_name, label")
    for row in rows[header:]:
        if len(row) <= max(name, kind):
            raise FormatError(f"{path}: the line {','.join(row)!r} has no class")
    return [(row[name], row[kind]) for row in rows[header:]]


def _from_json(content: object) -> list[tuple[str, str]]:
    if isinstance(content, dict):
        return [(name, _text(kind)) for name, kind in content.items()]
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise KeyError('object {"name": "class"}, nor a list of objects')
    pairs = []
    for entry in content:
        name, kind = (next((entry[each] for each in known if each in entry), ...) for known in (_NAMES, _CLASSES))
        if name is ... or kind is ...:
            raise KeyError(f"file_name and label in {json.dumps(entry)[:80]}")
        pairs.append((_text(name), _text(kind)))
    return pairs


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise KeyError(f"name or number where it says {json.dumps(value)[:80]}")
    return str(value)


def assign(keys: Sequence[str], table: dict[str, str]) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Find the class of each image, by its key in a source, in the table of a label file.

    A name in the table may be the end of the image's path, its file name, or either without the suffix; the longest
    match counts. Classes that are all whole numbers (3 or 3.0) are the labels themselves; others are numbered in sorted
    order. Returns labels int32 [n], -1 if there is none; the names of the classes, () for numbers; the keys that the
    table does not name. Raises FormatError if a name without a folder is that of two images.
    """
    depth = 1 + max(name.count("/") for name in table)
    found: list[str | None] = []
    used: dict[str, str] = {}
    for key in keys:
        parts = re.split("[/:]", key)[-depth:]
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        names = (name for tail in tails for name in (tail, tail.rpartition(".")[0]))
        name = next((name for name in names if name in table), None)
        found.append(None if name is None else table[name])
        other = used.setdefault(name, key) if name is not None and "/" not in name else key
        if _folder(other) != _folder(key):
            raise FormatError(f"{name} is the name of {other} and of {key}; write it with its folder")
    kinds = set(table.values()) - {""}
    if all(re.fullmatch(r"\d+(\.0*)?", kind) and float(kind) < 2**31 for kind in kinds):
        classes, number = (), {kind: int(float(kind)) for kind in kinds}
    else:
        classes = tuple(sorted(kinds))
        number = {kind: i for i, kind in enumerate(classes)}
    labels = np.array([number.get(kind, -1) if kind else -1 for kind in found], np.int32)
    return labels, classes, [key for key, kind in zip(keys, found, strict=True) if kind is None]


def _folder(key: str) -> str:
    return key.rpartition("/")[0]
