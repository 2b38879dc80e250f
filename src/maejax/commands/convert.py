"""Files of weights: what one is, the same in another layout, and a run's in the original's."""

from typing import Any

from rich.console import Console
from rich.table import Table

from maejax.errors import InputError
from maejax.models.description import MAE, Classifier
from maejax.weights import files
from maejax.weights.addresses import local
from maejax.weights.weights import Weights, positions_kind

TABLES = {
    "authors": "sine-cosine, the authors' table",
    "original": "sine-cosine, the original's table",
    "learned": "learned",
}
TUNE = "maejax train --mode finetune --pretrained-ckpt {}"
FEATURES = ("features of images", "maejax features {} IMAGES --out features.npz")
USES = {
    "mae": [
        ("see reconstructions", "maejax reconstruct {} IMAGE..."),
        ("go on pre-training", "maejax train --pretrained-ckpt {}"),
        ("probe or fine-tune the encoder", TUNE),
        FEATURES,
    ],
    "encoder": [("probe or fine-tune (no decoder: no pre-training)", TUNE), FEATURES],
    "classifier": [
        ("score it on labelled images", f"{TUNE} --eval-only --valid-dataset-shards IMAGES"),
        ("fine-tune further (no decoder: no pre-training)", TUNE),
        FEATURES,
    ],
}


def read_known(path: str, image_size: str = "", **known: Any) -> tuple[Weights, str]:
    """Read weights from a path or address; the second value tells what was fetched.

    Raises:
        InputError: the image size has another form.
        InputError: see `files.read`.

    """
    height, _, width = image_size.lower().partition("x")
    if image_size and not (height.isdecimal() and (width or height).isdecimal()):
        raise InputError(f"--image-size {image_size}: give a number of pixels, or HEIGHTxWIDTH such as 224x112")
    size = (int(height), int(width or height)) if image_size else None
    here, said = local(path)
    return files.read(here, image_size=size, **known), said


def describe(path: str, weights: Weights) -> dict[str, Any]:
    """Say what a file of weights is, as JSON can hold it."""
    config, encoder, arrays = weights.config, weights.config.encoder, weights.arrays
    target = head = decoder = None
    if isinstance(config, MAE):
        decoder = {name: getattr(config.decoder, name) for name in ("layers", "dim", "heads")}
        target = "pixels normalised per patch" if config.norm_pix_loss else "pixels"
        if any("targets" in notice for notice in weights.notices):
            target = "not in the file"
    if isinstance(config, Classifier):
        norm = " after a BatchNorm" if config.head_norm else ""
        head = f"{config.labels} classes on {'the mean of the patches' if config.pooling == 'gap' else 'cls'}{norm}"
    return {
        "layout": weights.layout,
        "writer": weights.writer,
        "kind": config.kind,
        "image_size": list(encoder.image_size),
        "patch_size": encoder.patch_size,
        "channels": encoder.channels,
        "encoder": {name: getattr(encoder, name) for name in ("layers", "dim", "heads")},
        "decoder": decoder,
        "head": head,
        "positions": TABLES[positions_kind(arrays["encoder.positions"], encoder.grid)],
        "target": target,
        "layerscale": encoder.layerscale,
        "gelu": encoder.gelu,
        "parameters": sum(array.size for array in arrays.values()),
        "notices": list(weights.notices),
        "uses": [{"for": what, "command": command.format(path)} for what, command in USES[config.kind]],
    }


def show(console: Console, facts: dict[str, Any]) -> None:
    """Print what `describe` said."""
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if name in ("notices", "uses"):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{what} {number}" for what, number in value.items())
        table.add_row(
            name.replace("_", " "), "none" if value is None else f"{value:,}" if name == "parameters" else str(value)
        )
    for use in facts["uses"]:
        table.add_row(use["for"], use["command"])
    console.print(table)
    for notice in facts["notices"]:
        console.print(f"note: {notice}", highlight=False, soft_wrap=True)


def convert(path: str, out: str, to: str, *, identity: bool = False, **known: Any) -> dict[str, Any]:
    """Write weights in another layout and say what was done.

    Raises:
        InputError: the file cannot be read whole, or the layout cannot express the model.

    """
    weights, said = read_known(path, **known)
    notices = files.write(weights, out, to, identity=identity)
    return {
        "in": path,
        "from": weights.layout,
        "kind": weights.config.kind,
        "out": out,
        "to": to,
        "fetched": said or None,
        "notices": [*weights.notices, *notices],
    }
