"""Labels in every form that files have them: read, or named."""

import json

import numpy as np
import pytest

from maejax.data.classes import read_label
from maejax.data.sources import open_source
from maejax.errors import InputError


@pytest.mark.parametrize(
    ("value", "label"),
    [(3, 3), (2.0, 2), ("7\n", 7), ("10.0", 10), (True, 1), ([4], 4), (np.int64(5), 5), (" shoe ", "shoe")]
    + [(none, -1) for none in (None, "", -100, [], float("nan"))],
)
def test_a_value_is_a_number_a_name_or_none(value, label):
    assert read_label(value) == label and type(read_label(value)) is type(label)


@pytest.mark.parametrize("value", [0.5, [1, 2], {"a": 1}, 2**31, float("inf")])
def test_other_values_are_no_class(value):
    with pytest.raises(ValueError):
        read_label(value)


@pytest.mark.parametrize(
    ("fields", "labels", "classes"),
    [
        ([{"class": 1}, {"labels": 0}], [1, 0], ()),
        ([{"label": "shoe"}, {"class_name": "hat"}], [1, 0], ("hat", "shoe")),
        ([{"label": None, "cls": [2]}, {"label": True}], [2, 1], ()),
    ],
)
def test_json_beside_images_in_tars_and_folders(tmp_path, write_tar, encode, fields, labels, classes):
    image = encode(np.zeros((4, 4), np.uint8))
    files = {f"{i}.png": image for i in range(2)} | {f"{i}.json": json.dumps(f).encode() for i, f in enumerate(fields)}
    write_tar(tmp_path / "s.tar", files)
    (tmp_path / "folder").mkdir()
    for name, data in files.items():
        (tmp_path / "folder" / name).write_bytes(data)
    for spec in ("s.tar", "folder"):
        source = open_source(str(tmp_path / spec))
        assert (source.labels.tolist(), source.classes, source.problems) == (labels, classes, [])


def test_tables_of_every_type(tmp_path, encode, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = [encode(np.full((4, 4), i, np.uint8)) for i in range(3)]
    for column, labels, classes in [
        (pa.array([1.0, 0.0, None]), [1, 0, -1], ()),
        (pa.array([True, False, True]), [1, 0, 1], ()),
        (pa.array(["b", "a", "b"]).dictionary_encode(), [1, 0, 1], ("a", "b")),
        (pa.array([[1], [], [2]]), [1, -1, 2], ()),
        (pa.array(["10", "2", "1"]), [10, 2, 1], ()),
        (pa.array([[1, 2], [0], [3]]), [-1, 0, 3], ()),
    ]:
        pq.write_table(pa.table({"image": images, "label": column}), tmp_path / "t.parquet")
        source = open_source(str(tmp_path / "t.parquet"))
        assert (source.labels.tolist(), source.classes) == (labels, classes)
    assert source.problems == ["1 left out: labels that are neither one number nor one name; the first is t.parquet:0"]


def test_tables_of_paths_alone(tmp_path, encode, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    images, names = [encode(np.full((4, 4), i, np.uint8)) for i in range(2)], [f"pictures/{i}.png" for i in range(2)]
    for name, image in zip(names, images, strict=True):
        (tmp_path / name).write_bytes(image)
    rows = [{"bytes": None, "path": name} for name in names]
    typed = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    for columns in ({"image": rows}, {"image": typed}, {"image": names}, {"file_name": names}):
        pq.write_table(pa.table(columns | {"label": [1, 0]}), tmp_path / "t.parquet")
        source = open_source(str(tmp_path / "t.parquet"))
        assert [source.read(i) for i in range(len(source))] == images and source.labels.tolist() == [1, 0]


def test_arrays_with_other_labels(tmp_path):
    images = np.zeros((2, 4, 4, 3), np.uint8)
    for given, labels, classes in [
        (np.array(["shoe", "hat"]), [1, 0], ("hat", "shoe")),
        (np.array([1.0, 0.0]), [1, 0], ()),
        (np.array([[1], [0]]), [1, 0], ()),
    ]:
        np.savez(tmp_path / "a.npz", images=images, labels=given)
        source = open_source(str(tmp_path / "a.npz"))
        assert (source.labels.tolist(), source.classes) == (labels, classes)
    for given, words in [
        (np.array([2**32, 1]), "the label of image 0: 4294967296 is no class; give a number or a name"),
        (np.array([1, 0.5]), "the label of image 1: 0.5 is no class"),
        (np.array([1, 0, 1]), "has 3 labels for 2 images"),
    ]:
        np.savez(tmp_path / "a.npz", images=images, label=given)
        with pytest.raises(InputError, match=words):
            open_source(str(tmp_path / "a.npz"))


def test_a_single_folder_is_the_class_that_others_name(tmp_path, encode):
    (tmp_path / "valid/shoe").mkdir(parents=True)
    (tmp_path / "valid/shoe/1.png").write_bytes(encode(np.zeros((4, 4), np.uint8)))
    source = open_source(str(tmp_path / "valid"))
    assert source.number_classes_as(("dress", "hat")) == [] and source.labels.tolist() == [-1]
    assert source.number_classes_as(("dress", "shoe")) == [] and source.labels.tolist() == [1]
