"""`maejax reconstruct`: pictures of what a model makes of the user's own images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.console import Console

from maejax.commands.command import check_writable, command_line, flags_given, prepare_devices
from maejax.commands.inspect import Unstated
from maejax.console import plain
from maejax.errors import InputError
from maejax.pixels import PIXEL_FLAGS, Pixels


@dataclass(frozen=True)
class ReconstructCommand(Unstated, Pixels):
    """Hide patches of your own images and draw what the model makes of them, one picture for each image."""

    ckpt: str = field(metadata={"positional": "CKPT"})
    """Run directory or checkpoint of a masked autoencoder, or anything else that `maejax inspect` takes."""
    images: list[str] = field(metadata={"positional": "IMAGE ..."})
    """Image files."""
    out: str = "reconstructions"
    """Folder for the pictures."""
    mask: Literal["random", "block", "grid", "noise"] = "random"
    """Which patches are hidden: any, large blocks, three of every 2 x 2, or small spread groups (band-passed noise)."""
    mask_ratio: float | None = field(default=None, kw_only=True)
    """Share of the patches that is hidden. None: as in training."""
    seed: int = 0
    """Seed of the mask."""
    overrides: ClassVar = ("mask_ratio",)
    show_bands: str = ""
    """Three bands for red, green and blue, or one. Empty: the first three of 3 or 4, else the first."""

    def outputs(self) -> dict[str, bool]:
        """Name what is written."""
        return {"out": True}

    def run(self, console: Console) -> dict[str, Any]:
        """Draw the pictures and return their paths."""
        if not self.images:
            raise InputError("IMAGE is missing: name image files, as in `maejax reconstruct CKPT photo.jpg`")
        check_writable("--out", self.out, folder=True)
        prepare_devices()
        from maejax.data.form import form_for
        from maejax.evaluation.reconstruction import write_pictures
        from maejax.models.mae import MaskedAutoencoder

        model = self.load(self.ckpt)
        if not isinstance(model, MaskedAutoencoder):
            remedy = "name a run of --mode pretrain, or the weights of a masked autoencoder"
            raise InputError(f"{self.ckpt} has no decoder and cannot reconstruct: {remedy}")
        if not model.config.drawable:
            raise InputError(f"{self.ckpt} predicts features, and no pixels that could be drawn: name another")
        drawn: dict[str, Any] = {"mask": self.mask, "ratio": self.mask_ratio, "seed": self.seed}
        drawn["show"] = self.show_bands
        asked = form_for(model.config.encoder, self)
        paths = write_pictures(model, self.images, Path(self.out), asked=asked, **drawn)
        return {"pictures": [str(path) for path in paths]}

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print the paths of the pictures, one a line."""
        plain(console, "\n".join(result["pictures"]))

    def following(self, result: dict[str, Any]) -> str:
        """Return the same in the browser."""
        return command_line("serve", self.ckpt, *self.stated(), *flags_given(self, PIXEL_FLAGS))
