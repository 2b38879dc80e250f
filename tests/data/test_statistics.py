"""Statistics of bands: exact, the same for any number of processes, without what is missing."""

import json

import numpy as np
import pytest

from maejax.data import statistics
from maejax.data.agreement import agree
from maejax.data.form import Form
from maejax.data.sources import open_source
from maejax.errors import InputError


def computed(tmp_path, images, workers=1, **asked):
    np.savez(tmp_path / "a.npz", images=images)
    source = open_source(str(tmp_path / "a.npz"))
    agree(source, Form(image_type="auto", fits=False, **asked))
    return statistics.compute(source, workers)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float16", "float32"])
def test_mean_and_deviation_are_those_of_all_pixels(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(statistics, "BLOCK", 64)  # rows are added up in several blocks
    rng = np.random.default_rng(0)
    images = (rng.normal(120, 30, (70, 12, 10, 5)).clip(0, 250) * np.array([1, 0.1, 0.5, 1, 1])).astype(kind)
    found = computed(tmp_path, images)
    whole = images.reshape(-1, 5).astype(np.float64)
    scale = 255 if kind == "uint8" else 1
    np.testing.assert_allclose(found["mean"], whole.mean(0) / scale, rtol=1e-12)
    np.testing.assert_allclose(found["std"], whole.std(0) / scale, rtol=1e-12)
    assert found["pixels"] == [70 * 120] * 5 and found["missing"] == [0] * 5
    assert found["min"] == whole.min(0).tolist() and found["max"] == whole.max(0).tolist()


def test_integers_are_exact_where_floats_would_cancel(tmp_path):
    images = np.full((40, 64, 64, 1), 65534, np.uint16)
    images[0, 0, 0] = 65535
    found = computed(tmp_path, images)
    n = images.size
    assert found["mean"][0] == (65534 * n + 1) / n
    assert found["std"][0] == pytest.approx((1 / n - 1 / n**2) ** 0.5, rel=1e-12)


@pytest.mark.parametrize(("kind", "no_data"), [("uint16", 0.0), ("float32", None), ("float32", -9999.0)])
def test_missing_pixels_are_counted_and_left_out_in_any_number_of_processes(tmp_path, kind, no_data):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 10_000, (80, 8, 8, 2)).astype(kind)
    gone = rng.random(images.shape) < [0.3, 0.0]
    images[gone] = np.nan if no_data is None else no_data
    alone, pair = (computed(tmp_path, images, workers, no_data=no_data) for workers in (1, 2))
    assert alone == pair
    there = images[..., 0][~gone[..., 0]].astype(np.float64)
    np.testing.assert_allclose([alone["mean"][0], alone["std"][0]], [there.mean(), there.std()], rtol=1e-10)
    assert alone["missing"] == gone.sum((0, 1, 2)).tolist() and min(alone["min"]) >= 1


def test_a_file_gives_the_bands_that_a_form_has(tmp_path):
    images = np.random.default_rng(0).integers(0, 100, (4, 6, 6, 3), np.uint16)
    found = computed(tmp_path, images, names=("red", "green", "blue"))
    path = tmp_path / "s.json"
    statistics.write(path, found)
    read = statistics.read(str(path))
    form = Form(2, "uint16", bands=("blue", "red"))
    assert statistics.take(read, form, "s.json")[0] == (found["mean"][2], found["mean"][0])
    for changed, words in (
        ({"bands": ("nir",)}, "band nir: the images have red, green, blue"),
        ({"image_type": "int16"}, "is of uint16 values, and the images are int16"),
        ({"bands": (), "channels": 2}, "has 3 bands, and the images 2"),
    ):
        with pytest.raises(InputError, match=words):
            statistics.take(read, form._replace(**changed), "s.json")
    for broken, words in (
        ("{}", "no file of `maejax data --statistics`"),
        (json.dumps(found | {"std": [1, 0, 1]}), "band green never changes; leave it out by --bands"),
    ):
        path.write_text(broken)
        with pytest.raises(InputError, match=words):
            statistics.read(str(path))
    with pytest.raises(InputError, match="band 1 has no pixel that exists"):
        computed(tmp_path, images * np.array([1, 0, 1], np.uint16) + np.array([1, 0, 1], np.uint16), no_data=0.0)
