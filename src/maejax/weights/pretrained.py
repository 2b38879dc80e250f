"""Weights to start from: any layout, here or at an address, fitted to another image size or number of channels."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from maejax.errors import WeightsError
from maejax.models.description import MAE, Classifier, change_encoder
from maejax.models.stack import Stack
from maejax.weights import files
from maejax.weights.addresses import local
from maejax.weights.custom_code import CustomCode
from maejax.weights.weights import Weights

_log = logging.getLogger("maejax.weights")

REPEATED = (
    "--channel-rule repeat: the filters of %s channels are repeated over %s; in 16 of 17 published comparisons that "
    "was worse than new filters, by 3.9 points on average"
)


def load_pretrained(
    path: str,
    model: MAE | Classifier,
    cache_dir: str = "",
    channel_rule: str = "",
    prefix: str = "",
    *,
    new_decoder: bool = False,
) -> tuple[Weights, str]:
    """Read the weights that a new model starts from, fitted to its image size and channels.

    With `new_decoder` they are those of its encoder alone. Also returns a line on the file that was fetched, empty if
    none was. Raises InputError if the file cannot be had or is incomplete, if its sizes are others, or if it lacks the
    decoder that pre-training needs without `new_decoder`.
    """
    encoder, decoder = model.encoder, model.decoder if isinstance(model, MAE) and not new_decoder else None
    known = {"heads": encoder.heads, "dec_heads": decoder and decoder.heads, "prefix": prefix}
    known |= {"channel_rule": channel_rule, "bands": encoder.bands}
    if isinstance(model, MAE):
        known["code"] = code_of(model, new_decoder=new_decoder)
    weights, fetched = fetch_pretrained(path, encoder.image_size, encoder.channels, cache_dir, **known)
    found = weights.config
    if decoder is not None and not isinstance(found, MAE):
        raise WeightsError(
            f"{path} has no decoder for {encoder.channels} channels, which pre-training needs: give --new-decoder for "
            "a fresh one"
        )
    pairs: list[tuple[str, Stack, Stack]] = [("--", found.encoder, encoder)]
    if decoder is not None and isinstance(found, MAE):
        pairs.append(("--dec-", found.decoder, decoder))
    flags = [
        f"{prefix}{name.replace('_', '-')} {getattr(theirs, name)}"
        for prefix, theirs, ours in pairs
        for name in ("patch_size", "layers", "dim", "heads")
        if getattr(theirs, name, 0) != getattr(ours, name, 0)
    ]
    if flags:  # no shape tells that heads differ
        raise WeightsError(f"{path} is of another geometry than the flags say: give {' '.join(flags)}")
    if new_decoder:
        used = [n for n in weights.arrays if n.startswith("encoder.") and not n.startswith("encoder.attention_pool.")]
        weights = replace(weights, arrays={name: weights.arrays[name] for name in used}, config=found.encoder)
    return weights, fetched


def code_of(model: MAE, *, new_decoder: bool = False) -> CustomCode:
    """Return the user's code in a model that starts from weights, but for that of a new decoder."""
    return CustomCode() if new_decoder else CustomCode(model.decoder.custom, model.custom_target)  # type: ignore[arg-type]


def fetch_pretrained(
    path: str,
    image_size: tuple[int, int],
    channels: int,
    cache_dir: str = "",
    channel_rule: str = "",
    bands: tuple[str, ...] = (),
    **known: Any,
) -> tuple[Weights, str]:
    """Read a file as the model that it holds, fitted to an image size and channels; `known` as in `files.read`.

    Channels with names in `bands` take the filters of those names, if the file has names too.

    Also returns a line on the file that was fetched, empty if none was. Raises InputError if the file cannot be had or
    is incomplete, or if the channels differ and there is no rule.
    """
    here, fetched = local(path, cache_dir)
    weights = files.read(here, image_size=image_size, **known)
    try:
        return with_channels(with_image_size(weights, image_size), channels, channel_rule, bands), fetched
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None


def with_image_size(weights: Weights, image_size: tuple[int, int]) -> Weights:
    """Interpolate the positions of weights to an image size (H, W); raises ValueError if patches do not divide it."""
    config = change_encoder(weights.config, image_size=image_size)
    arrays, old, new = dict(weights.arrays), weights.config.encoder.grid, config.encoder.grid
    for name in ("encoder.positions", "dec_positions"):
        if name in arrays:
            arrays[name] = resize_positions(arrays[name], old, new)
    return replace(weights, arrays=arrays, config=config)


def with_channels(weights: Weights, channels: int, rule: str, bands: tuple[str, ...] = ()) -> Weights:
    """Fit the patch filter of weights to channels: by name where both sides have names, else by `fit_channels`.

    Other channels leave the decoder out. Raises ValueError if a channel finds no filter and there is no `rule`.
    """
    arrays, config, old = dict(weights.arrays), weights.config, weights.config.encoder
    named = bool(old.bands and bands)
    if (old.bands == bands) if named else (channels == old.channels):
        return weights if named or not bands else replace(weights, config=change_encoder(config, bands=bands))
    kernel = arrays["encoder.embed.kernel"]
    filters = kernel.reshape(-1, old.channels, kernel.shape[-1])
    place = [old.bands.index(name) if named and name in old.bands else -1 for name in bands or [""] * channels]
    usual: dict[str, Any] = dict.fromkeys(("mean", "std"), (0.5,) * channels)
    if min(place) >= 0:
        fitted = filters[:, place]
        usual = {name: tuple(getattr(old, name)[i] for i in place) for name in usual}
    else:
        if named and not rule:
            lost = ", ".join(name for name, i in zip(bands, place, strict=True) if i < 0)
            raise ValueError(f"the weights have no filter for {lost}: leave it out of --bands, or give --channel-rule")
        fitted = fit_channels(kernel, old.channels, channels, rule).reshape(-1, channels, kernel.shape[-1])
        taken = [new for new, i in enumerate(place) if i >= 0]
        fitted[:, taken] = filters[:, [place[new] for new in taken]]
        if channels > old.channels:
            _log.warning(REPEATED, old.channels, channels)
    if isinstance(config, MAE):
        arrays, config = {name: a for name, a in arrays.items() if name.startswith("encoder.")}, config.encoder
    config = change_encoder(config, channels=channels, bands=bands, **usual)
    arrays["encoder.embed.kernel"] = fitted.reshape(-1, kernel.shape[-1])
    return replace(weights, arrays=arrays, config=config)


def fit_channels(kernel: np.ndarray, old: int, new: int, rule: str) -> np.ndarray:
    """Fit a patch filter [(h, w, C), D] to another number of channels.

    "sum": one channel, the sum of all, so that a grey image gives the values that it gave as a colour one. "repeat":
    the channels over and over, scaled by old / new, which keeps the size of the values. Raises ValueError for no rule,
    or for "sum" to more than one channel.
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


def resize_positions(pos_embed: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Interpolate positions [1, 1 + N, D] or [1, N, D] to another grid, bicubic without antialiasing.

    The row of the cls token stays.

    As the authors' `interpolate_pos_embed`, whose `torch.nn.functional.interpolate(align_corners=False)` takes the
    cubic kernel with a = -.75 and repeats the border.
    """
    if old == new:
        return pos_embed
    cls = pos_embed.shape[1] - old[0] * old[1]
    grid = pos_embed[0, cls:].astype(np.float64).reshape(*old, -1)
    rows, columns = cubic_matrix(old[0], new[0]), cubic_matrix(old[1], new[1])
    resized = np.einsum("ab,bcd,ec->aed", rows, grid, columns).reshape(1, new[0] * new[1], -1)
    return np.concatenate([pos_embed[:, :cls], resized.astype(pos_embed.dtype)], axis=1)


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
