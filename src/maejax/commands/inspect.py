"""`maejax inspect`: what a file of weights is, and what it can be used for."""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rich.console import Console
from rich.table import Table

from maejax.commands.command import Command, flags_given, prepare_devices
from maejax.config import image_shape
from maejax.console import literal, plain
from maejax.errors import InputError
from maejax.storage.redact import redact

if TYPE_CHECKING:
    from maejax.weights.weights import Weights

SINES = {"authors": "sine-cosine, the authors' table", "original": "sine-cosine, the original's table"}
GO_ON = ("pre-train with a new decoder", "maejax train --pretrained-ckpt {} --new-decoder --freeze-encoder-steps STEPS")
TUNE = "maejax train --mode finetune --pretrained-ckpt {}"
FEATURES = ("features of images", "maejax features {} IMAGES --out features.npz")
USES = {
    "mae": [
        ("see reconstructions", "maejax reconstruct {} IMAGE ..."),
        ("play with it in the browser", "maejax serve {}"),
        ("continue pre-training", "maejax train --pretrained-ckpt {}"),
        ("probe or fine-tune the encoder", TUNE),
    ],
    "encoder": [("probe or fine-tune", TUNE), GO_ON],
    "classifier": [
        ("score it on labelled images", f"{TUNE} --eval-only --valid-dataset-shards IMAGES"),
        ("fine-tune further", TUNE),
        GO_ON,
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
    mask_ratio: float | None = field(default=None, kw_only=True)
    """Share of the patches that is hidden, if the file does not hold it. None: 0.75."""
    predict_share: float | None = field(default=None, kw_only=True)
    """Share of the hidden patches that a decoder of cross-attention predicts, if the file does not hold it. None: 1."""
    pooling: Literal["cls", "avg"] | None = field(default=None, kw_only=True)
    """Input of a classifier's head, if the file does not hold it: the cls token, or the mean of the patch tokens."""
    gelu: Literal["erf", "tanh", "quick"] | None = field(default=None, kw_only=True)
    """Activation, if the file does not hold it: the exact GELU, its tanh approximation, or the one of OpenAI's CLIP."""
    norm_eps: float | None = field(default=None, kw_only=True)
    """eps of the layer norms, if the file does not hold it."""
    mean: tuple[float, ...] = field(default=(), kw_only=True)
    """Mean of each channel of an image, if the file does not hold it; of 8-bit images on the 0..1 scale."""
    std: tuple[float, ...] = field(default=(), kw_only=True)
    """Standard deviation of each channel, as --mean."""

    prefix: str = field(default="", kw_only=True)
    """Take the tensors alone whose names begin so, of a file of PyTorch or .safetensors that holds more."""
    raw: bool = field(default=False, kw_only=True)
    """Of a run with --ema, take the weights themselves instead of their average."""

    overrides: ClassVar[tuple[str, ...]] = ()  # facts that a command takes from its flag, whatever the file says

    def read(self, path: str) -> tuple["Weights", str]:
        """Read weights from a path or address; returns them and a sentence on what was fetched.

        Raises InputError if they cannot be read, or if they say something else than a flag.
        """
        size = image_shape(self.image_size) if self.image_size else None
        prepare_devices()
        from maejax.weights import files
        from maejax.weights.addresses import local
        from maejax.weights.statement import facts_of
        from maejax.weights.weights import Facts

        here, fetched = local(path)
        known: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(Facts)}
        known["image_size"] = size
        weights = files.read(here, raw=self.raw, prefix=self.prefix, **known)
        found = vars(facts_of(weights.config))
        for name, value in known.items():
            if name not in self.overrides and value not in (None, ()) and found[name] not in (None, value):
                says = "x".join(map(str, found[name])) if name == "image_size" else found[name]
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: {path} says {says}; leave it out")
        return weights, fetched

    def chosen_pool(self, pool: str, encoder: Any, which: int) -> Any:
        """Return `pool` or, for none, number `which` of those that an encoder has; raises InputError if it lacks it."""
        from maejax.models.pooling import pools

        if pool and pool not in (known := pools(encoder)):
            raise InputError(f"--pool {pool}: this encoder has {', '.join(known)}")
        return pool or pools(encoder)[which]

    def stated(self) -> list[str]:
        """Return the given facts as flags, for another command that reads the same file."""
        return flags_given(self, (each.name for each in fields(Unstated) if each.name not in ("json", *self.overrides)))

    def load(self, path: str) -> Any:
        """Load a model from a path or address, and print on the error stream what a user of it must know."""
        weights, fetched = self.read(path)
        from maejax.weights.weights import model_of

        for line in [fetched, *(f"note: {notice}" for notice in weights.notices)]:
            if line:
                plain(Console(stderr=True), line)
        return model_of(weights)


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
                table.add_row(name.replace("_", " "), "none" if value is None else literal(str(value)))
        for use in result["uses"]:
            table.add_row(use["for"], use["command"])
        console.print(table)
        for notice in result["notices"]:
            plain(console, f"note: {notice}")

    def following(self, result: dict[str, Any]) -> str:
        """Return the first of the uses."""
        return result["uses"][0]["command"]


def describe(path: str, weights: "Weights") -> dict[str, Any]:
    """Collect the facts about a file of weights, as JSON can hold them."""
    from maejax.models.description import MAE, POOLED, Classifier
    from maejax.weights.weights import beyond_the_paper, positions_kind

    config, encoder, arrays = weights.config, weights.config.encoder, weights.arrays
    target = head = decoder = None
    positions = "rotary"
    if encoder.posemb != "rotary":
        positions = positions_kind(arrays["encoder.positions"], encoder.grid, cls=encoder.cls_position)
    if isinstance(config, MAE):
        decoder = {name: getattr(config.decoder, name) for name in ("layers", "dim", "heads")}
        target = "pixels normalised per patch" if config.norm_pix_loss else config.target
        if any("targets" in notice for notice in weights.notices):
            target = "not in the file"
    if isinstance(config, Classifier):
        norm = " after a BatchNorm" if config.head_norm else ""
        head = f"{config.labels} classes on {POOLED[config.pooling]}{norm}"
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
        "positions": SINES.get(positions, positions),
        "target": target,
        "layerscale": encoder.layerscale,
        "gelu": "none: SwiGLU" if encoder.gated else encoder.gelu,
        "beyond_the_paper": ", ".join(beyond_the_paper(config)) or None,
        "parameters": sum(array.size for array in arrays.values()),
        "notices": list(weights.notices),
        "uses": [
            {"for": what, "command": command.format(redact(path))} for what, command in (*USES[config.kind], FEATURES)
        ],
    }
