"""Files of weights: what one is, the same in another layout, and a run's in the original's."""

from typing import Any

from rich.console import Console
from rich.table import Table

from maejax.errors import InputError
from maejax.weights import files
from maejax.weights.addresses import local
from maejax.weights.weights import Weights, grid_of, table_kind

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
    told, arrays = weights.arguments, weights.arrays
    table = arrays["encoder.positions"]
    decoder = weights.kind == "mae"
    target = ("pixels normalised per patch" if told["norm_pix_loss"] else "pixels") if decoder else None
    if decoder and any("targets" in notice for notice in weights.notices):
        target = "not in the file"
    head = None
    if weights.kind == "classifier":
        norm = " after a BatchNorm" if "head_norm" in told else ""
        head = f"{told['labels']} classes on {'the mean of the patches' if told['pooling'] == 'gap' else 'cls'}{norm}"
    return {
        "layout": weights.layout,
        "writer": weights.writer,
        "kind": weights.kind,
        "image_size": told["image_size"],
        "patch_size": told["patch_size"],
        "channels": told["channels"],
        "encoder": {name: told[name] for name in ("layers", "dim", "heads")},
        "decoder": {name: told[f"dec_{name}"] for name in ("layers", "dim", "heads")} if decoder else None,
        "head": head,
        "positions": TABLES[table_kind(table, grid_of(told))],
        "target": target,
        "layerscale": told["layerscale"],
        "gelu": told.get("gelu", "erf"),
        "parameters": sum(array.size for array in arrays.values()),
        "notices": list(weights.notices),
        "uses": [{"for": what, "command": command.format(path)} for what, command in USES[weights.kind]],
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
        "kind": weights.kind,
        "out": out,
        "to": to,
        "fetched": said or None,
        "notices": [*weights.notices, *notices],
    }
