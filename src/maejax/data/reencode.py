"""The bytes of an image for a shard: as they are, or encoded again in another size or quality."""

import io
from typing import Any

import numpy as np
from PIL import Image

from maejax.data.augment import resize
from maejax.data.decode import decode, opener_of
from maejax.errors import UnreadableImage

JPEG_QUALITY = 95
_SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


def suffix_of(data: bytes) -> str:
    """Return the file suffix of an encoded image; raises UnreadableImage for a format unknown here."""
    return _SUFFIX[opener_of(data).format or ""]


def reencode(data: bytes | np.ndarray, image_size: int | None, quality: int | None) -> tuple[bytes, str]:
    """Return the bytes of an image as a shard holds them, and their suffix.

    `image_size` is the longest short side, in pixels, `quality` that of JPEG, 1..100. Without either, files are copied
    byte for byte, and arrays are written as PNG. With `image_size`, images with a longer short side are resized to it.
    JPEG and WebP are then written as JPEG (quality 95), others as PNG, without alpha. With `quality`, JPEG and WebP of
    any size are written as JPEG of that quality if that is smaller.

    Raises UnreadableImage, also where it would only be copied.
    """
    if isinstance(data, np.ndarray):
        pixels = data if data.ndim == 3 else data[..., None]
        if pixels.shape[2] not in (1, 3, 4):
            raise UnreadableImage(f"has {pixels.shape[2]} channels; image files hold 1, 3 or 4")
        return _encode(_shrink(pixels, image_size), "PNG"), ".png"
    suffix = suffix_of(data)
    pixels = decode(data, 3)  # what cannot be read must not get into a shard
    lossy = suffix in (".jpg", ".webp")
    small = _shrink(pixels, image_size)
    resized = small.shape != pixels.shape
    if not resized and not (lossy and quality):
        return data, suffix
    if (small == small[..., :1]).all():
        small = small[..., :1]
    if not lossy:
        return _encode(small, "PNG"), ".png"
    again = _encode(small, "JPEG", quality=quality or JPEG_QUALITY)
    return (again, ".jpg") if resized or len(again) < len(data) else (data, suffix)


def _shrink(pixels: np.ndarray, image_size: int | None) -> np.ndarray:
    height, width, _ = pixels.shape
    side = min(height, width)
    if image_size is None or side <= image_size:
        return pixels
    return resize(pixels, (height * image_size // side, width * image_size // side))


def _encode(pixels: np.ndarray, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, format, **options)
    return buffer.getvalue()
