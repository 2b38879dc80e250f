"""A part of a JPEG, by libjpeg-turbo 3 if it is installed (simplejpeg carries a copy that decodes whole ones only).

Pixels outside the part go through no inverse DCT and no colour conversion, and what lies below it is not read at all.
"""

import ctypes
import os
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

Box = tuple[int, int, int, int]  # top, left, height, width

# Numbers of turbojpeg.h, which are fixed for all of version 3.
_DECOMPRESS = 1
_WIDTH, _HEIGHT, _COLORSPACE, _SUBSAMPLING, _PROGRESSIVE = 5, 6, 8, 4, 12
_RGB_SPACE, _YCC_SPACE, _GRAY_SPACE = 0, 1, 2
_RGB, _GRAY = 0, 6
_MCU_WIDTH = (8, 16, 16, 8, 8, 32, 8)  # by subsampling: 444 422 420 grey 440 411 441

# Chroma is interpolated from its neighbours: without these pixels around it the edge of a part would differ.
_MARGIN = 2


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Load libjpeg-turbo 3: of the system, beside Python (conda), or the file in `MAEJAX_TURBOJPEG` ("": none)."""
    name = {"darwin": "libturbojpeg.dylib", "win32": "turbojpeg.dll"}.get(sys.platform, "libturbojpeg.so.0")
    places = [name, str(Path(sys.prefix, "lib", name)), f"/opt/homebrew/opt/jpeg-turbo/lib/{name}"]
    named = os.environ.get("MAEJAX_TURBOJPEG")
    for path in places if named is None else [named]:
        with suppress(OSError, AttributeError):  # not there; version 2
            found = ctypes.CDLL(path)
            _declare(found)
            return found
    return None


def _declare(found: ctypes.CDLL) -> None:
    handle, number, data = ctypes.c_void_p, ctypes.c_int, [ctypes.c_char_p, ctypes.c_size_t]
    found.tj3Init.argtypes, found.tj3Init.restype = [number], handle
    found.tj3Destroy.argtypes, found.tj3Destroy.restype = [handle], None
    found.tj3Get.argtypes = [handle, number]
    found.tj3DecompressHeader.argtypes = [handle, *data]
    found.tj3SetCroppingRegion.argtypes = [handle, _Region]
    found.tj3Decompress8.argtypes = [handle, *data, ctypes.c_void_p, number, number]


class _Decoder:
    def __init__(self, found: ctypes.CDLL):
        self.handle = found.tj3Init(_DECOMPRESS)
        self._destroy = found.tj3Destroy

    def __del__(self):
        self._destroy(self.handle)


_of_thread = threading.local()  # a decoder serves one call at a time, and ends with its thread


def decode_region(data: bytes, box: Box, channels: int, orientation: int = 1) -> np.ndarray | None:
    """Decode a part of a JPEG to the same bits that it has in the whole image.

    `box` (top, left, height, width) is of the upright image, `orientation` is the EXIF tag 1..8. Returns the part as it
    is stored, uint8 [H, W, C], C = 1 for `channels` 1 and a grey JPEG, else 3. Returns None if the whole file has to be
    decoded: there is no libjpeg-turbo 3, or the box is all of the image. So do JPEGs that are not baseline in RGB,
    YCbCr or grey, lack the end mark, or make libjpeg warn.
    """
    found = library()
    if found is None or not data.endswith(b"\xff\xd9"):
        return None
    if not hasattr(_of_thread, "decoder"):
        _of_thread.decoder = _Decoder(found)
    handle = _of_thread.decoder.handle
    if found.tj3DecompressHeader(handle, data, len(data)):
        return None
    space, subsampling = found.tj3Get(handle, _COLORSPACE), found.tj3Get(handle, _SUBSAMPLING)
    if space not in (_RGB_SPACE, _YCC_SPACE, _GRAY_SPACE) or not 0 <= subsampling < len(_MCU_WIDTH):
        return None
    if found.tj3Get(handle, _PROGRESSIVE):  # scans refine each other; libjpeg smooths over missing ones
        return None
    stored = found.tj3Get(handle, _HEIGHT), found.tj3Get(handle, _WIDTH)
    top, left, height, width = _stored_box(box, stored, orientation)
    if (height, width) == stored:
        return None
    x = max(0, left - _MARGIN) // _MCU_WIDTH[subsampling] * _MCU_WIDTH[subsampling]
    y = max(0, top - _MARGIN)
    right, bottom = min(left + width + _MARGIN, stored[1]), min(top + height + _MARGIN, stored[0])
    if found.tj3SetCroppingRegion(handle, _Region(x, y, right - x, bottom - y)):
        return None
    grey = space == _GRAY_SPACE and channels == 1
    pixels = np.empty((bottom - y, right - x, 1 if grey else 3), np.uint8)
    if found.tj3Decompress8(handle, data, len(data), pixels.ctypes.data, 0, _GRAY if grey else _RGB):
        return None
    return pixels[top - y : top - y + height, left - x : left - x + width]


def _stored_box(box: Box, stored: tuple[int, int], orientation: int) -> Box:
    """Find a box of the upright image in the stored one, whose size (H, W) is given."""
    top, left, height, width = box
    upright = stored if orientation < 5 else stored[::-1]
    if orientation in (2, 3, 6, 7):
        left = upright[1] - left - width
    if orientation in (3, 4, 7, 8):
        top = upright[0] - top - height
    return (left, top, width, height) if orientation >= 5 else (top, left, height, width)
