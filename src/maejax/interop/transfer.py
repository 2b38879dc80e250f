"""What a classifier takes from weights of any layout: the encoder, and of the head what fits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maejax.interop.pretrained import heads_of, load_encoder_arrays, local
from maejax.interop.run import fold_head_norm
from maejax.interop.weights import WeightsError

NEW = ("norm.", "head.", "head_norm.")  # parts of a classifier that an encoder's weights need not have
SAME = ("patch_size", "channels", "dim", "layers", "heads", "layerscale")  # a classifier and its weights must agree


class Taken(NamedTuple):
    """Arrays of a classifier by our path, some of `NEW` missing, its arguments, and in words what was taken."""

    arrays: dict[str, np.ndarray]
    arguments: dict[str, Any]
    said: str


def load_for_classifier(
    path: str, arguments: dict[str, Any], *, mapping: np.ndarray | None = None, own_mean: bool = False,
    cache_dir: str = "",
) -> Taken:  # fmt: skip
    """Read what a classifier of these arguments starts from, positions interpolated to its image size.

    A decoder is left out. With "gap" pooling the encoder's final norm is left out too, and the norm of the pooled
    tokens is new, as in the authors' code. A head is kept where it has as many classes and the same pooling, or by
    `mapping`; else it is new.

    Args:
        path: anything that `files.read` knows, or its address.
        arguments: of the classifier.
        mapping: int [labels], the old class of every new one, -1 for none: that row starts at zero.
        own_mean: take the weights' mean and standard deviation of pixels, instead of those in `arguments`.
        cache_dir: see `fetch_weights`.

    Raises:
        WeightsError: the file cannot be had or is not whole, or it is of another geometry, or `mapping` does not fit.

    """
    here, fetched = local(path, cache_dir)
    arrays, told = load_encoder_arrays(str(here), image_size=tuple(arguments["image_size"]), **heads_of(arguments))
    check_geometry(path, told, arguments)
    arguments = {**arguments, **({name: told[name] for name in ("mean", "std")} if own_mean else {})}
    if told.get("gelu", "erf") != "erf":
        arguments["gelu"] = told["gelu"]
    kept = {name: array for name, array in arrays.items() if name.startswith("encoder.")}
    notes = ["its decoder is left out"] if "dec_dim" in told else []
    if arguments["pooling"] == "gap":
        kept = {name: array for name, array in kept.items() if not name.startswith("encoder.norm.")}
        kept |= {name: array for name, array in arrays.items() if name.startswith("norm.")}
        if told.get("pooling") != "gap":
            notes.append("the norm of the pooled tokens is new")
    elif told.get("pooling") == "gap":
        raise WeightsError(f"{path} averages the patch tokens, and its encoder has no final norm; give --pooling gap")
    head, note = take_head(path, arrays, told, arguments, mapping)
    return Taken({**kept, **head}, arguments, "; ".join([fetched or path, *notes, note]))


def check_geometry(path: str, told: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Check that weights are of a model like the one wanted.

    Raises:
        WeightsError: they are not; the message names all flags that would do.

    """
    wrong = [name for name in SAME if told[name] != arguments[name]]
    if wrong:
        flags = [
            f"--{'' if told[name] else 'no-'}layerscale" if name == "layerscale" else
            f"--{name.replace('_', '-')} {told[name]}" for name in wrong
        ]  # fmt: skip
        raise WeightsError(f"{path} is of another geometry than the flags say; give {' '.join(flags)}")


def take_head(
    path: str, arrays: Mapping[str, np.ndarray], told: Mapping[str, Any], arguments: Mapping[str, Any],
    mapping: np.ndarray | None,
) -> tuple[dict[str, np.ndarray], str]:  # fmt: skip
    """Take what fits of a head, and say in words what that is.

    Raises:
        WeightsError: there is a mapping, but no head or not of these classes.

    """
    labels, probe = arguments["labels"], "head_norm" in arguments
    old = told.get("labels")
    # A probe's BatchNorm can be gone on with where it is as ours; a classifier without one takes it folded.
    alike = old is not None and told["pooling"] == arguments["pooling"]
    alike = alike and (not probe or (told.get("head_norm") == arguments["head_norm"] and "head_norm.mean" in arrays))
    if not alike:
        if mapping is not None:
            raise WeightsError(f"--label-mapping: {path} has no head of the same kind whose rows could be re-used")
        return {}, "the head is new" if old is None else f"its head of {old} classes is left out, the new one is new"
    if mapping is None and old != labels:
        return {}, f"its head of {old} classes is left out; --label-mapping would re-use it"
    whole = dict(arrays) if probe else fold_head_norm(arrays, told)
    head = {name: array for name, array in whole.items() if name.startswith(("head.", "head_norm."))}
    if mapping is None:
        return head, f"its head of {old} classes is kept"
    if mapping.max() >= old:
        raise WeightsError(f"--label-mapping names the old class {mapping.max()}, but {path} has {old} classes")
    found = mapping >= 0
    for name in ("head.kernel", "head.bias"):
        head[name] = np.where(found, head[name][..., mapping], 0).astype(np.float32)
    return head, f"{found.sum()} of {labels} classes take their rows from its head"


def read_mapping(path: str, labels: int) -> np.ndarray:
    """Read a list of old classes, one for each new one, from a JSON file.

    Raises:
        WeightsError: it is no such list, or not of `labels` numbers.

    """
    try:
        found = json.loads(Path(path).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"--label-mapping {path}: cannot be read as JSON: {error}") from None
    if not isinstance(found, list) or not all(type(value) is int and value >= -1 for value in found):
        raise WeightsError(
            f"--label-mapping {path}: give a list of whole numbers, the old class of every new one or -1"
        )
    if len(found) != labels:
        raise WeightsError(f"--label-mapping {path}: has {len(found)} entries for {labels} classes")
    return np.array(found, np.int64)
