"""Arrays of every type: in every kind of file, through the loader, and turned into other types by the rules."""

import io
import struct
import tarfile
import zlib

import numpy as np
import pytest

from maejax.data import packing
from maejax.data.agreement import agree
from maejax.data.arrays import read_pixels
from maejax.data.augment import build_eval
from maejax.data.batch_plan import BatchConfig
from maejax.data.form import TYPES, Form
from maejax.data.pipeline import Loader
from maejax.data.sources import open_source, open_stream
from maejax.data.values import as_type, narrowed
from maejax.errors import InputError, UnreadableImage

AUTO = Form(image_type="auto", fits=False)
RAMP = np.arange(6 * 6 * 5).reshape(6, 6, 5)


def saved(pixels):
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def images_of(kind, bands, count=4):
    noise = np.random.default_rng(0).integers(0, 200, (count, 6, 6, bands))
    return (noise - 100 * (kind == "int16")).astype(kind)


@pytest.mark.parametrize(("kind", "bands"), [*((kind, 5) for kind in TYPES), ("uint16", 64), ("int16", 1)])
def test_every_type_travels_unchanged_from_every_source(tmp_path, write_tar, kind, bands):
    images = images_of(kind, bands)
    members = {f"{i}.npy": saved(image) for i, image in enumerate(images)}
    (tmp_path / "folder").mkdir()
    for name, data in members.items():
        (tmp_path / "folder" / name).write_bytes(data)
    shard = write_tar(tmp_path / "s.tar", members)
    np.savez(tmp_path / "a.npz", images=images)
    pack = packing.pack(str(tmp_path / "a.npz"), str(tmp_path / "packed"), shuffle_seed=None)
    assert pack["total"] == 4 and not pack["skipped"]
    for spec in (tmp_path / "folder", shard, tmp_path / "a.npz", tmp_path / "packed"):
        source = open_source(str(spec))
        form = agree(source, AUTO)
        assert (form.image_type, form.channels) == (kind, bands), spec
        loader = Loader(source, build_eval((6, 6), 1.0), BatchConfig(4, shuffle=False), size=(6, 6), channels=bands)
        (batch,) = loader.iterate()
        assert batch.images.dtype == kind and batch.valid.all()
        np.testing.assert_array_equal(batch.images, images)
    assert (f"({kind})" in loader.footprint) == (kind != "uint8")


def test_processes_and_streams_deliver_types_too(tmp_path, write_tar, monkeypatch):
    monkeypatch.setattr("maejax.data.pipeline.loader_processes", lambda *_: 1)
    images = images_of("uint16", 13)
    shard = write_tar(tmp_path / "s.tar", {f"{i}.npy": saved(image) for i, image in enumerate(images)})
    packed = tmp_path / "s.tar.gz"
    with tarfile.open(shard) as plain, tarfile.open(packed, "w:gz") as tar:
        for member in plain:
            tar.addfile(member, plain.extractfile(member))
    stream = open_stream(str(packed))
    assert agree(stream, AUTO).describe() == "uint16, 13 channels"
    config = BatchConfig(4, seed=1)
    batches = Loader(stream, build_eval((6, 6), 1.0), config, size=(6, 6), channels=13, workers=1).iterate()
    batch = next(batches)
    batches.close()
    numbers = (batch.index & 0xFFFFFFFF).tolist()
    np.testing.assert_array_equal(batch.images, images[numbers])


def test_order_of_bytes_and_axes_is_that_of_the_file():
    form = Form(channels=5, image_type="uint16", fits=False)
    pixels = RAMP.astype(np.uint16)
    for data in (saved(np.asfortranarray(pixels)), saved(pixels.astype(">u2"))):
        np.testing.assert_array_equal(read_pixels(data, form), pixels)
    first = saved(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    np.testing.assert_array_equal(read_pixels(first, form._replace(channels_first=True)), pixels)
    np.testing.assert_array_equal(read_pixels(saved(pixels), form, (1, 2, 3, 4)), pixels[1:4, 2:6])
    for data, words in (
        (saved(pixels)[:-1], "damaged .npy: its uint16"),
        (saved(pixels)[:40], "damaged .npy"),
        (saved(np.zeros((6, 6, 65), np.uint16)), "65 channels, of at most 64; give --channels-first"),
        (saved(np.zeros((2, 6, 6, 5), np.uint16)), r"an array \[2, 6, 6, 5\]; an image is"),
        (saved(np.zeros((6, 6, 5), "U3")), "holds <U3; images are numbers"),
        (saved(np.zeros((6, 6, 4), np.uint16)), "has 4 channels, which cannot be turned into 5: give --channels 4"),
    ):
        with pytest.raises(UnreadableImage, match=words):
            read_pixels(data, form)


def test_mixed_types_are_refused_with_the_files_and_the_flag(tmp_path, encode):
    np.save(tmp_path / "a.npy", RAMP.astype(np.uint16))
    np.save(tmp_path / "b.npy", RAMP.astype(np.float32))
    source = open_source(str(tmp_path))
    with pytest.raises(InputError, match=r"b\.npy holds float32, and .*a\.npy uint16: give --image-type float32"):
        agree(source, AUTO)
    form = agree(source, Form(image_type="float32"))
    for i in (0, 1):
        np.testing.assert_array_equal(read_pixels(source.read(i), form), RAMP)
    (tmp_path / "b.npy").unlink()
    (tmp_path / "c.png").write_bytes(encode(RAMP[..., 0].astype(np.uint8)))
    with pytest.raises(InputError, match=r"c\.png holds uint8, and .*a\.npy uint16"):
        agree(open_source(str(tmp_path)), AUTO)
    with pytest.raises(UnreadableImage, match="holds uint16, where the first images hold uint8"):
        read_pixels(encode(RAMP[..., 0].astype(np.uint16)), Form(fits=False))
    later = Form(channels=5, image_type="uint16", fits=False, first="a.npy")
    with pytest.raises(UnreadableImage, match=r"holds float32, and a\.npy uint16: give --image-type float32"):
        read_pixels(saved(RAMP.astype(np.float32)), later)
    np.save(tmp_path / "a.npy", RAMP.astype(np.float64))
    (tmp_path / "c.png").unlink()
    with pytest.raises(InputError, match=r"holds float64, which is none of uint8, .*: give --image-type float32"):
        agree(open_source(str(tmp_path)), AUTO)


def test_values_are_narrowed_by_the_stated_rule():
    sixteen = np.array([0, 1, 128, 129, 32768, 65535], np.uint16)
    assert narrowed(sixteen, ()).tolist() == [0, 0, 0, 1, 128, 255]
    assert narrowed(np.array([-32768, 0, 32767], np.int16), ()).tolist() == [0, 128, 255]
    assert narrowed(np.array([0, 0.5, 1], np.float32), ()).tolist() == [0, 128, 255]
    assert narrowed(np.array([-5, 0, 5000, 10_000, 20_000], np.int16), (0, 10_000)).tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(UnreadableImage, match="values from -1 to 2: give --value-range"):
        narrowed(np.array([-1, 2], np.float16), ())
    zero = Form(channels=1, no_data=0)
    assert as_type(np.array([[[0]], [[1]], [[65535]]], np.uint16), zero).ravel().tolist() == [0, 1, 255]
    with pytest.raises(UnreadableImage, match="missing values"):
        as_type(np.full((1, 1, 1), np.nan, np.float32), Form(channels=1))
    with pytest.raises(UnreadableImage, match="holds uint16, which int16 cannot hold"):
        as_type(sixteen.reshape(1, -1, 1), Form(channels=1, image_type="int16"))


def test_an_array_beside_a_picture_of_its_name_is_no_image(tmp_path, write_tar, encode):
    picture = encode(RAMP[..., 0].astype(np.uint8))
    array = saved(RAMP.astype(np.float32))
    source = open_source(str(write_tar(tmp_path / "s.tar", {"1.png": picture, "1.npy": array, "2.npy": array})))
    assert source.keys == ["s.tar:1.png", "s.tar:2.npy"] and "x.npy beside x.jpg" in source.problems[0]


def test_packing_turns_images_into_the_type_and_bands_that_are_asked_for(tmp_path):
    images = images_of("uint16", 5)
    np.savez(tmp_path / "a.npz", images=images * 100, bands=np.array(list("abcde")))
    asked = Form(image_type="uint8", value_range=(0, 20_000), bands=("c", "a"))
    packing.pack(str(tmp_path / "a.npz"), str(tmp_path / "out"), shuffle_seed=None, asked=asked)
    source = open_source(str(tmp_path / "out"))
    form = agree(source, AUTO)
    assert (form.image_type, form.names, (tmp_path / "out/bands.txt").read_text()) == ("uint8", ("c", "a"), "c\na\n")
    expected = narrowed(images[..., [2, 0]] * np.uint16(100), (0, 20_000))
    np.testing.assert_array_equal(np.stack([read_pixels(source.read(i), form) for i in range(4)]), expected)


def test_grey_pictures_may_have_a_name(tmp_path, encode):
    (tmp_path / "1.png").write_bytes(encode(RAMP[..., 0].astype(np.uint8)))
    (tmp_path / "bands.txt").write_text("pan")
    source = open_source(str(tmp_path))
    with pytest.raises(InputError, match=r"1\.png has 3 bands, and 1 names are given: pan"):
        agree(source, AUTO)
    assert agree(source, AUTO._replace(channels=1)).names == ("pan",)


def png_of_16_bits(pixels):
    height, width, bands = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    whole = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_pngs_of_16_bits_lose_none_without_a_word(tmp_path, bands):
    pixels = RAMP[..., :bands].astype(np.uint16) * 300
    (tmp_path / "1.png").write_bytes(png_of_16_bits(pixels))
    source = open_source(str(tmp_path))
    form = agree(source, AUTO)
    assert (form.image_type, form.channels) == ("uint16", 1 if bands == 2 else bands)
    if bands == 1:
        np.testing.assert_array_equal(read_pixels(source.read(0), form), pixels)
        return
    with pytest.raises(UnreadableImage, match="of which 8 bits are read: give --image-type uint8"):
        read_pixels(source.read(0), form)
    found = read_pixels(source.read(0), agree(source, Form(image_type="uint8")))
    assert found.shape == (6, 6, 3) and found.dtype == np.uint8
