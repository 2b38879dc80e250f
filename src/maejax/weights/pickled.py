"""PyTorch's .pth files as arrays by name; the only file that needs torch, and only when it is called."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maejax.errors import Failed, WeightsError, install
from maejax.storage.atomic import write_atomically
from maejax.weights.statement import KEY

INSTALL = f"needs PyTorch: {install('interop')}"


def read_pickled(path: Path) -> tuple[dict[str, np.ndarray], bool, str | None]:
    """Read a state dict, whether it was inside `{"model": ...}`, and our statement there; never runs code of the file.

    Raises WeightsError if PyTorch is missing, or if the file holds values that are no tensors.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise WeightsError(f"{path} {INSTALL}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as tensors alone ({str(error).splitlines()[0][:200]}); if it holds more than "
            'weights, save {"model": checkpoint["model"]} with PyTorch and read that'
        ) from None
    wrapped = isinstance(content, Mapping) and isinstance(content.get("model"), Mapping)
    state = content["model"] if wrapped else content
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict: a mapping of names to tensors, alone or as 'model'")

    def to_array(tensor) -> np.ndarray:  # NumPy lacks bfloat16
        return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()

    return {name: to_array(tensor) for name, tensor in state.items()}, wrapped, content.get(KEY) if wrapped else None


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
