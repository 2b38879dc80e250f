"""State dicts in files of safetensors and PyTorch: whole or in parts, nested, wrapped names, half precision.

The only file that needs torch, and only where a file of PyTorch is read or written.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from maejax.errors import Failed, WeightsError, install
from maejax.storage.atomic import write_atomically
from maejax.weights import native
from maejax.weights.statement import KEY

# Files of a folder with a config.json, the preferred ones first.
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TIMM_FILE = "timm.safetensors"  # of an export that transformers has no place for
NESTS = ("model", "state_dict", "model_state_dict", "model_state", "net")  # where training codes keep the weights
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
PATCHES = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")

INSTALL = f"needs PyTorch: {install('interop')}"


class State(NamedTuple):
    """Arrays by the names in a file; its metadata, `nest` that held them, and sentences that a reader must know."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]
    nest: str = ""
    notices: tuple[str, ...] = ()


def file_in(folder: Path) -> Path:
    """Return the file of weights in a folder with a config.json; raises WeightsError if there is none."""
    found = next((folder / name for name in FILES if (folder / name).exists()), None)
    if found is None:
        raise WeightsError(f"{folder} has a config.json and no weights: it needs {', '.join(FILES)}")
    return found


def holds_tensors(path: Path, start: bytes) -> bool:
    """Recognise the files that `read` reads, by name or first bytes: safetensors, PyTorch's, the index of parts."""
    zipped, pickle = start[:2] == b"PK", start[:1] == b"\x80" and path.suffix in (".pth", ".pt", ".bin", ".ckpt")
    return path.name.endswith(".index.json") or start[8:9] == b"{" or zipped or pickle


def read(path: Path, prefix: str = "") -> State:
    """Read the arrays whose names begin with `prefix`, without it, as float32; never runs code of the file.

    A prefix may begin with the name of a nest, as in `model_ema.`. Without one, the nest and the wrappers that training
    codes put around the weights are taken off. Raises WeightsError if there are no arrays, or no single nest.
    """
    tree, metadata = _read_parts(path) if path.name.endswith(".index.json") else _read_file(path)
    arrays = dict(_flatten(tree))
    if prefix:
        state, nest = {n.removeprefix(prefix).lstrip("."): a for n, a in arrays.items() if n.startswith(prefix)}, prefix
        if not state:
            raise WeightsError(f"--prefix {prefix}: no tensor of {path} begins so; it holds {_parts(arrays)}")
    else:
        state, nest = _without_nest(tree, arrays, path)
    while state and (wrapper := next((w for w in WRAPPERS if all(name.startswith(w) for name in state)), "")):
        state = {name.removeprefix(wrapper): array for name, array in state.items()}
    notices = []
    if half := sorted({str(a.dtype) for a in state.values() if a.dtype.name in ("float16", "bfloat16")}):
        notices.append(f"its numbers are {' and '.join(half)}, read as float32")
    state = {name: a.astype(np.float32) if a.dtype.name in ("float16", "bfloat16") else a for name, a in state.items()}
    return State(state, metadata, nest, tuple(notices))


def hint(names: Mapping[str, Any]) -> str:
    """Return what to give where an encoder lies deeper in a file; empty if none is seen."""
    found = {name.removesuffix(end) for name in names for end in PATCHES if name.endswith(end)} - {"", "vit."}
    return f": give --prefix {' or '.join(sorted(found))}" if found else ""


def _read_file(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    with path.open("rb") as file:
        safe = file.read(9)[8:] == b"{"
    return native.read_safetensors(path) if safe else read_pickled(path)


def weight_map(index: Path) -> dict[str, str]:
    """Read the names of tensors and, of each, the file beside an index; raises WeightsError if it is no index."""
    try:
        return {name: Path(file).name for name, file in json.loads(index.read_text())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f"{index} is no index of weights: it needs a weight_map of names to files") from None


def _read_parts(index: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Read the files that an index names; raises WeightsError if one is missing or lacks a tensor."""
    places, arrays = weight_map(index), {}
    for name in (files := sorted(set(places.values()))):
        if not (index.parent / name).exists():
            raise WeightsError(f"{index} names {name}, which is not beside it: fetch all {len(files)} parts")
        arrays |= _read_file(index.parent / name)[0]
    if lost := places.keys() - arrays.keys():
        raise WeightsError(f"{index} names {len(lost)} tensors that its parts lack: {', '.join(sorted(lost)[:8])}")
    return {name: arrays[name] for name in places}, {}


def _flatten(tree: Mapping[str, Any], prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{name}", value


def _without_nest(tree: Mapping[str, Any], arrays: dict[str, np.ndarray], path: Path) -> tuple[dict, str]:
    if any(isinstance(value, np.ndarray) for value in tree.values()):
        return {name: value for name, value in tree.items() if isinstance(value, np.ndarray)}, ""
    nest = next((name for name in NESTS if isinstance(tree.get(name), Mapping)), None)
    if nest is None:
        raise WeightsError(
            f"{path} holds no state dict at its root; its parts are {_parts(arrays)}: name one, --prefix"
        )
    return dict(_flatten(tree[nest])), nest


def _parts(arrays: Mapping[str, Any]) -> str:
    """List the first parts of names, each with its number of tensors."""
    counts = Counter(name.partition(".")[0] for name in arrays)
    return ", ".join(f"{name} ({count} tensors)" for name, count in counts.most_common(8)) or "no tensors"


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
        """Convert the tensors of nested dictionaries; all else becomes None."""
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
