"""Encoded bytes -> pixels: an image or an error, never half an image and never a warning."""

import io
import struct
from contextlib import suppress

import numpy as np
import simplejpeg
from PIL import Image
from PIL.AvifImagePlugin import SUPPORTED as AVIF
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from maejax.data.tiff import check_tiff, scale_grey
from maejax.data.turbojpeg import Box, decode_region, library
from maejax.errors import UnreadableImage
from maejax.storage.pointer import pointer

_JPEG = b"\xff\xd8\xff"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# libjpeg's warnings after which pixels are missing. It goes on and paints them grey, and Pillow says nothing of it.
# Others are harmless and common, such as a few extraneous bytes before the end: those files are left to Pillow.
_DAMAGE = ("Premature end", "Corrupt JPEG data", "Inconsistent progression")

# The first bytes name the format. Opening by it costs 25 us less than Image.open, which asks every plugin.
_FORMATS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (_JPEG, JpegImageFile),
    (b"\x89PNG", PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"GIF8", GifImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),  # BigTIFF; of the other byte order Pillow reads none
)
_AVIF = (b"ftypavif", b"ftypavis")  # from byte 4 on


def decode(data: bytes | np.ndarray, channels: int = 3, box: Box | None = None) -> np.ndarray:
    """Decode an image (JPEG, PNG, WebP, AVIF, BMP, GIF, TIFF) to pixels, upright and in the asked number of channels.

    Returns uint8 [H, W, C] with C = `channels`: 1 is luminance (ITU-R 601), 3 is RGB, 4 is RGBA. The pixels are
    Pillow's, bit for bit: alpha is dropped, not blended, as the field's loaders do (`convert("RGB")`). CMYK becomes
    RGB; an animation gives its first frame; 16-bit grey is scaled to 0..255. The EXIF orientation is applied. Arrays,
    uint8 [H, W] or [H, W, C], are converted in the same way, and pass as they are if C is `channels`.

    `box` (top, left, height, width of the upright image) returns these pixels alone. With libjpeg-turbo 3, no other
    pixel of most JPEGs is decoded, and of the bytes below the box only the end mark is checked.

    Raises UnreadableImage if the image is empty, cut, corrupt, of another format, larger than Pillow's
    `Image.MAX_IMAGE_PIXELS`, or not convertible to that many channels.
    """
    orientation = 1
    if isinstance(data, np.ndarray):
        pixels = _in_channels(data if data.ndim == 3 else data[..., None], channels)
    elif data.startswith(_JPEG):
        if box is not None and channels in _MODES:
            orientation = _orientation(_exif(data))
            part = decode_region(data, box, channels, orientation)
            if part is not None:
                return _upright(_in_channels(part, channels), orientation)
        pixels, orientation = _decode_jpeg(data, channels)
    else:
        pixels, orientation = _decode_pillow(data, channels)
    pixels = _upright(pixels, orientation)
    if box is None:
        return pixels
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


def size_in_header(data: bytes) -> tuple[int, int] | None:
    """Read the upright size (H, W) of a JPEG, None if `decode` takes it only whole; raises UnreadableImage if huge."""
    if not data.startswith(_JPEG) or library() is None:
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # `decode` finds out what is wrong
        return None
    _check_size(int(width), int(height))
    return (int(height), int(width)) if _orientation(_exif(data)) < 5 else (int(width), int(height))


def _decode_jpeg(data: bytes, channels: int) -> tuple[np.ndarray, int]:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(int(width), int(height))
        if space in ("CMYK", "YCCK"):  # simplejpeg's RGB of them is not Pillow's
            return _decode_pillow(data, channels)
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if space == "Gray" and channels == 1 else "RGB")
    except UnreadableImage:
        raise
    except ValueError as error:
        if str(error).startswith(_DAMAGE) and "extraneous bytes" not in str(error):
            raise UnreadableImage(f"damaged JPEG: {error}") from None
        return _decode_pillow(data, channels)
    return _in_channels(pixels, channels), _orientation(_exif(data))


def _decode_pillow(data: bytes, channels: int) -> tuple[np.ndarray, int]:
    opener = opener_of(data)
    try:
        image = opener(io.BytesIO(data))
        _check_size(*image.size)
        if isinstance(image, TiffImageFile):
            check_tiff(image, channels)
        image.load()
        # TIFF has no such block: Pillow turns it upright by itself.
        return _convert(image, channels), _orientation(image.info.get("exif", b""))
    except UnreadableImage:
        raise
    except Exception as error:  # on broken bytes Pillow's plugins raise nearly anything
        if opener is TiffImageFile and any(words in str(error) for words in ("unknown", "string index")):
            remedy = "save it as grey, RGB or RGBA of 8 bits, or grey of 16"
            raise UnreadableImage(f"a kind of TIFF that is not read here ({error}); {remedy}") from None
        raise UnreadableImage(f"damaged {opener.format}: {error}") from None


def opener_of(data: bytes) -> type[ImageFile]:
    """Return Pillow's class for the format of an encoded image; raises UnreadableImage if it is none known here."""
    if not data:
        raise UnreadableImage("the file is empty")
    for magic, opener in _FORMATS:
        if data.startswith(magic):
            return opener
    if AVIF and data[4:12] in _AVIF:
        return AvifImageFile
    raise UnreadableImage(pointer(data) or f"no image format known here (starts with {data[:12]!r})")


def is_image(head: bytes) -> bool:
    """Return whether the first bytes of a file are those of an image."""
    with suppress(UnreadableImage):
        return bool(opener_of(head))
    return False


def _convert(image: Image.Image, channels: int) -> np.ndarray:
    if channels not in _MODES:
        remedy = "arrays in a .npz may have any number"
        raise UnreadableImage(f"image files give 1, 3 or 4 channels, not {channels}; {remedy}")
    if image.mode.startswith("I;16"):
        image = Image.fromarray(scale_grey(image))
    elif image.mode in ("I", "F"):
        raise UnreadableImage("32-bit grey has no white of its own; convert it to 8 or 16 bits")
    if "transparency" in image.info:  # of a palette or of one colour: a direct conversion would warn, or forget it
        image = image.convert("RGBA")
    elif image.mode == "CMYK":  # has no direct way to luminance or RGBA
        image = image.convert("RGB")
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _in_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.shape[2] == channels:
        return pixels
    if pixels.shape[2] not in _MODES:
        raise UnreadableImage(f"has {pixels.shape[2]} channels, which cannot be turned into another number")
    return _convert(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), channels)


def _check_size(width: int, height: int) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise UnreadableImage(f"{width} x {height} pixels are more than the limit of {Image.MAX_IMAGE_PIXELS}")


def _exif(data: bytes) -> bytes:
    """Return the EXIF block of a JPEG, b"" if none comes before the pixels."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:  # a search through the bytes would take 20 us
        size = int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 4 : at + 2 + size]
        at += 1 if data[at + 1] == 0xFF else 2 + size  # markers may be preceded by any number of 0xff
    return b""


def _orientation(exif: bytes) -> int:
    """Return tag 274 of an EXIF block, 1..8, or 1 if there is none."""
    # Pillow's own reader warns about broken blocks.
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    with suppress(struct.error):  # cut short
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 274:
                return value if 1 <= value <= 8 else 1
    return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
