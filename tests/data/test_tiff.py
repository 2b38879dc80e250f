"""TIFFs that Pillow reads wrongly or in part: right pixels, or a refusal that says why."""

import struct

import numpy as np
import pytest

from maejax.data.decode import decode
from maejax.errors import UnreadableImage

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
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize(
    ("data", "channels", "words"),
    [
        (tiff(SIXTEEN[..., :3], planar=True), 3, "16-bit bands in separate planes; save it with interleaved"),
        (tiff(EIGHT[..., :4], extra=[0]), 4, "4 bands, of which 1 are no colour and no alpha"),
        (tiff(EIGHT, extra=[0, 0]), 3, "5 bands, of which 2 are no colour and no alpha"),
        (tiff(EIGHT, extra=[0, 0], planar=True), 3, "a kind of TIFF that is not read here"),
        (tiff((RAMP[..., :1] - 60).astype(np.int8)), 3, "signed numbers"),
        (tiff((RAMP[..., :1] - 60).astype(np.int16)), 3, "signed numbers"),
        (tiff(RAMP[..., :3].astype(np.float32)), 3, "a kind of TIFF that is not read here"),
        (tiff(EIGHT[..., :1], pages=3), 3, "3 pages; save each as a file"),
    ],
    ids=["planes", "fourth band", "five", "five planes", "int8", "int16", "float", "stack"],
)
def test_what_cannot_be_read_says_why(data, channels, words):
    with pytest.raises(UnreadableImage, match=words):
        decode(data, channels)
