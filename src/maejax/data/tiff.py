"""TIFFs that Pillow misreads, told by their tags: refused, or put right."""

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from maejax.errors import UnreadableImage

_SUBFILE, _BITS, _PHOTOMETRIC, _BANDS, _PLANAR, _FORMAT = 254, 258, 262, 277, 284, 339
_REDUCED, _MASK = 1, 4  # bits of the tag _SUBFILE: smaller copies and masks of the page before
_SIGNED = 2
_INTERLEAVED, _WHITE_IS_ZERO = 1, 0


def check_tiff(image: TiffImageFile, channels: int) -> None:
    """Check that Pillow reads all of a TIFF that was opened; raises UnreadableImage with the reason if not."""
    tags = image.tag_v2
    bands, bits = tags.get(_BANDS, 1), tags.get(_BITS, (1,))
    if bands > 1 and max(bits) > 8 and tags.get(_PLANAR, _INTERLEAVED) != _INTERLEAVED:
        raise UnreadableImage(f"a TIFF with {max(bits)}-bit bands in separate planes; save it with interleaved bands")
    if _SIGNED in tags.get(_FORMAT, ()):
        raise UnreadableImage("a TIFF of signed numbers, whose black is not known; save it with unsigned ones")
    read = len(image.getbands())
    if bands > read and (bands, channels) not in ((4, 1), (4, 3)):  # a fourth one is dropped as alpha is
        raise UnreadableImage(
            f"a TIFF with {bands} bands, of which {bands - read} are no colour and no alpha; put them into a .npz"
        )
    pages = [image.seek(page) or image.tag_v2.get(_SUBFILE, 0) for page in range(1, image.n_frames)]
    if full := sum(not kind & (_REDUCED | _MASK) for kind in pages):
        raise UnreadableImage(f"a TIFF with {full + 1} pages; save each as a file of its own")
    image.seek(0)


def scale_grey(image: Image.Image) -> np.ndarray:
    """Scale grey pixels of up to 16 bits to 0..255, black to white: uint8 [H, W]."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    white = 2 ** tags.get(_BITS, (16,))[0] - 1
    pixels = ((np.asarray(image).astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    return 255 - pixels if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else pixels
