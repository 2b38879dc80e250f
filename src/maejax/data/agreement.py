"""The form on which the images of a source agree: found out from a few of them before any work is done."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

import numpy as np

from maejax.data.arrays import Stored, look
from maejax.data.form import TYPES, Form, check_no_data, choose_bands
from maejax.data.listing import ByteRange
from maejax.data.sources import ArraySource, FileSource, Source
from maejax.data.stream import Stream, first_images
from maejax.errors import InputError, UnreadableImage

LOOKED_AT = 16  # images, spread over the source


def agree(source: Source | Stream, asked: Form) -> Form:
    """Find the form of a source's images from what was asked for and from some of them, and set it as `source.form`.

    "auto" becomes the type of the first image, and three channels, unless it is a picture of 8 bits, the number of its
    bands. With pages as images, files become as many images as they have pages. Raises InputError if images differ in
    type, or lack a band that was asked for.
    """
    if asked.pages == "images":
        split_pages(source, asked)
    if isinstance(source, ArraySource):
        check_axes(source, asked)
    found = list(_heads(source, asked))
    if not found:  # the first attempt to read them says why
        source.form = asked._replace(image_type="uint8" if asked.image_type == "auto" else asked.image_type)
        return source.form
    key, first = found[0]
    for other, stored in found:
        if stored.image_type != first.image_type and asked.image_type == "auto":
            raise InputError(
                f"{other} holds {stored.image_type}, and {key} {first.image_type}: give --image-type float32 to keep "
                "all values, or --image-type uint8 to scale them to 8 bits"
            )
        if not asked.fits and asked.image_type not in ("auto", stored.image_type):
            raise InputError(
                f"{other} holds {stored.image_type}, and {asked.image_type} is needed: give --image-type "
                f"{asked.image_type} to turn all into that"
            )
    if first.pages > 1 and not asked.pages:
        raise InputError(
            f"{key} has {first.pages} pages: give --pages bands to read them as bands of one image, or --pages images"
        )
    kind = first.image_type if asked.image_type == "auto" else asked.image_type
    if kind not in TYPES:
        raise InputError(
            f"{key} holds {kind}, which is none of {', '.join(TYPES)}: give --image-type float32, which rounds to 24 "
            "bits, or --image-type uint8, which scales"
        )
    names = first.names or source.names
    # A picture may be grey, and its head does not say so: it has as many bands as are asked for.
    picture = first.image_type == "uint8" and first.kind not in ("array", "DICOM") and first.bands == 3
    count = asked.channels if picture and not asked.bands else first.bands
    if names and len(names) != count:
        raise InputError(f"{key} has {count} bands, and {len(names)} names are given: {', '.join(names)}")
    names = names or (asked.names if len(asked.names) == count else ())
    channels, order, bands = asked.channels, (), asked.bands
    if bands:
        order = choose_bands(bands, names, first.bands)
        bands = tuple(names[i] if names else band for band, i in zip(bands, order, strict=True))
        order = () if order == tuple(range(first.bands)) else order
    elif channels == 3 and (kind != "uint8" or first.bands not in (1, 3, 4)):
        channels = first.bands
    form = asked._replace(image_type=kind, channels=channels, order=order, bands=bands, names=names, first=key)
    check_no_data(form)
    source.form = form
    return form


def check_axes(source: ArraySource, asked: Form) -> None:
    """Check that the channels of arrays are where the flags say; raises InputError if not."""
    shape = source.images.shape
    if len(shape) == 4 and not asked.channels_first and shape[1] in (1, 3, 4) and min(shape[2:]) > 4:
        place = source.keys[0].rpartition(":")[0]
        raise InputError(
            f"{place}: images are {list(shape)}, channels first; give --channels-first, or save "
            "images.transpose(0, 2, 3, 1)"
        )


def split_pages(source: Source | Stream, asked: Form) -> None:
    """Make an image of every page of the TIFFs of a source, and of every frame of its DICOM files."""
    if isinstance(source, Stream):
        raise InputError("--pages images needs files here: pack them first with `maejax pack --pages images`")
    if not isinstance(source, FileSource):
        return
    pages = np.ones(len(source), np.int64)
    for i in range(len(source)):
        if source.keys[i].lower().endswith((".tif", ".tiff", ".dcm")):
            _, stored = next(_heads(source, asked, [i]), (None, Stored("", 0)))
            pages[i] = stored.pages
    of = np.repeat(np.arange(len(source)), pages)
    number = np.arange(len(of)) - np.repeat(np.cumsum(pages) - pages, pages)
    source.page = np.where(pages[of] > 1, number, -1).astype(np.int32)
    names = zip(of.tolist(), source.page.tolist(), strict=True)
    source.keys = [source.keys[i] + (f"[{page}]" if page >= 0 else "") for i, page in names]
    for column in ("labels", "file", "offset", "size"):
        setattr(source, column, getattr(source, column)[of])


def _heads(source: Source | Stream, asked: Form, numbers: list[int] | None = None) -> Iterator[tuple[str, Stored]]:
    """Yield key and head of some images of a source, without those that cannot be read."""
    if isinstance(source, Stream):
        for key, image in islice(first_images(source, []), LOOKED_AT):
            with suppress(OSError, UnreadableImage):
                source.seen.append((key, image.read() if isinstance(image, ByteRange) else image))
        images = iter(source.seen)
    else:
        spread = np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int).tolist()
        images = ((source.keys[i], source.stored(i)) for i in (spread if numbers is None else numbers))
    for key, image in images:
        try:
            yield key, look(image.read() if isinstance(image, ByteRange) else image, asked)
        except (UnreadableImage, OSError):
            continue
