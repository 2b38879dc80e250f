"""Our own layout: a run directory, or one of its checkpoints, and models from what they hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maejax.errors import InputError, WeightsError
from maejax.models.classifier import Classifier
from maejax.models.mae import MaskedAutoencoder
from maejax.models.trees import named_arrays, with_arrays
from maejax.models.vit import VisionTransformer
from maejax.storage import mirror
from maejax.training.checkpoint import read_model_arrays, saved_steps
from maejax.training.rundir import BEST, CHECKPOINTS, read_config
from maejax.weights.weights import Weights, check_shapes, kind_of


def initial_model(arguments: dict[str, Any], seed: int = 0) -> Any:
    """Build a freshly initialised model from the keyword arguments that config.json holds.

    A `MaskedAutoencoder` where they speak of a decoder, a `Classifier` where of labels, else a `VisionTransformer`.
    """
    sized = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    sized |= {"dtype": jnp.dtype(arguments["dtype"])}
    model = {"mae": MaskedAutoencoder, "classifier": Classifier, "encoder": VisionTransformer}[kind_of(arguments)]
    return model(**sized, rngs=nnx.Rngs(seed))


def abstract_model(arguments: dict[str, Any]) -> Any:
    """Build a model's shape alone: no memory, no time.

    Raises:
        ValueError: the arguments do not fit together.

    """
    return jax.eval_shape(lambda: initial_model(arguments))


def model_shapes(arguments: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """List the arrays of a model by our names, those of an encoder alone under `encoder.` too."""
    try:
        named = named_arrays(abstract_model(arguments))
    except ValueError as error:
        raise WeightsError(f"the sizes do not fit together: {error}") from None
    prefix = "encoder." if kind_of(arguments) == "encoder" else ""
    return {prefix + name: tuple(array.shape) for name, array in named.items()}


def model_of(weights: Weights) -> Any:
    """Build the model of weights: an nnx.Module, float32 parameters.

    A probe's BatchNorm is folded into its linear layer: it is affine where its statistics are fixed.

    Raises:
        WeightsError: the arrays are not those of such a model, or a probe has no statistics.

    """
    arrays = weights.arrays
    if "head_norm" in weights.arguments:
        arrays = fold_head_norm(arrays, weights.arguments["head_norm"])
    if weights.kind == "encoder":
        arrays = {name.removeprefix("encoder."): array for name, array in arrays.items()}
    try:
        return with_arrays(abstract_model({n: v for n, v in weights.arguments.items() if n != "head_norm"}), arrays)
    except ValueError as error:
        raise WeightsError(str(error)) from None


def fold_head_norm(given: Mapping[str, np.ndarray], eps: float) -> dict[str, np.ndarray]:
    """Fold a probe's BatchNorm, whose statistics are fixed, into its linear layer.

    Raises:
        WeightsError: there are no statistics.

    """
    if "head_norm.mean" not in given:
        raise WeightsError("the file lacks its BatchNorm's statistics, so its head cannot be used; its encoder can")
    arrays = {name: array for name, array in given.items() if not name.startswith("head_norm.")}
    norm = {name: array.astype(np.float64) for name, array in given.items() if name.startswith("head_norm.")}
    scale = norm.get("head_norm.scale", 1.0) / np.sqrt(norm["head_norm.var"] + eps)
    shift = norm.get("head_norm.bias", 0.0) - norm["head_norm.mean"] * scale
    kernel = arrays["head.kernel"].astype(np.float64)
    arrays["head.bias"] = (arrays["head.bias"] + shift @ kernel).astype(np.float32)
    arrays["head.kernel"] = (scale[:, None] * kernel).astype(np.float32)
    return arrays


def locate(path: str | Path) -> tuple[Path, Path]:
    """Find (run directory, checkpoint) from a run directory, its `checkpoints` or `best` folder, or a checkpoint there.

    A run directory, or its `checkpoints`, stands for the newest checkpoint.

    Raises:
        InputError: there is no run, or it has no checkpoint yet.

    """
    path = Path(path).expanduser()
    run = next((p for p in (path, *path.absolute().parents[:2]) if (p / "config.json").exists()), None)
    if run is None:
        hint = "does not exist" if not path.exists() else "has no config.json"
        raise InputError(f"{path} {hint}: name a run directory of maejax (such as runs/demo) or one of its checkpoints")
    folders = {folder.absolute(): folder for folder in (run / CHECKPOINTS, run / BEST)}
    if path.name.isdigit() and path.absolute().parent in folders:
        saved = saved_steps(path.parent)
        if int(path.name) not in saved:
            raise InputError(
                f"there is no checkpoint {mirror.shown(path)}; {mirror.shown(path.parent)} has {saved or 'none'}"
            )
        return run, path
    folder = folders.get(path.absolute(), run / CHECKPOINTS)
    steps = saved_steps(folder)
    if not steps:
        raise InputError(f"{mirror.shown(run)} has no checkpoint yet")
    return run, folder / str(steps[-1])


def read(path: str | Path) -> Weights:
    """Read the weights of a run directory, or of one of its checkpoints.

    Raises:
        InputError: there is no such run or checkpoint, or its arrays are not those of the model in config.json.

    """
    run, checkpoint = locate(path)
    config = read_config(run)
    assert config is not None  # locate found it
    arrays = {name: np.asarray(array) for name, array in read_model_arrays(checkpoint).items()}
    arguments = config["model"]
    shapes = model_shapes(arguments)
    check_shapes(arrays, shapes, mirror.shown(checkpoint))
    return Weights(arrays, arguments, "maejax", f"maejax {config['maejax']}, step {checkpoint.name}")
