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

from maejax.data.tiff import grey, is_picture, scale_grey
from maejax.data.turbojpeg import Box, decode_region, library
from maejax.data.values import upright
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
    (b"II+\0", TiffImageFile),  # BigTIFF
    (b"MM\0+", TiffImageFile),
)
_AVIF = (b"ftypavif", b"ftypavis")  # from byte 4 on


def decode(data: bytes | np.ndarray, channels: int = 3, box: Box | None = None, *, narrow: bool = True) -> np.ndarray:
    """Decode a picture (JPEG, PNG, WebP, AVIF, BMP, GIF, TIFF) to 8 bits, upright and in the asked number of channels.

    Returns uint8 [H, W, C] with C = `channels`: 1 is luminance (ITU-R 601), 3 is RGB, 4 is RGBA. The pixels are
    Pillow's, bit for bit: alpha is dropped, not blended, as the field's loaders do (`convert("RGB")`). CMYK becomes
    RGB; an animation gives its first frame; 16-bit grey is scaled to 0..255, unless `narrow` is false: then it is an
    error. The EXIF orientation is applied. Arrays, uint8 [H, W] or [H, W, C], are converted in the same way, and pass
    as they are if C is `channels`. `arrays.read_pixels` reads images of other types too.

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
                return upright(_in_channels(part, channels), orientation)
        pixels, orientation = _decode_jpeg(data, channels)
    else:
        pixels, orientation = _decode_pillow(data, channels, narrow)
    pixels = upright(pixels, orientation)
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


def _decode_pillow(data: bytes, channels: int, narrow: bool = True) -> tuple[np.ndarray, int]:
    opener = opener_of(data)
    try:
        image = opener(io.BytesIO(data))
        _check_size(*image.size)
        if isinstance(image, TiffImageFile) and not is_picture(image):
            raise UnreadableImage("a TIFF of several pages, or of other bands or types than a picture has")
        if not narrow and (image.mode.startswith("I;16") or is_deep_png(data)):
            remedy = "--image-type uint8 scales it to 8 bits"
            raise UnreadableImage(f"holds uint16, where the first images hold uint8: {remedy}")
        image.load()
        # TIFF has no such block: Pillow turns it upright by itself.
        return _convert(image, channels), _orientation(image.info.get("exif", b""))
    except UnreadableImage:
        raise
    except Exception as error:  # on broken bytes Pillow's plugins raise nearly anything
        raise UnreadableImage(f"damaged {opener.format}: {error}") from None


def native(data: bytes) -> np.ndarray:
    """Decode a picture to the bands that its file has: uint16 [H, W, 1] for 16-bit grey, else uint8 [H, W, 1, 3 or 4].

    Raises UnreadableImage as `decode`, and for PNGs of 16 bits with colours or alpha, which Pillow reads as 8.
    """
    opener = opener_of(data)
    if is_deep_png(data) and data[25]:
        remedy = "give --image-type uint8 to take these, or save it as TIFF or .npy"
        raise UnreadableImage(f"a PNG of 16 bits with colours or alpha, of which 8 bits are read: {remedy}")
    try:
        image = opener(io.BytesIO(data))
        _check_size(*image.size)
        if image.mode.startswith("I;16"):
            return upright(grey(image)[..., None], _orientation(image.info.get("exif", b"")))
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(f"damaged {opener.format}: {error}") from None
    bands = 4 if "A" in image.mode or "transparency" in image.info else 1 if image.mode in ("L", "1") else 3
    return decode(data, bands)


def is_deep_png(data: bytes) -> bool:
    """Return whether the first bytes of a file are those of a PNG of 16 bits."""
    return data[:4] == b"\x89PNG" and data[24:25] == b"\x10"


def is_tiff(data: bytes) -> bool:
    """Return whether the first bytes of a file are those of a TIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


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
        remedy = "arrays and TIFFs may have any number"
        raise UnreadableImage(f"pictures give 1, 3 or 4 channels, not {channels}; {remedy}")
    if image.mode.startswith("I;16"):
        image = Image.fromarray(scale_grey(image))
    elif image.mode in ("I", "F"):
        raise UnreadableImage("32-bit grey has no white of its own; save it as TIFF of float32, or as .npy")
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
