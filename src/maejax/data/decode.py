"""Encoded bytes -> pixels: whole images or an error, never half an image and never a warning."""

import io
import struct

import numpy as np
import simplejpeg
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from maejax.data.turbojpeg import Box, decode_region, library
from maejax.errors import UnreadableImage

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# libjpeg's warnings after which pixels are missing. It goes on and paints them grey, and Pillow says nothing of it.
# Others are harmless and common, such as a few extraneous bytes before the end: those files are left to Pillow.
_DAMAGE = ("Premature end", "Corrupt JPEG data", "Inconsistent progression")

# The first bytes name the format. Opening by it costs 25 us less than Image.open, which asks every plugin.
FORMATS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG", PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"GIF8", GifImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
)


def decode(data: bytes | np.ndarray, channels: int = 3) -> np.ndarray:
    """Decode an image (JPEG, PNG, WebP, BMP, GIF, TIFF) to pixels, upright and in the asked number of channels.

    Returns uint8 [H, W, C] with C = `channels`: 1 is luminance (ITU-R 601), 3 is RGB, 4 is RGBA. The pixels are
    Pillow's, bit for bit: alpha is dropped, not blended, as the field's loaders do (`convert("RGB")`); CMYK becomes
    RGB; of an animation comes the first frame. 16-bit grey is scaled to 0..255. The EXIF orientation is applied. Pixels
    given as an array, uint8 [H, W] or [H, W, C], are converted in the same way, and pass as they are where C is
    `channels` already, which may then be any number.

    Raises UnreadableImage for what is empty, cut, corrupt, of another format or larger than Pillow's
    `Image.MAX_IMAGE_PIXELS`, and where the pixels cannot be had in that many channels.
    """
    if isinstance(data, np.ndarray):
        pixels, orientation = (data if data.ndim == 3 else data[..., None]), 1
        if pixels.shape[2] != channels:
            pixels = _convert(_as_image(pixels), channels)
    elif data.startswith(b"\xff\xd8\xff"):
        pixels, orientation = _decode_jpeg(data, channels)
    else:
        pixels, orientation = _decode_pillow(data, channels)
    return pixels if orientation == 1 else _upright(pixels, orientation)


def open_image(data: bytes | np.ndarray, channels: int = 3) -> "np.ndarray | Picture":
    """Return the pixels of an image as `decode` does, or, of most JPEGs, a Picture, where libjpeg-turbo 3 is installed.

    Raises UnreadableImage.
    """
    if isinstance(data, bytes) and data.startswith(b"\xff\xd8\xff") and channels in _MODES and library():
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:  # for `decode` to find out what is wrong
            pass
        else:
            _check_size(int(width), int(height))
            return Picture(data, channels, (int(height), int(width)))
    return decode(data, channels)


class Picture:
    """A JPEG of which no more is decoded than is asked for, to the same bits as the whole.

    `shape` is (H, W, C), upright, as `decode` would return it.
    """

    def __init__(self, data: bytes, channels: int, stored: tuple[int, int]):
        self._data = data
        self._channels = channels
        self._pixels: np.ndarray | None = None
        self._orientation = _orientation(_exif(data))
        height, width = stored if self._orientation < 5 else stored[::-1]
        self.shape = height, width, channels

    def crop(self, box: Box) -> np.ndarray:
        """Decode `box` (top, left, height, width, within `shape`) to pixels, uint8 [height, width, C].

        The image is refused as by `decode` where its end mark is missing or anything is wrong down to the lower edge of
        the box; what lies below is looked at only where the whole image is decoded.

        Raises UnreadableImage.
        """
        top, left, height, width = box
        if self._pixels is None and (height, width) != self.shape[:2]:
            part = decode_region(self._data, _stored_box(box, self.shape, self._orientation), self._channels)
            if part is not None:
                part = part if part.shape[2] == self._channels else _convert(_as_image(part), self._channels)
                return part if self._orientation == 1 else _upright(part, self._orientation)
        if self._pixels is None:
            self._pixels = decode(self._data, self._channels)
        return self._pixels[top : top + height, left : left + width]


def _stored_box(box: Box, shape: tuple[int, int, int], orientation: int) -> Box:
    """Undo `_upright` on a box of the upright image."""
    top, left, height, width = box
    if orientation in (2, 3, 6, 7):
        left = shape[1] - left - width
    if orientation in (3, 4, 7, 8):
        top = shape[0] - top - height
    return (left, top, width, height) if orientation >= 5 else (top, left, height, width)


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
    if pixels.shape[2] != channels:
        pixels = _convert(_as_image(pixels), channels)
    return pixels, _orientation(_exif(data))


def _decode_pillow(data: bytes, channels: int) -> tuple[np.ndarray, int]:
    if not data:
        raise UnreadableImage("the file is empty")
    opener = next((opener for magic, opener in FORMATS if data.startswith(magic)), None)
    if opener is None:
        raise UnreadableImage(f"no image format known here (starts with {data[:12]!r})")
    try:
        image = opener(io.BytesIO(data))
        _check_size(*image.size)
        image.load()
        # TIFF has no such block: Pillow turns it upright by itself.
        return _convert(image, channels), _orientation(image.info.get("exif", b""))
    except UnreadableImage:
        raise
    except Exception as error:  # on broken bytes Pillow's plugins raise nearly anything
        raise UnreadableImage(f"damaged {opener.format}: {error}") from None


def _convert(image: Image.Image, channels: int) -> np.ndarray:
    if channels not in _MODES:
        raise UnreadableImage(
            f"image files give 1, 3 or 4 channels, not {channels}; arrays in a .npz may have any number"
        )
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
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


def _as_image(pixels: np.ndarray) -> Image.Image:
    if pixels.shape[2] not in _MODES:
        raise UnreadableImage(f"has {pixels.shape[2]} channels, which cannot be turned into another number")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _check_size(width: int, height: int) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise UnreadableImage(f"{width} x {height} pixels are more than the limit of {Image.MAX_IMAGE_PIXELS}")


def _exif(data: bytes) -> bytes:
    """Return the EXIF block of a JPEG, empty where there is none before the pixels begin."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:  # a search through the bytes would take 20 us
        size = int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 4 : at + 2 + size]
        at += 1 if data[at + 1] == 0xFF else 2 + size  # markers may be preceded by any number of 0xff
    return b""


def _orientation(exif: bytes) -> int:
    """Return tag 274 of an EXIF block, 1..8, or 1 where there is none."""
    # Pillow's own reader warns about broken blocks.
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 274:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # cut short
        pass
    return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
