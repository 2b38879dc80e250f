"""The classes of a task: counted in the data, the same in training and validation."""

import numpy as np

from maejax.config import ConfigError
from maejax.data.errors import DataError
from maejax.data.shards import Source
from maejax.data.stream import Stream
from maejax.evaluate.protocols import renumber


def count_classes(labels: int, train: Source | Stream, valid: Source | None) -> int:
    """Count the classes, and number those of `valid` as `train` does.

    Args:
        labels: --labels; 0 or less: as many as the data has.
        train, valid: of images; a stream knows only what an index beside its shards says.

    Raises:
        ConfigError: --labels contradicts the data, or nothing tells the number.
        DataError: there are no labels, or `valid` has a class that `train` lacks.

    """
    sources = {"--train-dataset-shards": train, "--valid-dataset-shards": valid}
    found = {flag: source.labels for flag, source in sources.items() if isinstance(source, Source)}
    for flag, numbers in found.items():
        if (numbers < 0).all():
            raise DataError(f"{flag}: no image has a label; use class folders, .cls members or a label file")
    if valid is not None:
        renumber(valid, train.classes, "--train-dataset-shards")
        found["--valid-dataset-shards"] = valid.labels
    names = len(train.classes) or (len(valid.classes) if valid is not None else 0)
    counts = {flag: int(numbers.max()) + 1 for flag, numbers in found.items()}
    if labels > 0:
        if names and names != labels:
            raise ConfigError(f"--labels {labels}: the data has {names} classes; leave --labels out")
        for flag, count in counts.items():
            if count > labels:
                raise ConfigError(f"--labels {labels}: {flag} has the label {count - 1}, so there are at least {count}")
        return labels
    if not names and not counts:
        raise ConfigError("--labels is missing: these shards are read as a stream and do not tell how many classes")
    if isinstance(train, Source):
        most = max(names, counts["--train-dataset-shards"])
        if valid is not None and counts["--valid-dataset-shards"] > most:
            raise DataError(
                f"--valid-dataset-shards has the label {counts['--valid-dataset-shards'] - 1}, which "
                f"--train-dataset-shards lacks; give --labels, or other images"
            )
        return most
    return max([names, *counts.values()])


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Refuse labels of a batch beyond the classes: those of a stream are not known before.

    Raises:
        DataError: there is such a label.

    """
    if len(labels) and labels.max() >= classes:
        raise DataError(f"--train-dataset-shards has the label {labels.max()} of {classes} classes; give --labels")
