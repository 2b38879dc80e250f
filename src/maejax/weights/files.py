"""Weights of any layout: recognised by the content and read; and written."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maejax.errors import InputError, WeightsError
from maejax.storage.pointer import pointer
from maejax.weights import (
    containers,
    huggingface,
    native,
    original,
    run_directory,
    timm_card,
    torch_export,
    torch_names,
)
from maejax.weights.addresses import local
from maejax.weights.custom_code import NO_CODE, CustomCode
from maejax.weights.statement import KEY, read_beside, read_statement, statement_of, write_beside
from maejax.weights.weights import Facts, Weights, model_of

if TYPE_CHECKING:
    from maejax.models.classifier import ImageClassifier
    from maejax.models.mae import MaskedAutoencoder
    from maejax.models.vit import VisionTransformer

LAYOUTS = {"maejax": ".safetensors", "original": ".msgpack", "fair": ".pth", "timm": ".pth", "hf": ""}


def load(
    path: str | Path,
    *,
    decoder: Callable[..., Any] | None = None,
    target: Callable[..., Any] | None = None,
    **known: Any,
) -> "MaskedAutoencoder | ImageClassifier | VisionTransformer":
    """Load a model from any weights that `read` knows, or their address: an nnx.Module, computed in float32.

    A `MaskedAutoencoder` if there is a decoder, an `ImageClassifier` if there is a head, else a `VisionTransformer`.
    `decoder` and `target` are the user's code that the model was trained with; without its code a custom decoder is
    left out. Raises InputError as `read` does.
    """
    return model_of(read(local(str(path))[0], code=CustomCode(decoder, target), **known))


def read(path: str | Path, *, raw: bool = False, prefix: str = "", code: CustomCode = NO_CODE, **facts: Any) -> Weights:
    """Read weights in any known layout, recognised by the content.

    Raises InputError, with every wrong tensor, if it is none of these or incomplete.

    Args:
        path: run directory or checkpoint, directory of Hugging Face or timm, .safetensors, .msgpack or .pth file, or
            the .index.json of a file in parts.
        raw: of a run with --ema, the weights themselves instead of their average.
        prefix: of a file of PyTorch or safetensors, take the tensors alone whose names begin so.
        code: the user's code in the model, for maejax's own layouts.
        facts: those of `Facts` that the file may lack. Without them heads are inferred from a head size of 64 (the
            decoder's are 16), images are square, targets are pixels, a head is on the cls token. A size that does not
            fit the file's positions changes nothing.

    """
    path, known = Path(path).expanduser(), Facts(**facts)
    if not path.exists():
        raise WeightsError(f"{path} does not exist: name a run directory, such as runs/demo, or a file of weights")
    try:
        if path.is_dir():
            if huggingface.is_directory(path):
                return huggingface.read(path, prefix, known)
            if (path / containers.TIMM_FILE).is_file():
                path = path / containers.TIMM_FILE
            elif timm_card.read_card(path) is None:
                refuse_prefix(prefix, path)
                return run_directory.read(path, raw=raw, code=code)
            else:
                path = containers.file_in(path)
        with path.open("rb") as file:
            start = file.read(64)
        if containers.holds_tensors(path, start):
            state = containers.read(path, prefix)
            if "maejax" in state.metadata:
                return native.from_neutral(state.arrays, state.metadata, path, code)
            if huggingface.is_directory(path.parent) and huggingface.knows(state.arrays):
                return huggingface.read(path.parent, prefix, known)
            stated = read_statement(state.metadata.get(KEY), str(path)) or read_beside(path)
            fair = state.nest == "model" or any(name.startswith("decoder_") for name in state.arrays)
            return torch_names.read(state, path, "fair" if fair else "timm", stated, known)
        if said := pointer(start):
            raise WeightsError(f"{path} {said}")
        refuse_prefix(prefix, path)
        return original.read(path, read_beside(path), known)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise WeightsError(f"{path} describes no model that is known here: {error}") from None


def refuse_prefix(prefix: str, path: Path) -> None:
    """Check that no prefix is given for weights that are always whole; raises WeightsError if one is."""
    if prefix:
        raise WeightsError(f"--prefix {prefix}: {path} is no file of PyTorch or safetensors; leave it out")


def write(weights: Weights, path: str | Path, layout: str, *, identity: bool = False) -> list[str]:
    """Write weights in a layout, and return sentences that a reader must know.

    `layout` is one of `LAYOUTS`; `path` is a directory for hf, and a timm file is .pth or, by its name, .safetensors.
    `identity` is for timm, see `torch_export.to_timm`. Raises WeightsError if the layout cannot express the model.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout in ("maejax", "original", "hf"):
        notices = {"maejax": native, "original": original, "hf": huggingface}[layout].write(weights, path)
        return [*notices, write_beside(path, statement_of(weights))] if layout == "original" else notices
    if layout == "fair":
        state, notices = torch_export.to_fair(weights)
    elif layout == "timm":
        state, notices = torch_export.to_timm(weights, identity=identity)
    else:
        raise WeightsError(f"--to {layout}: choose one of {', '.join(LAYOUTS)}")
    statement = statement_of(weights)
    if path.suffix == ".safetensors":
        native.write_safetensors(state, path, {KEY: statement})
    elif layout == "fair":
        containers.write_pickled(state, path, statement)
    else:
        containers.write_pickled(state, path)
        notices = [*notices, write_beside(path, statement)]
    return notices
