import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageOps

from maejax.data import decode as decode_module
from maejax.data import turbojpeg
from maejax.data.decode import decode, size_in_header
from maejax.errors import UnreadableImage


def by_pillow(data, mode="RGB"):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert(mode))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_formats_and_channels_equal_pillow(photo, encode, format):
    for data in (encode(photo, format), encode(photo[..., 0], format)):
        np.testing.assert_array_equal(decode(data), by_pillow(data))
        np.testing.assert_array_equal(decode(data, 1)[..., 0], by_pillow(data, "L"))
        np.testing.assert_array_equal(decode(data, 4), by_pillow(data, "RGBA"))


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"progressive": True}, {"keep_rgb": True}, {"quality": 20}])
def test_jpegs_of_every_kind_equal_pillow(photo, encode, options):
    data = encode(photo, "JPEG", **options)
    np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_colour_models_equal_pillow(photo, encode):
    rgba = np.dstack([photo, photo[..., :1]])
    palette = Image.fromarray(photo).quantize(16)
    for data in (
        encode(Image.fromarray(photo).convert("CMYK"), "JPEG"),
        encode(rgba),
        encode(rgba, "WEBP", lossless=True),
        encode(palette),
        encode(palette, "GIF"),
        encode(Image.fromarray(photo).convert("1")),
        encode(Image.fromarray(photo).convert("LA")),
    ):
        np.testing.assert_array_equal(decode(data), by_pillow(data))
        assert decode(data, 1).shape == (300, 400, 1)
        assert decode(data, 4).shape == (300, 400, 4)


def test_transparent_palettes_keep_their_colours_without_a_warning(photo, encode):
    palette = Image.fromarray(photo).quantize(16)
    data = encode(palette, transparency=bytes(range(0, 160, 10)))
    np.testing.assert_array_equal(decode(data), np.asarray(palette.convert("RGB")))
    assert decode(data, 4)[..., 3].max() == 150


def test_alpha_is_dropped_not_blended(encode):
    data = encode(np.full((2, 2, 4), (200, 100, 50, 0), np.uint8))
    assert decode(data).tolist() == [[[200, 100, 50]] * 2] * 2


def test_16_bit_grey_is_scaled(encode):
    data = encode(np.array([[0, 200, 32768, 65535]], np.uint16))
    assert decode(data, 1)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert decode(data)[0, 2].tolist() == [128] * 3
    with pytest.raises(UnreadableImage, match="of other bands or types"):
        decode(encode(np.ones((2, 2), np.float32), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(photo, encode, orientation, format):
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(photo, format, exif=exif)
    np.testing.assert_array_equal(decode(data), by_pillow(data))
    assert decode(data).flags.c_contiguous


def test_broken_exif_is_ignored_without_a_warning(photo, encode):
    data = encode(photo, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01")
    assert decode(data).shape == photo.shape


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_cut_images_are_refused(photo, encode, format):
    data = encode(photo, format)
    for length in (20, len(data) // 2, len(data) - 40):
        with pytest.raises(UnreadableImage, match=rf"damaged {format}: \w"):
            decode(data[:length])


def test_a_cut_jpeg_with_an_end_mark_is_refused(photo, encode):
    data = encode(photo, "JPEG")
    half = data[: len(data) // 2] + b"\xff\xd9"
    Image.open(io.BytesIO(half)).load()  # Pillow paints the rest grey
    with pytest.raises(UnreadableImage, match="damaged JPEG"):
        decode(half)
    np.testing.assert_array_equal(decode(data[:-2] + b"\0\0\0" + data[-2:]), decode(data))  # harmless and common


def test_what_is_no_image_is_refused_with_the_reason(encode, monkeypatch):
    with pytest.raises(UnreadableImage, match="empty"):
        decode(b"")
    with pytest.raises(UnreadableImage, match="<html>"):
        decode(b"<html>404</html>")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    for format in ("PNG", "JPEG"):
        with pytest.raises(UnreadableImage, match="10 x 10 pixels are more than the limit of 99"):
            decode(encode(np.zeros((10, 10), np.uint8), format))


def test_arrays_pass_and_are_converted(photo):
    assert decode(photo) is photo
    np.testing.assert_array_equal(decode(photo, 1)[..., 0], np.asarray(Image.fromarray(photo).convert("L")))
    np.testing.assert_array_equal(decode(photo[..., 0], 3), np.dstack([photo[..., 0]] * 3))
    many = np.zeros((4, 4, 7), np.uint8)
    assert decode(many, 7) is many
    with pytest.raises(UnreadableImage, match="7 channels"):
        decode(many, 3)


needs_libjpeg_turbo_3 = pytest.mark.skipif(turbojpeg.library() is None, reason="libjpeg-turbo 3 is not installed")
BOXES = [(0, 0, 300, 400), (0, 0, 40, 50), (131, 217, 100, 120), (290, 390, 10, 10), (7, 0, 1, 400), (31, 33, 64, 1)]


def part(data, box):
    return decode(data, 3, box)


@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_parts_of_a_picture_equal_the_whole(photo, encode, monkeypatch, subsampling, without):
    if without:
        for module in (decode_module, turbojpeg):
            monkeypatch.setattr(module, "library", lambda: None)
    datas = [encode(photo, "JPEG", subsampling=subsampling), encode(photo[..., 0], "JPEG")]
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[274] = orientation
        datas.append(encode(photo, "JPEG", subsampling=subsampling, exif=exif))
    for data, channels in itertools.product(datas, (1, 3, 4)):
        whole = decode(data, channels)
        assert size_in_header(data) == (None if turbojpeg.library() is None else whole.shape[:2])
        for top, left, height, width in BOXES:
            top, left = min(top, whole.shape[0] - 1), min(left, whole.shape[1] - 1)
            box = top, left, min(height, whole.shape[0] - top), min(width, whole.shape[1] - left)
            expected = whole[top : top + box[2], left : left + box[3]]
            np.testing.assert_array_equal(decode(data, channels, box), expected)


def test_orientation_is_found_behind_other_blocks(photo, encode):
    exif = Image.Exif()
    exif[274] = 6
    data = encode(photo, "JPEG", exif=exif)
    comment = b"\xff\xfe" + (2 + 9).to_bytes(2) + b"Exif\0\0MM\0"
    for other in (
        data[:2] + comment + b"\xff\xff" + data[2:],
        data[:2] + b"\xff\xed" + b"\xff\xff" + bytes(65533) + data[2:],
    ):
        np.testing.assert_array_equal(decode(other), by_pillow(other))
        assert decode(other).shape == (400, 300, 3)


@needs_libjpeg_turbo_3
def test_only_what_is_asked_for_is_decoded(photo, encode, monkeypatch):
    monkeypatch.setattr(decode_module, "_decode_jpeg", lambda *_: pytest.fail("decoded whole"))
    assert decode(encode(photo, "JPEG"), 3, (9, 9, 20, 30)).shape == (20, 30, 3)


@pytest.mark.parametrize("options", [{"progressive": True}, {"keep_rgb": True}, {"format": "PNG"}, {"format": "WEBP"}])
def test_parts_of_other_pictures_equal_the_whole(photo, encode, options):
    cmyk = encode(Image.fromarray(photo).convert("CMYK"), "JPEG")
    for data in (encode(photo, **{"format": "JPEG", **options}), cmyk):
        np.testing.assert_array_equal(part(data, (30, 50, 100, 90)), decode(data)[30:130, 50:140])


def test_a_part_of_a_damaged_jpeg_is_refused(photo, encode):
    data = encode(photo, "JPEG")
    hurt = bytearray(data)
    hurt[len(data) // 3 : len(data) // 3 + 40] = bytes(40)
    below = (200, 100, 90, 90)  # the damage, at a third and at half of the bytes, lies above its lower edge
    for broken in (data[: len(data) // 2], data[: len(data) // 2] + b"\xff\xd9", bytes(hurt), data[:20], b""):
        with pytest.raises(UnreadableImage):
            part(broken, below)
    with pytest.raises(UnreadableImage):  # without its end mark it is cut, wherever the box lies
        part(data[: len(data) // 2], (0, 0, 8, 8))
    trailed = data + b"trailer"
    np.testing.assert_array_equal(part(trailed, below), decode(data)[200:290, 100:190])
