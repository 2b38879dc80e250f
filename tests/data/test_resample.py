"""Resizing of other types than 8-bit pictures: the values of Pillow, the limits of the type, around missing pixels."""

import numpy as np
import pytest
from PIL import Image

from maejax.data import augment, resample
from maejax.data.augment import build_eval, build_train


def noise(kind, bands, shape=(40, 56)):
    rng = np.random.default_rng(0)
    if np.dtype(kind).kind == "f":
        return rng.normal(0, 1, (*shape, bands)).astype(kind)
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max, (*shape, bands), kind, endpoint=True)


@pytest.mark.parametrize("without_cykooz", [False, True])
@pytest.mark.parametrize(("kind", "bands"), [("uint16", 13), ("int16", 1), ("float16", 3), ("float32", 64)])
def test_values_are_those_of_pillow_in_float(kind, bands, without_cykooz, monkeypatch):
    if without_cykooz:
        monkeypatch.setattr(resample, "cykooz", None)
    image = noise(kind, bands)
    found = augment.resize(image, (24, 80))
    assert found.dtype == kind and found.shape == (24, 80, bands)
    for band in (0, bands - 1):
        picture = Image.fromarray(image[..., band].astype(np.float32))
        expected = np.asarray(picture.resize((80, 24), Image.Resampling.BICUBIC)).astype(np.float64)
        if np.dtype(kind).kind != "f":
            expected = np.clip(np.rint(expected), np.iinfo(kind).min, np.iinfo(kind).max)
        size = np.abs(expected).max()
        assert np.abs(found[..., band] - expected).max() <= max(1 if size > 10 else 0, 2e-3 * size)


@pytest.mark.parametrize(("kind", "no_data"), [("uint16", 0), ("int16", -9999), ("float32", None), ("uint8", 7)])
@pytest.mark.parametrize("size", [(20, 20), (90, 90), (13, 31)])
def test_missing_pixels_never_enter_others(kind, no_data, size):
    image = np.full((60, 60, 2), 100, kind)
    image[20:40, 20:40, 1] = np.nan if no_data is None else no_data
    found = augment.resize(image, size, no_data)
    missing = np.isnan(found) if no_data is None else found == no_data
    assert not missing[..., 0].any() and 0.07 < missing[..., 1].mean() < 0.15  # a ninth of the band
    np.testing.assert_allclose(found[~missing].astype(float), 100, rtol=1e-6)


def test_computed_values_do_not_become_the_missing_one():
    image = np.tile(np.array([1, 1, 1, 400] * 8, np.uint16)[:, None, None], (1, 32, 1))  # bicubic overshoots below 1
    image[0, 0] = 0
    found = resample.resample(image, (64, 64), no_data=0)
    assert (found == 0).sum() <= 16


@pytest.mark.parametrize("crop", ["rrc", "src", "none"])
def test_crops_flips_and_turns_take_any_bands(crop):
    image = noise("uint16", 13)
    transform = build_train((16, 16), crop, (0.2, 1.0), 0.0, "both", rotate=True)
    assert transform(image, np.random.default_rng(0)).shape == (16, 16, 13)
    thin = noise("int16", 2, (3, 2000))
    assert build_eval((16, 16), 1.0)(thin, np.random.default_rng(0)).shape == (16, 16, 2)


def test_flips_and_turns_give_all_eight_positions():
    image = np.arange(16, dtype=np.uint16).reshape(4, 4, 1)
    seen = {}
    for flip, rotate in (("none", False), ("horizontal", False), ("vertical", False), ("both", False), ("none", True)):
        transform = build_train((4, 4), "none", (0.2, 1.0), 0.0, flip, rotate=rotate)
        found = {transform(image, np.random.default_rng(i))[..., 0].tobytes() for i in range(64)}
        seen[flip, rotate] = found
    square = image[..., 0]
    assert seen["none", False] == {square.tobytes()}
    assert seen["vertical", False] == {square.tobytes(), square[::-1].tobytes()}
    assert seen["both", False] == {a.tobytes() for a in (square, square[::-1], square[:, ::-1], square[::-1, ::-1])}
    assert seen["none", True] == {np.rot90(square, k).tobytes() for k in range(4)}
