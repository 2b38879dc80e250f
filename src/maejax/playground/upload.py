"""A picture that a visitor sends: from its bytes to pixels, within bounds, in memory alone."""

from dataclasses import dataclass

import numpy as np

from maejax.data.agreement import agree
from maejax.data.arrays import read_pixels, values_of
from maejax.data.form import Form
from maejax.data.sources import Source
from maejax.errors import InputError, UnreadableImage

MOST_BYTES = 64 * 2**20
MOST_VALUES = 200_000_000  # pixels times channels: 66 megapixels in colour


@dataclass(eq=False)
class Upload(Source):
    """One encoded image that no file holds."""

    data: bytes

    def stored(self, i: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the encoded image."""
        return self.data


def read_upload(data: bytes, name: str, asked: Form) -> np.ndarray:
    """Read an image as pixels [H, W, C] of the form that a model takes.

    Raises InputError, with one sentence that names the image, if it is damaged, of another form, or larger than
    `MOST_VALUES` once it is decoded.
    """
    name = name or "the picture"
    try:
        if not data:
            raise UnreadableImage("the file is empty")
        if (count := values_of(data)) > MOST_VALUES:
            raise UnreadableImage(f"it unpacks to {count:,} values, more than {MOST_VALUES:,}; make it smaller")
        form = agree(Upload([name], np.full(1, -1, np.int32), (), [], data=data), asked)
        return read_pixels(data, form)
    except UnreadableImage as error:
        raise InputError(f"{name} cannot be read: {error}") from None
    except MemoryError:
        raise InputError(f"{name} cannot be read: it takes more memory than there is; make it smaller") from None
