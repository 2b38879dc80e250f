"""The form in which the pixels of a source are read: their type, their bands, and what a file leaves open."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from maejax.errors import InputError

TYPES = ("uint8", "uint16", "int16", "float16", "float32")
MOST_BANDS = 64


class Form(NamedTuple):
    """How images become pixels [H, W, C]; the default is that of 8-bit pictures.

    `image_type` is one of `TYPES`, or "auto" before `agree` has seen the images. `fits` allows images of other types:
    `values.as_type` has the rules. `order` are the numbers of the bands to take, () for all. `names` are those of the
    bands in the files, () if unknown, and `bands` those that were asked for. `first` names the image that decided.
    `no_data` is the value of missing pixels in the files; in floats they become NaN.
    """

    channels: int = 3
    image_type: str = "uint8"
    fits: bool = True
    value_range: tuple[float, ...] = ()
    channels_first: bool = False
    pages: str = ""
    dicom_range: str = "full"
    no_data: float | None = None
    bands: tuple[str, ...] = ()
    order: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    first: str = ""

    @property
    def dtype(self) -> np.dtype:
        """The type of the pixels."""
        return np.dtype(self.image_type)

    @property
    def of_pictures(self) -> bool:
        """True if 8-bit pictures have this form as they are decoded."""
        return self.image_type == "uint8" and not self.order and self.no_data is None

    @property
    def chosen(self) -> tuple[str, ...]:
        """The names of the bands of an image: those asked for, else those of the files, () if unknown."""
        return self.bands or self.names

    def describe(self) -> str:
        """Describe the pixels in a phrase."""
        names = f" ({', '.join(self.chosen)})" if self.chosen else ""
        missing = "" if self.no_data is None else f", missing where {self.no_data:g}"
        return f"{self.image_type}, {self.channels} channel{'s' * (self.channels != 1)}{names}{missing}"


def asked_form(flags: Any, channels: int) -> Form:
    """Return the form that flags ask for: an object with the fields of `config.Pixels`.

    Raises InputError for a value that no image can have.
    """
    span, bands = tuple(flags.value_range), split_bands(flags.bands)
    if span and (len(span) != 2 or not span[0] < span[1]):
        raise InputError(f"--value-range {' '.join(f'{v:g}' for v in span)}: give two numbers, the smaller first")
    if span and flags.image_type != "uint8":
        raise InputError("--value-range says what --image-type uint8 makes 0 and 255: give that too, or leave it out")
    if len(bands) > MOST_BANDS or not 1 <= channels <= MOST_BANDS:
        raise InputError(f"--channels {len(bands) or channels}: images have 1 to {MOST_BANDS}")
    form = Form(
        channels=len(bands) or channels,
        image_type=flags.image_type,
        fits=flags.image_type != "auto",
        value_range=span,
        channels_first=flags.channels_first,
        pages=flags.pages,
        dicom_range=flags.dicom_range,
        no_data=number_of(flags.no_data),
        bands=bands,
    )
    if form.image_type != "auto":
        check_no_data(form)
    return form


def form_for(encoder: Any, flags: Any) -> Form:
    """Return the form of the images that a model takes, by the description of its encoder, and by flags.

    Raises InputError if the flags ask for something else.
    """
    asked = asked_form(flags, encoder.channels)
    if flags.image_type not in ("auto", encoder.image_type):
        raise InputError(f"--image-type {flags.image_type}: the model takes {encoder.image_type}; leave it out")
    if asked.channels != encoder.channels:
        raise InputError(f"--bands {flags.bands}: the model takes {encoder.channels} bands")
    if flags.no_data and not encoder.image_type.startswith("float") and asked.no_data != encoder.no_data:
        own = "no pixel is missing" if encoder.no_data is None else f"{encoder.no_data:g} is"
        raise InputError(f"--no-data {flags.no_data}: for the model {own}; leave it out")
    bands = asked.bands or encoder.bands
    no_data = asked.no_data if flags.no_data else encoder.no_data
    return asked._replace(image_type=encoder.image_type, bands=bands, names=encoder.bands, no_data=no_data)


def number_of(no_data: str) -> float | None:
    """Read a value of `--no-data`: a number, None for an empty one; raises InputError for other text."""
    try:
        return float(no_data) if no_data else None
    except ValueError:
        raise InputError(f"--no-data {no_data}: give a number") from None


def split_bands(text: str) -> tuple[str, ...]:
    """Split a value of `--bands`: names or numbers with commas between."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def check_no_data(form: Form) -> None:
    """Check that pixels can have the value of missing ones; raises InputError if not."""
    if form.no_data is None or form.dtype.kind == "f":
        return
    limits = np.iinfo(form.dtype)
    if not (limits.min <= form.no_data <= limits.max and float(form.no_data).is_integer()):
        raise InputError(f"--no-data {form.no_data:g}: no pixel of {form.image_type} has this value; leave it out")


def choose_bands(wanted: Sequence[str], names: Sequence[str], count: int, flag: str = "--bands") -> tuple[int, ...]:
    """Find bands by name, or by their number from 0 on, among `count`; raises InputError for one that is not there."""
    order = []
    for name in wanted:
        if name in names:
            order.append(list(names).index(name))
        elif name.isdecimal() and int(name) < count:
            order.append(int(name))
        else:
            there = f"{', '.join(names)}, or " if names else ""
            raise InputError(f"{flag} {name}: the images have {there}the numbers 0 to {count - 1}")
    return tuple(order)
