"""Values of pixels: from the type that a file has to that of a form, and which of them are missing."""

import numpy as np

from maejax.data.form import Form
from maejax.errors import UnreadableImage


def as_form(pixels: np.ndarray, form: Form) -> np.ndarray:
    """Take the bands of a form out of pixels [H, W, B] of any type, and turn them into its type: [H, W, C].

    Missing pixels are NaN in floats, else the form's `no_data`. One band fills three channels, as in pictures.
    Raises UnreadableImage if the number of bands or the type is another one.
    """
    bands = pixels.shape[2]
    if form.order:
        if max(form.order) >= bands:
            raise UnreadableImage(f"has {bands} bands, and band {max(form.order)} is asked for")
        pixels = pixels[..., list(form.order)]
    elif bands != form.channels:
        if bands != 1 or form.channels != 3:
            raise UnreadableImage(
                f"has {bands} channels, which cannot be turned into {form.channels}: give --channels {bands}, or "
                "choose some by --bands"
            )
        pixels = np.repeat(pixels, 3, axis=2)
    return as_type(pixels, form)


def as_type(pixels: np.ndarray, form: Form) -> np.ndarray:
    """Turn pixels of any type into the type of a form.

    Without `fits` the type has to be that. With it, values stay what they are: a type takes every narrower one, and
    float32 takes all numbers. uint8 alone is scaled, by `narrowed`. Raises UnreadableImage if that is not possible.
    """
    have, want = pixels.dtype, form.dtype
    if have.kind not in "buif":
        raise UnreadableImage(f"holds {have}; images are numbers, such as uint16 or float32")
    if have != want and not form.fits:
        remedy = "--image-type float32 to keep all values, or --image-type uint8 to scale them to 8 bits"
        where = f", and {form.first} {want}" if form.first else f" instead of {want}"
        raise UnreadableImage(f"holds {have}{where}: give {remedy}")
    missing = missing_in(pixels, form.no_data)
    if have == want:
        return pixels if missing is None or have.kind != "f" else np.where(missing, np.array(np.nan, want), pixels)
    if want == np.uint8:
        small = narrowed(pixels, form.value_range, missing)
        if missing is None:
            return small
        if form.no_data is None:
            raise UnreadableImage("has missing values (NaN), which 8 bits cannot hold; give --image-type float32")
        return np.where(missing, np.uint8(form.no_data), beside(small, form.no_data))
    if want != np.float32 and not np.can_cast(have, want, "safe"):
        raise UnreadableImage(f"holds {have}, which {want} cannot hold; give --image-type float32 or uint8")
    turned = pixels.astype(want)
    return turned if missing is None or want.kind != "f" else np.where(missing, np.array(np.nan, want), turned)


def narrowed(pixels: np.ndarray, span: tuple[float, ...], missing: np.ndarray | None = None) -> np.ndarray:
    """Scale pixels to 0..255, rounded: from `span`, or from the whole range of an integer type, or from 0..1.

    Values beyond `span` are clipped. Raises UnreadableImage for floats beyond 0..1 without a `span`.
    """
    kind = pixels.dtype.kind
    low, high = span or ((0.0, 1.0) if kind in "bf" else (np.iinfo(pixels.dtype).min, np.iinfo(pixels.dtype).max))
    values = pixels.astype(np.float64)
    if missing is not None:
        values[missing] = low
    if kind == "f" and not span and (values.min() < 0 or values.max() > 1):
        seen = f"{values.min():g} to {values.max():g}"
        raise UnreadableImage(f"has values from {seen}: give --value-range, the two that become 0 and 255")
    return np.clip(np.floor((values - low) * 255 / (high - low) + 0.5), 0, 255).astype(np.uint8)


def missing_in(pixels: np.ndarray, no_data: float | None) -> np.ndarray | None:
    """Find the pixels that are missing, bool of the same shape; None if there are none.

    Of floats these are the ones that are not finite, of all types those with the value `no_data`.
    """
    missing = None
    if pixels.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):  # a sum costs less than a look at each
            missing = None if np.isfinite(pixels.sum()) else ~np.isfinite(pixels)
    if no_data is not None:
        equal = pixels == (int(no_data) if pixels.dtype.kind in "ui" and float(no_data).is_integer() else no_data)
        missing = equal if missing is None else missing | equal
    return missing if missing is not None and missing.any() else None


def beside(values: np.ndarray, no_data: float) -> np.ndarray:
    """Move integers that were computed away from the value of missing pixels, by one."""
    away = no_data + 1 if no_data < np.iinfo(values.dtype).max else no_data - 1
    return np.where(values == values.dtype.type(no_data), values.dtype.type(away), values)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels [H, W, C] upright by their EXIF orientation, 1..8."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
