"""Weights from any path: what kind of file it is, read; and written in another layout."""

from pathlib import Path
from typing import Any

from maejax.errors import WeightsError
from maejax.weights import huggingface, native, original, pickled, run_directory, torch_names
from maejax.weights.addresses import local
from maejax.weights.weights import Weights

LAYOUTS = {"maejax": ".safetensors", "original": ".msgpack", "fair": ".pth", "timm": ".pth", "hf": ""}


def read(
    path: str | Path,
    *,
    heads: int | None = None,
    dec_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    norm_pix_loss: bool | None = None,
) -> Weights:
    """Read weights in any known layout, told by the content.

    Args:
        path: run directory or checkpoint, Hugging Face directory, .safetensors, .msgpack or .pth file.
        heads, dec_heads, image_size, norm_pix_loss: what the file does not tell: heads are inferred from a head size
            of 64 (the decoder's are 16), images are square, targets are pixels.

    Raises:
        InputError: it is none of these, or not whole; the message lists every wrong tensor.

    """
    path = Path(path).expanduser()
    known: dict[str, Any] = {
        "heads": heads,
        "dec_heads": dec_heads,
        "image_size": image_size,
        "norm_pix_loss": norm_pix_loss,
    }
    if path.is_dir():
        return huggingface.read(path) if huggingface.is_directory(path) else run_directory.read(path)
    if not path.exists():
        raise WeightsError(f"{path} does not exist: name a run directory, such as runs/demo, or a file of weights")
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] == b"{":
        state, metadata = native.read_safetensors(path)
        if "maejax" in metadata:
            return native.from_neutral(state, metadata, path)
        if (path.parent / "config.json").exists() and huggingface.knows(state):
            return huggingface.read(path.parent)
        return torch_names.from_state(state, str(path), "timm", **known)
    if start[:2] == b"PK" or (start[:1] == b"\x80" and path.suffix in (".pth", ".pt", ".bin")):
        state, wrapped = pickled.read_pickled(path)
        decoder = any(name.startswith("decoder_") for name in state)
        return torch_names.from_state(state, str(path), "fair" if wrapped or decoder else "timm", **known)
    return original.read(path, image_size=image_size, norm_pix_loss=norm_pix_loss)


def load(path: str | Path, **known: Any) -> Any:
    """Load a model from any weights that `read` knows, or their address: an nnx.Module, float32 parameters.

    A `MaskedAutoencoder` where there is a decoder, a `Classifier` where there is a head, else a `VisionTransformer`.

    Raises:
        InputError: as `read`.

    """
    return run_directory.model_of(read(local(str(path))[0], **known))


def write(weights: Weights, path: str | Path, layout: str, *, identity: bool = False) -> list[str]:
    """Write weights in a layout, and return what a reader must know.

    Args:
        weights: what to write.
        path: of the file; for hf of the directory. A timm file is .pth or, by its name, .safetensors.
        layout: maejax, original, fair, timm or hf.
        identity: for timm, see `torch_names.to_timm`.

    Raises:
        WeightsError: the layout cannot express the model.

    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout == "maejax":
        return native.write(weights, path)
    if layout == "original":
        return original.write(weights, path)
    if layout == "hf":
        return huggingface.write(weights, path)
    if layout == "fair":
        state, notices = torch_names.to_fair(weights)
    elif layout == "timm":
        state, notices = torch_names.to_timm(weights, identity=identity)
    else:
        raise WeightsError(f"--to {layout}: choose one of {', '.join(LAYOUTS)}")
    if path.suffix == ".safetensors":
        native.write_safetensors(state, path)
    else:
        pickled.write_pickled(state, path, wrapped=layout == "fair")
    return notices
