"""PyTorch's files as arrays by name; the only file that needs torch, and only when it is called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from maejax.errors import Failed, WeightsError, install
from maejax.storage.atomic import write_atomically
from maejax.weights.statement import KEY

INSTALL = f"needs PyTorch: {install('interop')}"


class Unread:
    """Stands for an object of a file whose class is not loaded, such as the flags of the program that wrote it."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_pickled(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the arrays of a file, as nested dictionaries, and our statement as metadata; never runs code of the file.

    Objects of other classes are left out. Raises WeightsError if PyTorch is missing or cannot read the file.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise WeightsError(f"{path} {INSTALL}") from None
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals  # pyright: ignore[reportMissingImports]

    try:
        others = get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # a file of PyTorch before 1.6, which cannot be asked
        others = ["argparse.Namespace"]
    try:
        with safe_globals([(Unread, name) for name in others]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as tensors alone ({str(error).splitlines()[0][:200]}); if it holds more than "
            'weights, save {"model": checkpoint["model"]} with PyTorch and read that'
        ) from None
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds no state dict: a mapping of names to tensors, alone or inside of others")

    def to_arrays(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(name): to_arrays(inner) for name, inner in value.items()}
        if isinstance(value, torch.Tensor):  # NumPy lacks bfloat16
            whole = value.detach()
            return whole.float().numpy().astype(jnp.bfloat16) if whole.dtype is torch.bfloat16 else whole.numpy()
        return None

    statement = content.get(KEY)
    return to_arrays(content), {KEY: statement} if isinstance(statement, str) else {}


def write_pickled(state: Mapping[str, np.ndarray], path: Path, statement: str | None = None) -> None:
    """Write a state dict, with a statement inside `{"model": ...}`; raises WeightsError if PyTorch is missing."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise WeightsError(f"writing {path} {INSTALL}") from None
    tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}
    with write_atomically(path) as new:
        try:
            torch.save({"model": tensors, KEY: statement} if statement else tensors, new)
        except RuntimeError as error:  # PyTorch's writer, for a full disk too
            raise Failed(f"{path} cannot be written ({str(error).splitlines()[0]}); free space there") from None
