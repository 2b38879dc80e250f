"""Our neutral file: one .safetensors with arrays by our names, its configuration in the metadata."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from maejax import __version__
from maejax.errors import WeightsError
from maejax.weights.run_directory import model_shapes
from maejax.weights.weights import Weights, check_shapes

OPTIONAL = ("head_norm.",)


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read arrays by name and the metadata of a .safetensors file.

    Raises:
        WeightsError: it is not one.

    """
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from None


def from_neutral(arrays: dict[str, np.ndarray], metadata: dict[str, str], path: Path) -> Weights:
    """Understand a neutral file.

    Raises:
        WeightsError: its tensors are not those of the model in its metadata; all wrong ones are listed.

    """
    told = json.loads(metadata["maejax"])
    wanted = model_shapes(told["model"])
    given = {name: a for name, a in arrays.items() if not name.startswith(OPTIONAL)}
    check_shapes(given, {n: s for n, s in wanted.items() if not n.startswith(OPTIONAL)}, str(path))
    return Weights(arrays, told["model"], "maejax", told["writer"], tuple(told["notices"]))


def write(weights: Weights, path: Path) -> list[str]:
    """Write a neutral file; nothing is lost."""
    told = {
        "maejax": __version__,
        "model": weights.arguments,
        "writer": weights.writer,
        "notices": list(weights.notices),
    }
    write_safetensors(weights.arrays, path, {"maejax": json.dumps(told)})
    return []


def write_safetensors(arrays: Mapping[str, np.ndarray], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write arrays by name, laid out row by row as the format wants them."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path, metadata)
    path.chmod(mode)  # the library makes a file that nobody else may read
