"""TIFFs of every type and layout: right pixels, or a refusal that says why."""

import io
import struct

import numpy as np
import pytest
import tifffile

from maejax.data.agreement import agree
from maejax.data.arrays import read_pixels
from maejax.data.form import Form
from maejax.data.listing import ByteRange
from maejax.data.sources import Source, open_source
from maejax.errors import InputError, UnreadableImage

RAMP = np.arange(4 * 6 * 5).reshape(4, 6, 5) * 2
EIGHT, SIXTEEN = RAMP.astype(np.uint8), (RAMP * 257).astype(np.uint16)


def tiff(pixels, *, black=1, planar=False, extra=(), big=False, pages=1, kind=0):
    """Write pixels [H, W, C] as a TIFF; `kind` is the NewSubfileType of the pages after the first."""
    height, width, bands = pixels.shape
    strips = [pixels[..., k].tobytes() for k in range(bands)] if planar else [pixels.tobytes()]
    word, at = ("Q", 8) if big else ("I", 4)
    out = bytearray(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if big else struct.pack("<2sHI", b"II", 42, 8))
    for page in range(pages):
        places = [len(out) + sum(map(len, strips[:k])) for k in range(len(strips))]
        out += b"".join(strips)
        tags = {
            256: ("H", [width]), 257: ("H", [height]), 258: ("H", [pixels.itemsize * 8] * bands), 259: ("H", [1]),
            262: ("H", [2 if bands > 2 else black]), 273: (word, places), 277: ("H", [bands]), 278: ("H", [height]),
            279: (word, [len(strip) for strip in strips]), 284: ("H", [1 + planar]),
            339: ("H", ["_uif".index(pixels.dtype.kind)] * bands),
        } | ({254: ("I", [kind])} if page else {}) | ({338: ("H", extra)} if extra else {})  # fmt: skip
        entries = b""
        for tag, (form, values) in sorted(tags.items()):
            data = struct.pack(f"<{len(values)}{form}", *values)
            if len(data) > struct.calcsize(f"<{word}"):
                data, out = struct.pack(f"<{word}", len(out)), out + data
            number = {"H": 3, "I": 4, "Q": 16}[form]
            entries += struct.pack(f"<HH{word}", tag, number, len(values)) + data.ljust(8 if big else 4, b"\0")
        struct.pack_into(f"<{word}", out, at, len(out))
        out += struct.pack("<Q" if big else "<H", len(tags)) + entries
        at, out = len(out), out + bytes(8)
    return bytes(out)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(EIGHT[..., :3]), EIGHT[..., :3]),
        (tiff(EIGHT[..., :3], planar=True), EIGHT[..., :3]),
        (tiff(EIGHT[..., :3], big=True), EIGHT[..., :3]),
        (tiff(SIXTEEN[..., :3]), EIGHT[..., :3]),
        (tiff(SIXTEEN[..., :1]), EIGHT[..., [0, 0, 0]]),
        (tiff(SIXTEEN[..., :1], black=0), 255 - EIGHT[..., [0, 0, 0]]),
        (tiff(EIGHT[..., :1], black=0), 255 - EIGHT[..., [0, 0, 0]]),
        (tiff(EIGHT[..., :4], extra=[0]), EIGHT[..., :3]),
        (tiff(EIGHT[..., :1], pages=3, kind=1), EIGHT[..., [0, 0, 0]]),
    ],
    ids=["8", "planes", "big", "16", "grey 16", "white 16", "white 8", "fourth band", "smaller copies"],
)
def test_what_is_read_has_the_right_pixels(data, expected):
    np.testing.assert_array_equal(read_pixels(data, Form()), expected)


def stored(data, **form):
    return read_pixels(data, agree(source_of(data), Form(image_type="auto", fits=False, **form)))


def source_of(*files):
    source = Source([f"{i}.tif" for i in range(len(files))], np.full(len(files), -1), (), [])
    source.stored = lambda i: type("File", (ByteRange,), {"read": lambda self: files[i]})("", 0, -1)
    return source


@pytest.mark.parametrize("options", [{}, {"planar": True}, {"big": True}], ids=["", "planes", "BigTIFF"])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float16", "float32"])
def test_every_type_and_layout_is_read_as_it_is(kind, options):
    pixels = (RAMP - 60 * (kind == "int16")).astype(kind)
    found = stored(tiff(pixels, extra=[0, 0], **options))
    assert found.dtype == kind
    np.testing.assert_array_equal(found, pixels)


def test_tiles_compression_and_names_are_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 10_000, (48, 40, 13), np.uint16)
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{i}" role="description">B{i:02d}</Item>' for i in reversed(range(13))
    )
    gdal = [(42112, "s", 0, f"<GDALMetadata>{items}</GDALMetadata>", True)]
    for planar in ("contig", "separate"):
        moved = pixels if planar == "contig" else pixels.transpose(2, 0, 1)
        file = io.BytesIO()
        layout = {"planarconfig": planar, "tile": (16, 16), "compression": "zlib", "predictor": True}
        tifffile.imwrite(file, moved, photometric="minisblack", extratags=gdal, metadata=None, **layout)
        source = source_of(file.getvalue())
        form = agree(source, Form(image_type="auto", fits=False, bands=("B03", "B12", "0"), channels=3))
        assert (form.names[12], form.chosen, form.order) == ("B12", ("B03", "B12", "B00"), (3, 12, 0))
        np.testing.assert_array_equal(read_pixels(file.getvalue(), form), pixels[..., [3, 12, 0]])
        other = form._replace(names=form.names[::-1], first="first.tif")
        with pytest.raises(UnreadableImage, match=r"has the bands B00, .*, and first\.tif B12, "):
            read_pixels(file.getvalue(), other)
        with pytest.raises(InputError, match="--bands B99: the images have B00, B01"):
            agree(source, Form(image_type="auto", bands=("B99",)))


def test_pages_are_bands_or_images_or_an_error(tmp_path):
    pages = np.random.default_rng(0).integers(0, 65535, (3, 8, 6), np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    data = (tmp_path / "stack.tif").read_bytes()
    np.testing.assert_array_equal(stored(data, pages="bands"), pages.transpose(1, 2, 0))
    with pytest.raises(InputError, match=r"0\.tif has 3 pages: give --pages bands"):
        stored(data)
    source = open_source(str(tmp_path))
    form = agree(source, Form(image_type="auto", pages="images"))
    assert len(source) == 3 and source.keys[1].endswith("stack.tif[1]")
    np.testing.assert_array_equal(read_pixels(source.read(2), form)[..., 0], pages[2])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(EIGHT[..., :1], pages=3), "3 pages: give --pages bands"),
        (tiff(SIXTEEN)[:200], "damaged TIFF"),
        (tiff((RAMP[..., :1] - 60).astype(np.int8)), "holds int8, which is none of uint8"),
    ],
    ids=["stack", "cut", "int8"],
)
def test_what_cannot_be_read_says_why(data, words):
    with pytest.raises((UnreadableImage, InputError), match=words):
        stored(data)


def test_compression_that_needs_another_package_is_named():
    file = io.BytesIO()
    tifffile.imwrite(file, SIXTEEN, photometric="minisblack", planarconfig="contig", metadata=None)
    data = bytearray(file.getvalue())
    at = data.index(bytes([3, 1, 3, 0]))  # the tag of compression
    data[at + 8 : at + 10] = (5).to_bytes(2, "little")
    with pytest.raises(UnreadableImage, match="LZW compression, which needs the package imagecodecs"):
        stored(bytes(data))
