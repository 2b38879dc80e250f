"""Our neutral file: one .safetensors with arrays by our names, the model's description in the metadata."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from maejax.errors import Failed, WeightsError
from maejax.models.stored import from_json
from maejax.storage.atomic import write_atomically
from maejax.version import __version__
from maejax.weights.custom_code import NO_CODE, CustomCode
from maejax.weights.weights import Weights, blank_arrays, check


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read arrays by name and the metadata of a .safetensors file; raises WeightsError if it is not one."""
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from None


def from_neutral(
    arrays: dict[str, np.ndarray], metadata: dict[str, str], path: Path, code: CustomCode = NO_CODE
) -> Weights:
    """Read a neutral file; raises WeightsError, with every difference, if it is incomplete."""
    meta = json.loads(metadata["maejax"])
    config = from_json(meta["model"])
    classes = tuple(meta.get("classes", ()))  # files of earlier versions have none
    weights = code.fill(Weights(arrays, config, "maejax", meta["writer"], tuple(meta["notices"]), classes))
    # The statistics of a probe may be missing, or have affine parameters.
    both = (blank_arrays(weights.config), weights.arrays)
    wanted, given = ({n: a for n, a in some.items() if not n.startswith("head_norm.")} for some in both)
    check(wanted, given, str(path))
    return weights


def write(weights: Weights, path: Path) -> list[str]:
    """Write a neutral file; nothing is lost, so there is nothing that a reader must know."""
    meta = {
        "maejax": __version__,
        "model": weights.config.to_json(),
        "writer": weights.writer,
        "notices": list(weights.notices),
        "classes": weights.classes,
    }
    write_safetensors(weights.arrays, path, {"maejax": json.dumps(meta)})
    return []


def write_safetensors(arrays: Mapping[str, np.ndarray], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write arrays by name, laid out row by row as the format wants them."""
    with write_atomically(path) as new:
        new.touch()
        mode = new.stat().st_mode
        try:
            save_file({name: np.array(array, order="C") for name, array in arrays.items()}, new, metadata)
        except SafetensorError as error:  # for a full disk too
            raise Failed(f"{path} cannot be written ({error}); free space there") from None
        new.chmod(mode)  # the library makes a file that nobody else may read
