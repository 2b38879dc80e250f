"""The flags of every command that reads images, on how files become pixels; the docstrings are their help text."""

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How the files of images become pixels."""

    image_type: Literal["auto", "uint8", "uint16", "int16", "float16", "float32"] = "auto"
    """Type of the pixels. auto: that of the first images; all must have it. A type given takes all that fit: float32
    any numbers, uint8 by --value-range."""
    value_range: tuple[float, ...] = ()
    """For --image-type uint8: the two values that become 0 and 255. Empty: the ends of an integer type, 0 and 1."""
    channels_first: bool = False
    """Arrays are C x H x W, as PyTorch has them."""
    pages: Literal["", "bands", "images"] = ""
    """What pages of a TIFF and frames of a DICOM file are: bands of one image, or images. Empty: an error."""
    dicom_range: Literal["full", "window"] = "full"
    """full: all values of a DICOM file, rescaled by its slope and intercept. window: the file's window as 0..255."""
    bands: str = ""
    """Bands to take, in this order: names or numbers from 0 on, with commas between (B04,B03,B02). Empty: all."""
    no_data: str = ""
    """Value of missing pixels, which enter neither statistics nor loss; nor do floats that are NaN. Empty: none."""


PIXEL_FLAGS = tuple(each.name for each in fields(Pixels))
