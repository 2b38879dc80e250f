"""Image files of every kind, as pixels in the form of their source: pictures, arrays (.npy), TIFF and DICOM."""

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from maejax.data.decode import decode, is_deep_png, is_tiff, native, opener_of, size_in_header
from maejax.data.dicom import is_dicom, look_at_dicom, read_dicom, values_of_dicom
from maejax.data.form import MOST_BANDS, Form
from maejax.data.tiff import look_at_tiff, picture_in, read_tiff, values_of_tiff
from maejax.data.turbojpeg import Box
from maejax.data.values import as_form
from maejax.errors import UnreadableImage

NPY = b"\x93NUMPY"
PICTURES = (1, 3, 4)  # channels


class Stored(NamedTuple):
    """The head of a file: type of the pixels, number of bands, their names if it has any, pages, and its kind."""

    image_type: str
    bands: int
    names: tuple[str, ...] = ()
    pages: int = 1
    kind: str = "array"


def read_pixels(data: bytes | np.ndarray, form: Form, box: Box | None = None) -> np.ndarray:
    """Read an image as pixels [H, W, C] in a form, upright; `box` (top, left, height, width) returns these alone.

    8-bit pictures become the number of channels as `decode` has it. Raises UnreadableImage if the image is damaged, or
    not of that form.
    """
    pictures = form.of_pictures and form.channels in PICTURES
    if pictures and isinstance(data, bytes) and is_picture(data):
        return decode(data, form.channels, box, narrow=form.fits)
    pixels = stored_pixels(data, form)
    if box is not None:
        top, left, height, width = box
        pixels = pixels[top : top + height, left : left + width]
    if pictures and pixels.dtype == np.uint8 and pixels.shape[2] in PICTURES:
        return decode(pixels, form.channels)
    return as_form(pixels, form)


def stored_pixels(data: bytes | np.ndarray, form: Form) -> np.ndarray:
    """Return the pixels of an image as its file has them: [H, W, B] of any type, upright."""
    if isinstance(data, np.ndarray):
        return channels_last(data, form.channels_first)
    if data.startswith(NPY):
        return channels_last(read_npy(data), form.channels_first)
    if is_tiff(data) and picture_in(data) is None:
        return read_tiff(data, form)
    if is_dicom(data):
        return read_dicom(data, form)
    plain = form.channels in PICTURES and not form.order and not is_deep(data)
    return decode(data, form.channels) if plain else native(data)


def look(data: bytes | np.ndarray, form: Form) -> Stored:
    """Look at the head of an image; raises UnreadableImage if it is none."""
    if isinstance(data, bytes) and is_tiff(data):
        return Stored(*look_at_tiff(data, form))
    if isinstance(data, bytes) and is_dicom(data):
        return Stored(*look_at_dicom(data, form))
    if isinstance(data, np.ndarray) or data.startswith(NPY):
        pixels = channels_last(data if isinstance(data, np.ndarray) else read_npy(data), form.channels_first)
        return Stored(pixels.dtype.name, pixels.shape[2])
    kind = opener_of(data).format or ""
    if not is_deep_png(data):
        return Stored("uint8", 3, kind=kind)
    return Stored("uint16", {0: 1, 2: 3, 4: 1}.get(data[25], 4), kind=kind)


def read_page(data: bytes, number: int) -> np.ndarray:
    """Return one page of a TIFF, or one frame of a DICOM file, as `stored_pixels`."""
    return (read_dicom if is_dicom(data) else read_tiff)(data, Form(), number)


def size_of(data: bytes | np.ndarray, form: Form) -> tuple[int, int] | None:
    """Return the upright size (H, W) of an image if that needs no decoding: of JPEGs and arrays; else None."""
    if isinstance(data, bytes) and not data.startswith(NPY):
        return size_in_header(data)
    height, width, _ = channels_last(read_npy(data) if isinstance(data, bytes) else data, form.channels_first).shape
    return height, width


def values_of(data: bytes) -> int:
    """Count the values of an encoded image by its head, before it takes memory; raises UnreadableImage."""
    if data.startswith(NPY):
        return read_npy(data).size
    if is_tiff(data) and picture_in(data) is None:
        return values_of_tiff(data)
    if is_dicom(data):
        return values_of_dicom(data)
    opener = opener_of(data)
    try:
        image = opener(io.BytesIO(data))
    except Exception as error:  # on broken bytes Pillow's plugins raise nearly anything
        raise UnreadableImage(f"damaged {opener.format}: {error}") from None
    return image.width * image.height * len(image.getbands())


def is_picture(data: bytes) -> bool:
    """Return whether an encoded image is one that `decode` reads: of 8 bits, or 16 of grey, and 1, 3 or 4 bands."""
    return not is_array(data) or (is_tiff(data) and picture_in(data) is not None)


def is_deep(data: bytes) -> bool:
    """Return whether a picture has 16 bits."""
    image = picture_in(data) if is_tiff(data) else None
    return is_deep_png(data) if image is None else image.mode.startswith("I;16")


def is_array(data: bytes) -> bool:
    """Return whether a file is one of those that may have any type and number of bands."""
    return data.startswith(NPY) or is_tiff(data) or is_dicom(data)


def read_npy(data: bytes) -> np.ndarray:
    """Return the array of a .npy file, a view of its bytes where their order allows; raises UnreadableImage."""
    begin = 10 if data[6:7] == b"\x01" else 12
    start = begin + int.from_bytes(data[8:begin], "little")
    shape, fortran, dtype = _header(data[:start])
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) - start < count * dtype.itemsize:
        raise UnreadableImage(f"damaged .npy: its {dtype.name} {list(shape)} end after {len(data) - start:,} bytes")
    pixels = np.frombuffer(data, dtype, count, start)
    pixels = pixels.reshape(shape[::-1]).T if fortran else pixels.reshape(shape)
    return pixels if dtype.isnative else pixels.astype(dtype.newbyteorder("="))


@lru_cache(maxsize=64)  # all images of a source have the same, and to parse it takes longer than to read 64 pixels
def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        file = io.BytesIO(head)
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise UnreadableImage(f"damaged .npy: {error}") from None
    if dtype.hasobject or not dtype.itemsize:
        raise UnreadableImage("a .npy of Python objects; save an array of numbers")
    return shape, fortran, dtype


def channels_last(pixels: np.ndarray, channels_first: bool) -> np.ndarray:
    """Return an array [H, W] or [H, W, C], or [C, H, W] with `channels_first`, as [H, W, C]; raises UnreadableImage."""
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.ndim != 3 or not pixels.size:
        raise UnreadableImage(f"an array {list(pixels.shape)}; an image is [H, W] or [H, W, C]")
    bands = pixels.shape[0 if channels_first else 2]
    if bands > MOST_BANDS:
        other = pixels.shape[2 if channels_first else 0]
        flag = "leave --channels-first out" if channels_first else "give --channels-first"
        remedy = f"{flag} if that is the other way round" if other <= MOST_BANDS else "crop or split it"
        raise UnreadableImage(f"an array {list(pixels.shape)} of {bands} channels, of at most {MOST_BANDS}; {remedy}")
    return pixels.transpose(1, 2, 0) if channels_first else pixels
