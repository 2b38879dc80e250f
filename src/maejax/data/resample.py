"""Resizing of images of any type and number of bands, in their own values, around what is missing in them."""

import numpy as np
from PIL import Image

from maejax.data.values import beside, missing_in

try:
    import cykooz_resizer as cykooz
except ImportError:  # no wheel for 64-bit Arm on Linux
    cykooz = None

LEAST_WEIGHT = 0.5  # of a new pixel that must lie on pixels that exist
Region = tuple[float, float, float, float]


def resample(
    image: np.ndarray, size: tuple[int, int], region: Region | None = None, no_data: float | None = None
) -> np.ndarray:
    """Resize an image [H, W, C] of any type to `size`, bicubic with antialiasing, band by band in float32.

    Integers are rounded, and clipped to their type. `region` (left, top, right, bottom) is the part to resize, None for
    all. A new pixel is the weighted mean of the pixels that exist; it is missing if less than half of its weight lies
    on them. So no missing value ever enters another one.
    """
    dtype, missing = image.dtype, missing_in(image, no_data)
    values = image.astype(np.float32)
    if missing is not None:
        values[missing] = 0
    values = _convolve(values, size, region)
    weight = None
    if missing is not None:
        weight = _convolve(1 - missing.astype(np.float32), size, region)
        values = values / np.maximum(weight, LEAST_WEIGHT)
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        values = np.clip(values, limits.min, limits.max).astype(dtype, copy=False)
    else:
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values, out=values), limits.min, limits.max).astype(dtype)
        values = values if no_data is None else beside(values, no_data)
    if weight is None:
        return values
    return np.where(weight < LEAST_WEIGHT, dtype.type(np.nan if dtype.kind == "f" else no_data), values)


def _convolve(values: np.ndarray, size: tuple[int, int], region: Region | None) -> np.ndarray:
    """Resize float32 [H, W, C]."""
    height, width, channels = values.shape
    out = np.empty((*size, channels), np.float32)
    # cykooz not with a crop box: version 4.0 reads beyond the image for some of them.
    if cykooz is None or region is not None:
        box = region or (0, 0, width, height)
        for i in range(channels):
            picture = Image.fromarray(np.ascontiguousarray(values[..., i]))
            out[..., i] = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box))
        return out
    bicubic = cykooz.ResizeAlg.convolution(cykooz.FilterType.catmull_rom)
    for start in range(0, channels, 4):  # it takes up to four bands at a time
        part = np.ascontiguousarray(values[..., start : start + 4])
        kind = cykooz.PixelType[("F32", "F32x2", "F32x3", "F32x4")[part.shape[2] - 1]]
        target = cykooz.ImageData(size[1], size[0], kind)
        source = cykooz.ImageData(width, height, kind, part.tobytes())
        cykooz.Resizer().resize(source, target, cykooz.ResizeOptions(bicubic, use_alpha=False))
        out[..., start : start + 4] = np.frombuffer(target.get_buffer(), np.float32).reshape(*size, -1)
    return out
