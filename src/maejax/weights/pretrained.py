"""Weights to start from: any layout, here or at an address, fitted to another image size or number of channels."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from maejax.errors import WeightsError
from maejax.weights import files
from maejax.weights.addresses import local
from maejax.weights.weights import Weights, grid_of

GEOMETRY = ("patch_size", "layers", "dim", "heads", "dec_layers", "dec_dim", "dec_heads")


class Pretrained(NamedTuple):
    """Arrays by our path to start from, the GELU and the normalisation of images that they were trained with.

    `said` tells in a line what was fetched; `head_norm` is the eps of a probe's BatchNorm, 0 where there is none.
    """

    arrays: dict[str, np.ndarray]
    gelu: str
    said: str
    normalization: dict[str, list[float]]
    head_norm: float


def load_encoder_arrays(
    path: str,
    *,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    channel_rule: str = "",
    cache_dir: str = "",
    **known: Any,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read all weights of any file by our path, and its model's arguments, fitted to a size and channels.

    Args:
        path: anything that `files.read` knows, or its address.
        image_size: (H, W) that the weights are wanted for: positions are interpolated as the authors do.
        channels: number of channels that they are wanted for; another than the file's needs `channel_rule`.
        channel_rule: "sum" or "repeat", see `fit_channels`.
        cache_dir: see `fetch_weights`.
        known: what the file does not tell, see `files.read`.

    Returns:
        `{"encoder.cls_token": ..., ...}`, with decoder and head where the file has them, and the arguments, changed to
        the size and channels that were asked for.

    Raises:
        InputError: the file cannot be had or is not whole, or the channels differ and there is no rule.

    """
    weights = fit(files.read(local(path, cache_dir)[0], **known), path, image_size, channels, channel_rule)
    return weights.arrays, weights.arguments


def fit(
    weights: Weights, path: str, image_size: tuple[int, int] | None, channels: int | None, channel_rule: str
) -> Weights:
    """Fit weights to an image size and a number of channels; for the rest see `load_encoder_arrays`."""
    arrays, arguments = dict(weights.arrays), dict(weights.arguments)
    if image_size is not None and tuple(image_size) != tuple(arguments["image_size"]):
        old, patch = grid_of(arguments), arguments["patch_size"]
        if image_size[0] % patch or image_size[1] % patch:
            raise WeightsError(f"{path} has patches of {patch} pixels, which do not divide {image_size}")
        new = (image_size[0] // patch, image_size[1] // patch)
        for name in ("encoder.positions", "dec_positions"):
            if name in arrays:
                arrays[name] = resize_positions(arrays[name], old, new)
        arguments["image_size"] = list(image_size)
    if channels is not None and channels != arguments["channels"]:
        filter = arrays["encoder.embed.kernel"]
        try:
            arrays["encoder.embed.kernel"] = fit_channels(filter, arguments["channels"], channels, channel_rule)
        except ValueError as error:
            raise WeightsError(f"{path}: {error}") from None
        if "predict.kernel" in arrays:
            arrays = {name: a for name, a in arrays.items() if name.startswith("encoder.")}
            arguments = {name: v for name, v in arguments.items() if name in ENCODER_ARGUMENTS}
        arguments |= {"channels": channels, "mean": [0.5] * channels, "std": [0.5] * channels}
    return replace(weights, arrays=arrays, arguments=arguments)


ENCODER_ARGUMENTS = {
    "image_size",
    "patch_size",
    "channels",
    "mean",
    "std",
    "dim",
    "layers",
    "heads",
    "posemb",
    "layerscale",
    "dropout",
    "droppath",
    "remat",
    "scan",
    "dtype",
    "gelu",
    "attention",
}


def resize_positions(table: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Interpolate a position table [1, 1 + N, D] to another grid, bicubic without antialiasing, the cls row untouched.

    As the authors' `interpolate_pos_embed`, whose `torch.nn.functional.interpolate(align_corners=False)` takes the
    cubic kernel with a = -.75 and repeats the border.
    """
    if old == new:
        return table
    grid = table[0, 1:].astype(np.float64).reshape(*old, -1)
    rows, columns = cubic_matrix(old[0], new[0]), cubic_matrix(old[1], new[1])
    resized = np.einsum("ab,bcd,ec->aed", rows, grid, columns).reshape(1, new[0] * new[1], -1)
    return np.concatenate([table[:, :1], resized.astype(table.dtype)], axis=1)


def cubic_matrix(old: int, new: int) -> np.ndarray:
    """Compute the weights [new, old] of a bicubic resize along one axis, half-pixel centres, borders repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        first = int(np.floor(centre)) - 1
        for j in range(first, first + 4):
            matrix[i, min(max(j, 0), old - 1)] += cubic(abs(centre - j))
    return matrix


def cubic(x: float, a: float = -0.75) -> float:
    """Evaluate Keys' cubic kernel at a distance."""
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def fit_channels(kernel: np.ndarray, old: int, new: int, rule: str) -> np.ndarray:
    """Fit a patch filter [(h, w, C), D] to another number of channels.

    "sum": for one channel, the sum of all, so that a grey image gives what it gave as a colour one. "repeat": the
    filter's channels over and over, scaled by old / new, so that the size of what comes out stays.

    Raises:
        ValueError: no rule, or "sum" to more than one channel.

    """
    if rule not in ("sum", "repeat"):
        raise ValueError(f"the weights are for {old} channels, not {new}: give --channel-rule sum or repeat")
    filter = kernel.reshape(-1, old, kernel.shape[-1])
    if rule == "sum":
        if new != 1:
            raise ValueError(f"the rule sum makes one channel of {old}, not {new}: choose repeat")
        return filter.sum(axis=1)
    repeated = filter[:, np.arange(new) % old] * np.float32(old / new)
    return repeated.reshape(-1, kernel.shape[-1])


def fetch_pretrained(
    path: str, image_size: tuple[int, int], channels: int, cache_dir: str = "", channel_rule: str = "", **known: Any
) -> tuple[Weights, str]:
    """Read a file as the whole model that it is, fitted to an image size and channels; say what was fetched.

    Raises:
        InputError: see `load_encoder_arrays`.

    """
    here, said = local(path, cache_dir)
    return fit(files.read(here, **known), path, image_size, channels, channel_rule), said


def load_pretrained(path: str, arguments: dict[str, Any], cache_dir: str = "", channel_rule: str = "") -> Pretrained:
    """Read all arrays of a model that is to go on from `path`, fitted to its image size and channels.

    Raises:
        InputError: the file cannot be had or is not whole, or it lacks the decoder that pre-training needs.

    """
    size, channels = tuple(arguments["image_size"]), arguments["channels"]
    weights, said = fetch_pretrained(path, size, channels, cache_dir, channel_rule, **heads_of(arguments))
    arrays, told = weights.arrays, weights.arguments
    if "dec_dim" in arguments and "dec_dim" not in told:
        raise WeightsError(
            f"{path} has no decoder for {arguments['channels']} channels, which pre-training needs; it can be probed, "
            "fine-tuned or encoded"
        )
    check_geometry(path, told, arguments)
    normalization = {name: told[name] for name in ("mean", "std")}
    return Pretrained(arrays, told.get("gelu", "erf"), said, normalization, told.get("head_norm", 0.0))


def check_geometry(path: str, told: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Refuse weights of another geometry than the flags say; that heads differ, no shape would tell.

    Raises:
        WeightsError: with all flags to give.

    """
    wrong = [name for name in GEOMETRY if name in told and told[name] != arguments.get(name, told[name])]
    if wrong:
        flags = " ".join(f"--{name.replace('_', '-')} {told[name]}" for name in wrong)
        raise WeightsError(f"{path} is of another geometry than the flags say: give {flags}")


def heads_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Give the numbers of heads that a model says it has: a file of PyTorch's does not tell them."""
    return {"heads": arguments["heads"], "dec_heads": arguments.get("dec_heads")}
