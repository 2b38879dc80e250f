"""What a classifier takes over from pre-trained weights, and which classes it is for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maejax.config import Config
from maejax.data.sources import Source
from maejax.data.stream import Stream
from maejax.errors import InputError, WeightsError
from maejax.models.trees import named_arrays
from maejax.weights.pretrained import load_pretrained
from maejax.weights.run_directory import fold_head_norm
from maejax.weights.weights import listed

NEW = -1  # in a label mapping: a class that the old head does not know


class Transferred(NamedTuple):
    """Arrays by our names to start from, arguments that the model takes over, and what is to be said of them."""

    arrays: dict[str, np.ndarray]
    arguments: dict[str, Any]
    notices: tuple[str, ...]


def transfer(config: Config, arguments: dict[str, Any], shape: Any, mapping: Sequence[int] | None) -> Transferred:
    """Read `--pretrained-ckpt` for a classifier: all of the encoder, and of the head what fits.

    Args:
        config: of the run.
        arguments: of the classifier.
        shape: the abstract classifier.
        mapping: for every class the old one's number, or -1; None where there is no `--label-mapping`.

    Raises:
        InputError: the file cannot be had, lacks a tensor of the encoder, or has it in another shape.
        InputError: the mapping needs a head that the file has not.

    """
    path = config.run.pretrained_ckpt
    found = load_pretrained(path, arguments, config.data.cache_dir, config.transfer.channel_rule)
    wanted = {name: tuple(array.shape) for name, array in named_arrays(shape).items()}
    if "head_norm.mean" in found.arrays and "head_norm.mean" not in wanted:
        found = found._replace(arrays=fold_head_norm(found.arrays, found.head_norm))  # a probe that is fine-tuned
    found = found._replace(arrays=without_affine(found.arrays))
    arrays = {name: array for name, array in found.arrays.items() if name.startswith(("encoder.", "norm."))}
    check_encoder(path, arrays, wanted, arguments["pooling"])
    arrays = {name: array for name, array in arrays.items() if name in wanted}
    notices = [found.said or path]
    if "mask_token" in found.arrays:
        notices.append("its decoder is left out")
    head = {name: a for name, a in found.arrays.items() if name.startswith(("head.", "head_norm.")) and name in wanted}
    complete = head.keys() == {name for name in wanted if name.startswith(("head.", "head_norm."))}
    old = len(found.arrays["head.bias"]) if "head.bias" in found.arrays else 0
    if mapping is not None:
        if not old:
            raise InputError(f"--label-mapping: {path} has no head to take rows from")
        arrays |= mapped_head(found.arrays, mapping, arguments)
        notices.append(f"{sum(i != NEW for i in mapping)} of {len(mapping)} classes start from its head")
    elif complete and old == arguments["labels"]:
        arrays |= head
        notices.append(f"its head of {old} classes is taken over")
    elif old:
        notices.append(f"its head of {old} classes is left out (--label-mapping FILE takes rows of it)")
    taken: dict[str, Any] = {} if found.gelu == "erf" else {"gelu": found.gelu}
    for name in ("mean", "std"):
        if not getattr(config.data, name):
            taken[name] = found.normalization[name]
    return Transferred(arrays, taken, tuple(notices))


def without_affine(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Move the scale and bias of a probe's BatchNorm, which the original has, into its linear layer."""
    if "head_norm.scale" not in arrays:
        return arrays
    kernel = arrays["head.kernel"]
    moved = {
        "head.kernel": arrays["head_norm.scale"][:, None] * kernel,
        "head.bias": arrays["head.bias"] + arrays["head_norm.bias"] @ kernel,
    }
    return {n: a for n, a in arrays.items() if n not in ("head_norm.scale", "head_norm.bias")} | moved


def check_encoder(path: str, arrays: dict[str, np.ndarray], wanted: dict[str, tuple[int, ...]], pooling: str) -> None:
    """Refuse a file whose encoder is not the one that is asked for.

    Raises:
        WeightsError: every missing, extra or misshapen tensor.

    """
    encoder = {name: size for name, size in wanted.items() if name.startswith("encoder.")}
    if pooling == "cls" and "encoder.norm.scale" not in arrays and "norm.scale" in arrays:
        raise WeightsError(
            f"{path} was fine-tuned on the mean of the patches and has no final norm: give --pooling gap"
        )
    wrong = [f"missing {name} {size}" for name, size in encoder.items() if name not in arrays]
    wrong += [
        f"{name} is {array.shape}, not {encoder[name]}"
        for name, array in arrays.items()
        if name in encoder and array.shape != encoder[name]
    ]
    wrong += [
        f"extra {name}"
        for name in arrays
        if name.startswith("encoder.") and name not in encoder and not name.startswith("encoder.norm.")
    ]
    if wrong:
        raise WeightsError(f"--pretrained-ckpt {path} is not the encoder that the flags describe: {'; '.join(wrong)}")


def mapped_head(
    found: dict[str, np.ndarray], mapping: Sequence[int], arguments: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Make a head [D, labels] of an old one's columns; classes that it does not know start at zero.

    Raises:
        InputError: the mapping names a class that the old head has not.

    """
    kernel, bias = found["head.kernel"], found["head.bias"]
    if max(mapping) >= len(bias):
        raise InputError(f"--label-mapping names class {max(mapping)} of a head of {len(bias)}")
    known = np.array(mapping) != NEW
    columns = np.where(known, mapping, 0)
    head = {"head.kernel": kernel[:, columns] * known, "head.bias": bias[columns] * known}
    if "head_norm" in arguments:
        head |= {name: found[name] for name in ("head_norm.mean", "head_norm.var") if name in found}
    return head


def read_mapping(path: str, labels: int) -> list[int] | None:
    """Read `--label-mapping`: a JSON list with an old class's number for every new class, -1 for none.

    Raises:
        InputError: it is no such list, or of another length.

    """
    if not path:
        return None
    try:
        mapping = json.loads(Path(path).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--label-mapping {path} cannot be read: {error}") from None
    if not isinstance(mapping, list) or not all(isinstance(i, int) and i >= NEW for i in mapping):
        raise InputError(f"--label-mapping {path} is no list of whole numbers, each an old class or -1")
    if len(mapping) != labels:
        raise InputError(f"--label-mapping {path} has {len(mapping)} entries for {labels} classes")
    return mapping


def count_classes(given: int, source: Source | Stream, spec: str) -> int:
    """Tell how many classes there are: as `--labels` says, or as the training images' labels do.

    Raises:
        InputError: the images have no labels or more classes than `--labels`, or arrive unseen and nothing tells.

    """
    seen = getattr(source, "labels", None)
    if seen is not None and (seen < 0).all():
        raise InputError(f"--train-dataset-shards {spec}: its images have no labels, which a classifier learns from")
    known, given = max(len(source.classes), 0 if seen is None else int(seen.max()) + 1), max(given, 0)
    if not (given or known):
        raise InputError("--labels: shards that arrive while training cannot be counted before; say how many classes")
    if given and (known > given or (source.classes and known != given)):
        raise InputError(f"--labels {given}: the training images have {known} classes; leave it out, or give {known}")
    return given or known


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Refuse labels beyond the classes: those of images that arrive while training are not known before.

    Raises:
        InputError: with the label.

    """
    if labels.max(initial=-1) >= classes:
        raise InputError(f"--train-dataset-shards: an image has the label {labels.max()} of {classes}: give --labels")


def match_classes(source: Source, classes: Sequence[str], labels: int, spec: str) -> None:
    """Number the classes of the validation images as those of the training images, by their names.

    Raises:
        InputError: there is no labelled image, or a class that training does not know.

    """
    if (source.labels < 0).all():
        raise InputError(f"--valid-dataset-shards {spec}: its images have no labels")
    if unknown := source.number_classes_as(classes):
        raise InputError(f"--valid-dataset-shards {spec}: training has no class {listed(unknown)}")
    if source.labels.max() >= labels:
        raise InputError(f"--valid-dataset-shards {spec}: has class {source.labels.max()}, and there are {labels}")
