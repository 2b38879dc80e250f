"""DICOM files by `pydicom`: grey values in their own units, or seen through the window that the file has."""

import io
import math
from typing import Any

import numpy as np

from maejax.data.form import Form
from maejax.data.values import narrowed
from maejax.errors import UnreadableImage, install

_PREAMBLE, _MAGIC = 128, b"DICM"
HEAD = _PREAMBLE + len(_MAGIC)  # bytes that tell a DICOM file
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax: all after the head is one compressed part


def is_dicom(head: bytes) -> bool:
    """Return whether the first bytes of a file are those of DICOM."""
    return head[_PREAMBLE:HEAD] == _MAGIC


def read_dicom(data: bytes, form: Form, frame: int = -1) -> np.ndarray:
    """Read a DICOM image: [H, W, B]; of several frames `frame`, or all as bands.

    Grey values are slope * value + intercept, where the file has them: int16 if both are whole numbers, else float32.
    With `dicom_range` "window" they are uint8: the file's first window becomes 0..255. MONOCHROME1 is inverted within
    its stored bits. Colours are RGB. Raises UnreadableImage with the reason if pydicom is missing or cannot read it.
    """
    dataset = _opened(data)
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing
    from pydicom.pixels.utils import pixel_array

    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1 and frame < 0 and form.pages != "bands":
        raise UnreadableImage(
            f"a DICOM file with {frames} frames: give --pages bands to read them as the bands of one image, or "
            "--pages images"
        )
    try:
        stored = pixel_array(dataset, index=frame if frame >= 0 and frames > 1 else None)
        if dataset.get("SamplesPerPixel", 1) > 1:
            return stored if stored.ndim == 3 else np.concatenate(list(stored), axis=-1)
        inverted = dataset.get("PhotometricInterpretation") == "MONOCHROME1"
        if form.dicom_range == "window":
            if "WindowCenter" not in dataset:
                raise UnreadableImage("a DICOM file without a window: give --dicom-range full")
            seen = apply_windowing(apply_modality_lut(stored, dataset), dataset)
            low, high = (_rescale(dataset)[0] * end + _rescale(dataset)[1] for end in _stored_range(dataset))
            pixels = narrowed(seen, (low, high))
            pixels = 255 - pixels if inverted else pixels
        else:
            if inverted:
                stored = (sum(_stored_range(dataset)) - stored.astype(np.int64)).astype(stored.dtype)
            pixels = _rescaled(stored, dataset, form)
    except UnreadableImage:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UnreadableImage(f"a DICOM file that pydicom cannot read here: {reason}") from None
    return pixels[..., None] if pixels.ndim == 2 else np.moveaxis(pixels, 0, -1)


def values_of_dicom(data: bytes) -> int:
    """Count the values of all frames of a DICOM file; raises UnreadableImage if it is packed as a whole."""
    if _DEFLATED in data:
        raise UnreadableImage("a DICOM file that is deflated as a whole; save it as explicit VR little endian")
    dataset = _opened(data)
    sides = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")
    return math.prod(int(dataset.get(side) or 1) for side in sides)


def look_at_dicom(data: bytes, form: Form) -> tuple[str, int, tuple[str, ...], int, str]:
    """Look at the head of a DICOM file: its type, bands, no names, frames, and "DICOM"."""
    dataset = _opened(data)
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
    if samples > 1 or form.dicom_range == "window":
        kind = "uint8"
    else:
        slope, intercept = _rescale(dataset)
        wide = f"{'int' if dataset.get('PixelRepresentation') else 'uint'}{dataset.get('BitsAllocated', 16)}"
        whole = slope.is_integer() and intercept.is_integer()
        kind = wide if (slope, intercept) == (1, 0) else "int16" if whole else "float32"
    return kind, samples * (frames if form.pages == "bands" else 1), (), frames, "DICOM"


def _opened(data: bytes) -> Any:
    try:
        from pydicom import config, dcmread
    except ImportError:
        raise UnreadableImage(f"a DICOM file, and reading it needs pydicom: {install('dicom')}") from None
    config.settings.reading_validation_mode = config.IGNORE  # it would warn of harmless faults
    try:
        dataset = dcmread(io.BytesIO(data))
    except Exception as error:
        raise UnreadableImage(f"damaged DICOM: {error}") from None
    if "PixelData" not in dataset:
        raise UnreadableImage(f"a DICOM file without an image ({dataset.get('Modality', 'no modality')})")
    return dataset


def _rescale(dataset: Any) -> tuple[float, float]:
    return float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)


def _rescaled(stored: np.ndarray, dataset: Any, form: Form) -> np.ndarray:
    slope, intercept = _rescale(dataset)
    if "ModalityLUTSequence" in dataset:
        raise UnreadableImage("a DICOM file whose values a table gives: give --dicom-range window")
    if (slope, intercept) == (1, 0):
        return stored
    if form.image_type == "float32" or not (slope.is_integer() and intercept.is_integer()):
        return (stored * np.float64(slope) + intercept).astype(np.float32)
    values, limits = stored.astype(np.int64) * int(slope) + int(intercept), np.iinfo(np.int16)
    if values.min() < limits.min or values.max() > limits.max:
        raise UnreadableImage(
            f"has values from {values.min()} to {values.max()}, which int16 cannot hold: give --image-type float32"
        )
    return values.astype(np.int16)


def _stored_range(dataset: Any) -> tuple[int, int]:
    """Return the smallest and the largest value that the stored bits can have."""
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)
