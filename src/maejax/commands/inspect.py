"""`maejax inspect`: what a file of weights is, and what it can be used for."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from maejax.commands.command import Command, prepare_devices
from maejax.config import image_shape
from maejax.console import plain

if TYPE_CHECKING:
    from maejax.weights.weights import Weights

TABLES = {
    "authors": "sine-cosine, the authors' table",
    "original": "sine-cosine, the original's table",
    "learned": "learned",
}
TUNE = "maejax train --mode finetune --pretrained-ckpt {}"
FEATURES = ("features of images", "maejax features {} IMAGES --out features.npz")
USES = {
    "mae": [
        ("see reconstructions", "maejax reconstruct {} IMAGE ..."),
        ("continue pre-training", "maejax train --pretrained-ckpt {}"),
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


@dataclass(frozen=True)
class Unstated(Command):
    """Flags of the commands that read a file of weights, for facts that it does not always hold."""

    heads: int | None = field(default=None, kw_only=True)
    """Attention heads, if neither the file nor a head size of 64 determines them."""
    dec_heads: int | None = field(default=None, kw_only=True)
    """Attention heads of the decoder, if the file does not hold them. None: 16."""
    image_size: str = field(default="", kw_only=True)
    """Image size, if the file does not hold it: a number, or HxW."""
    norm_pix_loss: bool | None = field(default=None, kw_only=True)
    """Whether the targets were normalised per patch, if the file does not hold it."""

    def read(self, path: str) -> tuple["Weights", str]:
        """Read weights from a path or address; returns them and a sentence on what was fetched."""
        size = image_shape(self.image_size) if self.image_size else None
        prepare_devices()
        from maejax.weights import files
        from maejax.weights.addresses import local

        here, fetched = local(path)
        known = {"heads": self.heads, "dec_heads": self.dec_heads, "norm_pix_loss": self.norm_pix_loss}
        return files.read(here, image_size=size, **known), fetched


@dataclass(frozen=True)
class InspectCommand(Unstated):
    """Describe a file of weights: who wrote it, the model, what it holds, what to do with it."""

    path: str = field(metadata={"positional": "PATH"})
    """Run directory, checkpoint, .safetensors, .msgpack, .pth, Hugging Face directory, or an address."""

    def run(self, console: Console) -> dict[str, Any]:
        """Read the weights and return the facts."""
        weights, fetched = self.read(self.path)
        if fetched:
            plain(console, fetched)
        return describe(self.path, weights)

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print the facts as a table, and what a reader must know below it."""
        table = Table(show_header=False, box=None)
        for name, value in result.items():
            if isinstance(value, dict):
                value = ", ".join(f"{what} {number}" for what, number in value.items())
            elif name == "parameters":
                value = f"{value:,}"
            if name not in ("notices", "uses"):
                table.add_row(name.replace("_", " "), "none" if value is None else str(value))
        for use in result["uses"]:
            table.add_row(use["for"], use["command"])
        console.print(table)
        for notice in result["notices"]:
            plain(console, f"note: {notice}")


def describe(path: str, weights: "Weights") -> dict[str, Any]:
    """Collect the facts about a file of weights, as JSON can hold them."""
    from maejax.weights.weights import grid_of, table_kind

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
