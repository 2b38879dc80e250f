"""TIFFs of any type, number of bands and pages, by `tifffile`; 8-bit pictures and 16-bit grey are left to Pillow."""

import io
import logging
import re
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from maejax.data.form import MOST_BANDS, Form
from maejax.data.values import upright
from maejax.errors import UnreadableImage

_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _BANDS, _FORMAT = 254, 258, 259, 262, 277, 339
_ORIENTATION, _GDAL = 274, 42112
_REDUCED, _MASK = 1, 4  # bits of the tag _SUBFILE: smaller copies and masks of the page before
_WHITE_IS_ZERO = 0
_PLAIN, _DEFLATE = 1, (8, 32946)  # values of the tag _COMPRESSION
_NAME = re.compile(r'<Item name="DESCRIPTION" sample="(\d+)" role="description">([^<]*)</Item>')
_CHANNEL = re.compile(r'<Channel [^>]*Name="([^"]*)"')
_NEEDS = "needs the package imagecodecs (pip install imagecodecs); or save it without compression or with DEFLATE"


def is_picture(image: TiffImageFile) -> bool:
    """Return whether Pillow reads all of an opened TIFF, and rightly: one page of 8-bit colours, or of 16-bit grey."""
    tags = image.tag_v2
    bands, bits = tags.get(_BANDS, 1), tags.get(_BITS, (1,))
    if set(tags.get(_FORMAT, (1,))) - {1} or (max(bits) > 8 and not (bands == 1 and image.mode.startswith("I;16"))):
        return False
    if bands > len(image.getbands()):
        return False
    pages = [image.seek(page) or image.tag_v2.get(_SUBFILE, 0) for page in range(1, image.n_frames)]
    image.seek(0)
    return all(kind & (_REDUCED | _MASK) for kind in pages)


def scale_grey(image: Image.Image) -> np.ndarray:
    """Scale grey pixels of up to 16 bits to 0..255, black to white: uint8 [H, W]."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    white = 2 ** tags.get(_BITS, (16,))[0] - 1
    return ((grey(image).astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def grey(image: Image.Image) -> np.ndarray:
    """Return the values of a grey picture of up to 16 bits, black the smallest: uint16 [H, W]."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    pixels = np.asarray(image).astype(np.uint16)
    white = np.uint16(2 ** tags.get(_BITS, (16,))[0] - 1)
    return white - pixels if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else pixels


def read_tiff(data: bytes, form: Form, page: int = -1) -> np.ndarray:
    """Read a TIFF as its file has it: [H, W, B] of any type, upright; of several pages `page`, or all as bands.

    Raises UnreadableImage with the reason if that is not possible.
    """
    with _opened(data) as tif:
        pages = _pages(tif)
        if page >= 0:
            pages = pages[page : page + 1]
        elif len(pages) > 1 and form.pages != "bands":
            raise UnreadableImage(
                f"a TIFF with {len(pages)} pages: give --pages bands to read them as the bands of one image, or "
                "--pages images"
            )
        if len({(each.shape, each.dtype, each.axes) for each in pages}) > 1:
            raise UnreadableImage("a TIFF with pages of several sizes or types; save each as a file of its own")
        if form.names and (own := _names(tif, pages)) and own != form.names:
            raise UnreadableImage(f"has the bands {', '.join(own)}, and {form.first} {', '.join(form.names)}")
        try:
            parts = [_bands_last(each.asarray(), each.axes) for each in pages]
        except UnreadableImage:
            raise
        except Exception as error:  # on broken bytes it raises nearly anything
            method = getattr(pages[0].compression, "name", pages[0].compression)
            if "imagecodecs" in str(error):
                raise UnreadableImage(f"a TIFF with {method} compression, which {_NEEDS}") from None
            raise UnreadableImage(f"damaged TIFF: {error}") from None
        pixels = np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
        if pages[0].photometric == _WHITE_IS_ZERO and pixels.dtype.kind == "u":
            pixels = np.iinfo(pixels.dtype).max - pixels
        tag: Any = pages[0].tags.get(_ORIENTATION)
        return upright(pixels, tag.value if tag is not None else 1)


def look_at_tiff(data: bytes, form: Form) -> tuple[str, int, tuple[str, ...], int, str]:
    """Look at the tags of a TIFF: its type, bands, their names, pages, and "TIFF"; of Pillow's kinds as it reads them.

    Raises UnreadableImage if it is damaged.
    """
    if (image := picture_in(data)) is not None:
        deep = image.mode.startswith("I;16")
        return "uint16" if deep else "uint8", 1 if deep else 3, (), 1, "TIFF"
    with _opened(data) as tif:
        pages = _pages(tif)
        sizes = dict(zip(pages[0].axes, pages[0].shape, strict=True))
        bands = sizes.get("S", 1) * (len(pages) if form.pages == "bands" else 1)
        names = _names(tif, pages)
        return str(pages[0].dtype), bands, names if len(names) == bands else (), len(pages), "TIFF"


def values_of_tiff(data: bytes) -> int:
    """Count the values of all pages of a TIFF by its tags.

    Raises UnreadableImage if a part unpacks to more than the tags say, and for other compression than DEFLATE.
    """
    with _opened(data) as tif:
        pages = _pages(tif)
        for page in pages:
            if page.compression == _PLAIN:
                continue
            if page.compression not in _DEFLATE:
                raise UnreadableImage("a TIFF with compression; save it without, or with DEFLATE")
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                with suppress(zlib.error):  # reading it says what is wrong
                    # The parts at the border may be whole tiles.
                    most = page.nbytes + page.tilewidth * page.tilelength * page.samplesperpixel * 8 + 1
                    if len(zlib.decompressobj().decompress(data[offset : offset + count], most)) == most:
                        raise UnreadableImage("damaged TIFF: a part holds more than its page")
        return sum(page.size for page in pages)


def picture_in(data: bytes) -> TiffImageFile | None:
    """Open a TIFF as a picture; None if Pillow does not read all of it, see `is_picture`."""
    logging.getLogger("PIL.TiffImagePlugin").disabled = True  # it complains of what is left to tifffile
    try:
        image = TiffImageFile(io.BytesIO(data))
        return image if is_picture(image) else None
    except Exception:  # tifffile says what is wrong with it
        return None


def _opened(data: bytes) -> Any:
    from tifffile import TiffFile

    logging.getLogger("tifffile").disabled = True  # what matters raises
    try:
        tif = TiffFile(io.BytesIO(data))
        if not len(tif.pages):
            raise ValueError("it has no page")
        return tif
    except Exception as error:
        raise UnreadableImage(f"damaged TIFF: {error}") from None


def _pages(tif: Any) -> list[Any]:
    """Return the pages of a TIFF without smaller copies and masks."""
    try:
        pages = [tif.pages[number] for number in range(len(tif.pages))]
        full = [page for page in pages if not page.subfiletype & (_REDUCED | _MASK)] or pages[:1]
    except Exception as error:
        raise UnreadableImage(f"damaged TIFF: {error}") from None
    if full[0].dtype is None:
        raise UnreadableImage(f"a TIFF of {full[0].bitspersample}-bit values, which are no type of numbers")
    return full


def _bands_last(pixels: np.ndarray, axes: str) -> np.ndarray:
    if axes == "YX":
        return pixels[..., None]
    if sorted(axes) != ["S", "X", "Y"]:
        raise UnreadableImage(f"a TIFF with the axes {axes}, a volume; save its layers as pages")
    last = np.moveaxis(pixels, axes.index("S"), -1)
    if last.shape[2] > MOST_BANDS:
        raise UnreadableImage(f"a TIFF with {last.shape[2]} bands, of at most {MOST_BANDS}")
    return last


def _names(tif: Any, pages: list[Any]) -> tuple[str, ...]:
    """Return the names of the bands, by the metadata of GDAL, OME or ImageJ; () if they do not name all."""
    sizes = dict(zip(pages[0].axes, pages[0].shape, strict=True))
    count, tag = sizes.get("S", 1) * len(pages), pages[0].tags.get(_GDAL)
    names = [name for _, name in sorted((int(i), name) for i, name in _NAME.findall(tag.value if tag else ""))]
    names = names or _CHANNEL.findall(tif.ome_metadata or "") or (tif.imagej_metadata or {}).get("Labels", [])
    names = tuple(str(name).replace(",", " ").strip() for name in names)
    return names if len(names) == count and all(names) and len(set(names)) == count else ()
