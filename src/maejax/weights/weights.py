"""Weights between two layouts: arrays by our names, the model's arguments, and what is known of their origin."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from maejax.errors import WeightsError
from maejax.models.patches import sincos_table
from maejax.models.vit import IMAGENET_MEAN, IMAGENET_STD

HEAD_SIZE = 64  # of every published ViT; the widths of one head cannot be read from a packed projection
STACKS = {"encoder.transformer.blocks.": "layers", "decoder.blocks.": "dec_layers"}


@dataclass(frozen=True)
class Weights:
    """A model's weights, whoever wrote them.

    Attributes:
        arrays: by our names, such as `encoder.transformer.blocks.fc1.kernel` [layers, in, out]. A probe's BatchNorm is
            `head_norm.mean` and `head_norm.var`, and `.scale` and `.bias` where it has them.
        arguments: of the model, as config.json of a run holds them.
        layout: maejax, original, fair, timm or hf.
        writer: which code wrote the file, in words.
        notices: what a user must know before use.

    """

    arrays: dict[str, np.ndarray]
    arguments: dict[str, Any]
    layout: str
    writer: str
    notices: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What is there: "mae" (encoder and decoder), "classifier", or "encoder" alone."""
        return kind_of(self.arguments)


def kind_of(arguments: Mapping[str, Any]) -> str:
    """Tell a model by its arguments: "mae", "classifier" or "encoder"."""
    return "mae" if "dec_dim" in arguments else "classifier" if "labels" in arguments else "encoder"


def original_table(grid: tuple[int, int], dim: int) -> np.ndarray:
    """Compute the original's sine-cosine positions [1 + N, D]: as the authors', but the last frequency is 1/10000."""
    frequencies = 10000.0 ** -np.linspace(0, 1, dim // 4)
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [np.outer(axis.reshape(-1), frequencies) for axis in (columns, rows)]
    table = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    return np.concatenate([np.zeros((1, dim)), table]).astype(np.float32)


def table_kind(table: np.ndarray, grid: tuple[int, int]) -> str:
    """Tell a position table [1, 1 + N, D]: "authors" or "original" sine-cosine, or "learned"."""
    dim = table.shape[-1]
    if dim % 4 == 0 and table.shape[1] == grid[0] * grid[1] + 1:
        for kind, make in (("authors", sincos_table), ("original", original_table)):
            if np.allclose(table[0], make(grid, dim), atol=1e-5):
                return kind
    return "learned"


def grid_of(arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Compute the rows and columns of patches of a model."""
    height, width = arguments["image_size"]
    return height // arguments["patch_size"], width // arguments["patch_size"]


def anchor(state: Mapping[str, np.ndarray], name: str, what: str) -> np.ndarray:
    """Give a tensor from which the geometry is read.

    Raises:
        WeightsError: it is missing.

    """
    if name not in state:
        raise WeightsError(f"{what} lacks {name}; it holds {listed(state)}")
    return state[name]


def listed(names: Iterable[str], limit: int = 8) -> str:
    """List names, cut short."""
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def depth(state: Iterable[str], pattern: str) -> int:
    """Count the layers that names of a pattern speak of; its group is the layer's number."""
    found = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def head_count(dim: int, given: int | None, flag: str) -> int:
    """Infer a number of heads from the head size 64.

    Raises:
        WeightsError: the width is no multiple of it, and none is given.

    """
    if given:
        return given
    if dim % HEAD_SIZE:
        raise WeightsError(f"the number of heads is not in the file, and its width {dim} is no multiple of 64: {flag}")
    return dim // HEAD_SIZE


def image_size_of(patches: int, patch_size: int, given: tuple[int, int] | None) -> list[int]:
    """Infer the image's size from the number of patches: a square, unless given.

    Raises:
        WeightsError: it is no square, or the given size has another number of patches.

    """
    if given:
        if (given[0] // patch_size) * (given[1] // patch_size) != patches:
            raise WeightsError(f"an image of {given[0]}x{given[1]} has not the {patches} patches that the file is for")
        return list(given)
    side = math.isqrt(patches)
    if side * side != patches:
        raise WeightsError(f"{patches} patches are no square: say the image size that the file is for, HEIGHTxWIDTH")
    return [side * patch_size, side * patch_size]


def encoder_arguments(
    *,
    image_size: list[int],
    patch_size: int,
    channels: int,
    dim: int,
    layers: int,
    heads: int,
    posemb: str,
    layerscale: bool,
    gelu: str = "erf",
) -> dict[str, Any]:
    """Spell out the arguments of an encoder; its images are normalised as ImageNet's, other channels by .5 and .5."""
    colour = channels == 3
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "channels": channels,
        "mean": list(IMAGENET_MEAN if colour else (0.5,) * channels),
        "std": list(IMAGENET_STD if colour else (0.5,) * channels),
        "dim": dim,
        "layers": layers,
        "heads": heads,
        "posemb": posemb,
        "layerscale": layerscale,
        "dropout": 0.0,
        "droppath": 0.0,
        "remat": False,
        "scan": False,
        "dtype": "float32",
        "gelu": gelu,
    }


def decoder_arguments(
    *,
    dim: int,
    layers: int,
    heads: int,
    posemb: str,
    norm_pix_loss: bool,
    mask_ratio: float = 0.75,
    layerscale: bool = False,
) -> dict[str, Any]:
    """Spell out the arguments that make an encoder a masked autoencoder."""
    return {
        "mask_ratio": mask_ratio,
        "norm_pix_loss": norm_pix_loss,
        "dec_dim": dim,
        "dec_layers": layers,
        "dec_heads": heads,
        "dec_posemb": posemb,
        "dec_layerscale": layerscale,
        "dec_dropout": 0.0,
        "dec_droppath": 0.0,
    }


def check_shapes(given: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Check that a file holds exactly the tensors of a model, by its own names and shapes.

    Raises:
        WeightsError: a missing, extra or misshapen tensor; the message lists them all.

    """
    wrong = [f"missing {name} {wanted[name]}" for name in wanted.keys() - given.keys()]
    wrong += [f"extra {name} {tuple(given[name].shape)}" for name in given.keys() - wanted.keys()]
    wrong += [
        f"{name} is {tuple(given[name].shape)}, not {wanted[name]}"
        for name in wanted.keys() & given.keys()
        if tuple(given[name].shape) != tuple(wanted[name])
    ]
    if wrong:
        raise WeightsError(f"{what} is not a whole model ({len(wrong)} tensors): {'; '.join(sorted(wrong))}")


def unstack(arrays: Mapping[str, np.ndarray]) -> dict[tuple[str, int | None], np.ndarray]:
    """Split stacks of layers: {(name, layer): array}, the layer None outside a stack."""
    single: dict[tuple[str, int | None], np.ndarray] = {}
    for name, array in arrays.items():
        if name.startswith(tuple(STACKS)):
            single |= {(name, layer): array[layer] for layer in range(len(array))}
        else:
            single[name, None] = array
    return single


def stack(single: Mapping[tuple[str, int | None], np.ndarray]) -> dict[str, np.ndarray]:
    """Put layers together again; the inverse of `unstack`."""
    whole = {name: array for (name, layer), array in single.items() if layer is None}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for (name, layer), array in single.items():
        if layer is not None:
            stacks.setdefault(name, {})[layer] = array
    return whole | {name: np.stack([layers[i] for i in range(len(layers))]) for name, layers in stacks.items()}
