"""The class of an image as a file states it: a number, a name, or none."""

import json
import math
import re
from collections.abc import Iterable
from itertools import takewhile

import numpy as np

LABEL_NAMES = ("label", "labels", "fine_label", "cls", "class", "class_name", "category", "target", "breed")
NO_CLASS = "labels that are neither one number nor one name"
TRAINING = {"train", "training"}
VALIDATION = {"val", "valid", "validation", "dev", "eval"}
_HELD_OUT = {"test", "testing", *VALIDATION}


def read_label(value: object) -> int | str:
    """Return the class that a value of a file states: its number, its name, or -1 for none.

    Whole numbers are numbers, also as text, as 2.0 and as true; a list of one value is that value. None, NaN, "", an
    empty list and negative numbers are none. Raises ValueError for anything else, such as several classes or 0.5.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list) and len(value) < 2:
        value = value[0] if value else None
    if isinstance(value, str):
        value = value.strip()
        if not re.fullmatch(r"-?\d+(\.0*)?", value):
            return value or -1
        value = float(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return -1
    if not isinstance(value, int | float) or not float(value).is_integer() or value >= 2**31:
        raise ValueError(f"{value!r} is no class")
    return max(int(value), -1)


def label_in_file(suffix: str, content: bytes) -> int | str:
    """Return the class in a `.cls` file, or under one of `LABEL_NAMES` in a `.json`; raises ValueError as above."""
    if suffix == ".cls":
        return read_label(content.decode())
    fields = json.loads(content)
    found = (fields[name] for name in LABEL_NAMES if name in fields) if isinstance(fields, dict) else ()
    return read_label(next((value for value in found if value is not None), None))


def class_of_folders(folders: Iterable[str]) -> tuple[dict[str, str], str, list[str]]:
    """Find the class of each folder of images: the first part of its path in which they differ, "" if it has none.

    Returns these, the name of the one folder that all of them share, "" if they share none, and the splits of a data
    set that lie above the classes, sorted.
    """
    parts = {folder: tuple(part for part in folder.split("/") if part not in ("", ".")) for folder in folders}
    levels = zip(*parts.values(), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    below = {folder: part[len(shared) :] for folder, part in parts.items()}
    splits = sorted({part[0] for part in below.values() if part and part[0].lower() in TRAINING | _HELD_OUT})
    if {split.lower() for split in splits} & TRAINING and {split.lower() for split in splits} & _HELD_OUT:
        below = {folder: part[1:] if part[:1] and part[0] in splits else part for folder, part in below.items()}
    else:
        splits = []
    return {folder: "".join(part[:1]) for folder, part in below.items()}, "".join(shared[-1:]), splits
