"""DICOM files: units, inversion, windows, frames, and what cannot be read."""

import io

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from maejax.data.agreement import agree
from maejax.data.arrays import look, read_pixels, stored_pixels
from maejax.data.form import Form
from maejax.data.sources import open_source
from maejax.errors import InputError, UnreadableImage

AUTO = Form(image_type="auto", fits=False)
STORED = np.array([[0, 1024, 1064], [2000, 3000, 4095]], np.uint16)


def dicom(pixels, **fields):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    rows, columns = pixels.shape[-2:] if fields.get("SamplesPerPixel", 1) == 1 else pixels.shape[:2]
    bits = pixels.itemsize * 8
    usual = {
        "Rows": rows, "Columns": columns, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits, "BitsStored": 12 if bits == 16 else 8, "HighBit": 11 if bits == 16 else 7,
        "PixelRepresentation": int(pixels.dtype.kind == "i"), "PixelData": pixels.tobytes(), "Modality": "CT",
    }  # fmt: skip
    for name, value in (usual | fields).items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("fields", "expected", "kind"),
    [
        ({}, STORED, "uint16"),
        ({"RescaleSlope": "1", "RescaleIntercept": "-1024"}, STORED.astype(int) - 1024, "int16"),
        ({"RescaleSlope": "0.5", "RescaleIntercept": "0"}, STORED / 2, "float32"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 4095 - STORED, "uint16"),
    ],
    ids=["plain", "HU", "PET", "inverted"],
)
def test_values_have_their_own_units(fields, expected, kind):
    data = dicom(STORED, **fields)
    assert look(data, AUTO).image_type == kind
    found = stored_pixels(data, AUTO)
    assert found.dtype == kind and found.shape == (2, 3, 1)
    np.testing.assert_array_equal(found[..., 0], expected)


@pytest.mark.parametrize("inverted", [False, True])
def test_the_window_becomes_0_to_255(inverted):
    fields = {
        "RescaleSlope": "1",
        "RescaleIntercept": "-1024",
        "WindowCenter": ["40", "0"],
        "WindowWidth": ["401", "9"],
    }
    fields |= {"PhotometricInterpretation": "MONOCHROME1"} if inverted else {}
    form = AUTO._replace(dicom_range="window")
    data = dicom(STORED, **fields)
    assert look(data, form).image_type == "uint8"
    expected = np.array([[0, 103, 128], [255, 255, 255]])  # -160.5 .. 239.5 is the window
    found = stored_pixels(data, form)[..., 0].astype(int)
    assert np.abs((255 - found if inverted else found) - expected).max() <= 1
    with pytest.raises(UnreadableImage, match="without a window"):
        stored_pixels(dicom(STORED), form)


def test_frames_are_bands_or_images_and_files_need_no_suffix(tmp_path):
    frames = np.stack([STORED, STORED[::-1], STORED // 2])
    (tmp_path / "IM0001").write_bytes(dicom(frames, NumberOfFrames="3"))
    source = open_source(str(tmp_path))
    with pytest.raises(InputError, match="IM0001 has 3 pages: give --pages bands"):
        agree(source, AUTO)
    form = agree(source, AUTO._replace(pages="bands"))
    np.testing.assert_array_equal(read_pixels(source.read(0), form), frames.transpose(1, 2, 0))
    (tmp_path / "IM0001").rename(tmp_path / "1.dcm")
    source = open_source(str(tmp_path))
    form = agree(source, AUTO._replace(pages="images"))
    assert len(source) == 3
    np.testing.assert_array_equal(read_pixels(source.read(1), form)[..., 0], STORED[::-1])


def test_what_cannot_be_read_says_why(monkeypatch):
    wide = np.full((2, 3), 65535, np.uint16)
    data = dicom(wide, BitsStored=16, HighBit=15, RescaleSlope="1", RescaleIntercept="-1024")
    with pytest.raises(UnreadableImage, match="int16 cannot hold: give --image-type float32"):
        stored_pixels(data, AUTO)
    np.testing.assert_array_equal(read_pixels(data, Form(1, "float32"))[..., 0], 64511)
    with pytest.raises(UnreadableImage, match="pydicom cannot read here"):
        stored_pixels(dicom(STORED)[:-4], AUTO)
    colours = dicom(np.zeros((2, 3, 3), np.uint8), SamplesPerPixel=3, PhotometricInterpretation="RGB",
                    PlanarConfiguration=0)  # fmt: skip
    assert read_pixels(colours, Form()).shape == (2, 3, 3)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(UnreadableImage, match=r"needs pydicom: .*maejax\[dicom\]"):
        stored_pixels(dicom(STORED), AUTO)
