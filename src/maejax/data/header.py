"""Format, mode and size of an encoded image, from its first bytes."""

import io
from typing import NamedTuple

from maejax.data.decode import FORMATS
from maejax.errors import UnreadableImage

SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


class Header(NamedTuple):
    """Format and mode by Pillow's names ("JPEG", "RGB"), width and height in pixels before any EXIF rotation."""

    format: str
    mode: str
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """Read format, mode and size of an encoded image; raises UnreadableImage for anything else."""
    opener = next((opener for magic, opener in FORMATS if data.startswith(magic)), None)
    if opener is None or opener.format is None:
        raise UnreadableImage(f"no image format known here (starts with {data[:12]!r})")
    try:
        image = opener(io.BytesIO(data))
    except Exception as error:  # on broken bytes Pillow's plugins raise nearly anything
        raise UnreadableImage(f"damaged {opener.format}: {error}") from None
    return Header(opener.format, image.mode, *image.size)


def suffix_of(data: bytes) -> str:
    """Return the file suffix of the format of an encoded image, "" for an unknown one."""
    return next((SUFFIX[opener.format or ""] for magic, opener in FORMATS if data.startswith(magic)), "")
