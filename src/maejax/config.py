"""A training run as its flags, and the flags by name.

Defaults are the published recipe of pre-training (the original's flags; paper, Table 8); `recipes.py` has the others.
"""

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any

from maejax.errors import InputError
from maejax.options.input import Augment, Data
from maejax.options.network import Encoder, Mae, Transfer
from maejax.options.results import Run
from maejax.options.training import Machine, Optimization, Seeds


@dataclass(frozen=True)
class Config:
    """All flags of a training run, in groups; each group has the title that help shows."""

    run: Run = field(default_factory=Run, metadata={"title": "MaskedAutoencoder"})
    data: Data = field(default_factory=Data, metadata={"title": "Data"})
    augment: Augment = field(default_factory=Augment, metadata={"title": "Image Augmentations"})
    encoder: Encoder = field(default_factory=Encoder, metadata={"title": "ViT Architecture"})
    mae: Mae = field(default_factory=Mae, metadata={"title": "MAE Decoder Architecture"})
    optimization: Optimization = field(default_factory=Optimization, metadata={"title": "Optimization"})
    seeds: Seeds = field(default_factory=Seeds, metadata={"title": "Random Seeds"})
    machine: Machine = field(default_factory=Machine, metadata={"title": "Processes and Devices"})
    transfer: Transfer = field(default_factory=Transfer, metadata={"title": "Transfer"})

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels of `--image-size`."""
        return image_shape(self.encoder.image_size)


def image_shape(text: str) -> tuple[int, int]:
    """Read height and width in pixels from a value of `--image-size`: a number, or HxW."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and (width or height).isdecimal()):
        raise InputError(f"--image-size {text}: give a number of pixels, or HEIGHTxWIDTH such as 224x112")
    return int(height), int(width or height)


def flags(config: Config) -> dict[str, Any]:
    """List all flags of a configuration as one flat dictionary."""
    return {name: value for group in dataclasses.asdict(config).values() for name, value in group.items()}


def flag_words(name: str, value: Any) -> list[str]:
    """Return the words of a command line that give a flag its value."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


def declarations() -> dict[str, Any]:
    """List what `flag` declares of each flag, by name; nothing for most."""
    groups: Any = (group.default_factory for group in dataclasses.fields(Config))
    return {flag.name: flag.metadata for group in groups for flag in dataclasses.fields(group)}


def with_flags(config: Config, **changes) -> Config:
    """Change flags by name, whatever group they stand in; raises InputError for a name that is no flag."""
    groups = {group.name: getattr(config, group.name) for group in dataclasses.fields(config)}
    for name, value in changes.items():
        group = next((g for g, values in groups.items() if hasattr(values, name)), None)
        if group is None:
            near = difflib.get_close_matches(name, flags(config), 1)
            raise InputError(f"there is no flag --{name}" + (f"; did you mean --{near[0]}?" if near else ""))
        groups[group] = dataclasses.replace(groups[group], **{name: value})
    return Config(**groups)
