"""`maejax convert`: weights written in the layout of another code."""

from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console

from maejax.commands.command import check_writable, command_line
from maejax.commands.inspect import Unstated
from maejax.console import plain


@dataclass(frozen=True)
class ConvertCommand(Unstated):
    """Write weights in the layout of another code; a missing, extra or misshapen tensor is an error."""

    src: str = field(metadata={"positional": "IN"})
    """Anything that `maejax inspect` takes."""
    dst: str = field(metadata={"positional": "OUT"})
    """File to write; for hf a directory."""
    to: Literal["maejax", "original", "fair", "timm", "hf"] = "maejax"
    """maejax: .safetensors. original: .msgpack. fair: the authors' .pth. timm: .pth, .safetensors. hf: a directory."""
    identity: bool = False
    """For timm's `init_values=` and 1,000 classes: write LayerScale as 1 and the head as zeros."""

    def outputs(self) -> dict[str, bool]:
        """Name what is written."""
        return {"dst": self.to == "hf"}

    def run(self, console: Console) -> dict[str, Any]:
        """Convert the weights and return what was done."""
        check_writable("OUT", self.dst, folder=self.to == "hf")
        weights, fetched = self.read(self.src)
        from maejax.weights import files

        notices = files.write(weights, self.dst, self.to, identity=self.identity)
        return {
            "in": self.src,
            "from": weights.layout,
            "kind": weights.config.kind,
            "out": self.dst,
            "to": self.to,
            "fetched": fetched or None,
            "notices": [*weights.notices, *notices],
        }

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print what was written, and on the error stream what a reader must know."""
        for line in [result["fetched"], *(f"note: {notice}" for notice in result["notices"])]:
            if line:
                plain(Console(stderr=True), line)
        plain(console, f"{result['kind']} from {result['from']} written to {self.dst} for {self.to}")

    def following(self, result: dict[str, Any]) -> str:
        """Return the look at what was written."""
        return command_line("inspect", self.dst)
