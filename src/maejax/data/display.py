"""Three bands of an image as a picture for people."""

import numpy as np

from maejax.data.form import choose_bands, split_bands
from maejax.data.values import missing_in
from maejax.errors import InputError

PERCENT = (2, 98)  # of the values of a band that become 0 and 255
GREY = 128  # of what is missing


def shown_bands(asked: str, names: tuple[str, ...], channels: int) -> tuple[int, ...]:
    """Return the numbers of the bands that pictures show: three, or one as grey.

    Those of `--show-bands`, else the first three of three or four, else the first. Raises InputError for others.
    """
    wanted = split_bands(asked)
    if not wanted:
        return (0, 1, 2) if channels in (3, 4) else (0,)
    if len(wanted) not in (1, 3):
        raise InputError(f"--show-bands {asked}: name three bands for red, green and blue, or one")
    return choose_bands(wanted, names, channels, "--show-bands")


def limits_of(images: np.ndarray, bands: tuple[int, ...], no_data: float | None = None) -> np.ndarray:
    """Return the values [2, bands] of images [B, H, W, C] that become black and white: 0 and 255 for uint8."""
    if images.dtype == np.uint8:
        return np.tile([[0.0], [255.0]], len(bands))
    missing = missing_in(images, no_data)
    values = [images[..., i] if missing is None else images[..., i][~missing[..., i]] for i in bands]
    return np.array([np.percentile(v.astype(np.float64), PERCENT) if v.size else (0, 1) for v in values]).T


def as_picture(
    images: np.ndarray, bands: tuple[int, ...], limits: np.ndarray, no_data: float | None = None
) -> np.ndarray:
    """Show bands of images [B, H, W, C] as uint8 [B, H, W, 1 or 3], stretched from `limits`; grey is missing."""
    low, high = limits
    chosen = images[..., list(bands)]
    missing = missing_in(chosen, no_data)
    values = np.nan_to_num((chosen.astype(np.float64) - low) * (255 / np.maximum(high - low, 1e-12)))
    pictures = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pictures if missing is None else np.where(missing, np.uint8(GREY), pictures)
