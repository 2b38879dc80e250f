import json
import pickle
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maejax.data import tables
from maejax.data.agreement import agree
from maejax.data.arrays import read_pixels
from maejax.data.form import Form
from maejax.data.sources import open_source
from maejax.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/maejax"


@pytest.fixture
def images(encode):
    return [encode(np.full((6, 6), i, np.uint8)) for i in range(10)]


@pytest.fixture
def table(images):
    """A table as `datasets` makes one: structs, a ClassLabel, and what it says of them."""
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["dress", "hat", "shoe"]}}
    rows = {
        "text": ["a picture"] * 10,
        "image": pa.array([{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]),
        "label": pa.array([i % 3 if i else -100 for i in range(10)], pa.int64()),
    }
    return pa.table(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def save(table, path, batch=4, options=None, file=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    make = pa.ipc.new_file if file else pa.ipc.new_stream
    with make(str(path), table.schema, options=options) as writer:
        writer.write_table(table, batch)


def read_all(source):
    return [source.read(i) for i in range(len(source))]


def test_a_datasets_folder_is_read_in_place_and_without_pyarrow_later(tmp_path, table, images, cache):
    for i, part in enumerate((table.slice(0, 7), table.slice(7))):
        save(part, tmp_path / f"saved/data-0000{i}-of-00002.arrow")
    state = {"_data_files": [{"filename": f"data-0000{i}-of-00002.arrow"} for i in range(2)]}
    (tmp_path / "saved/state.json").write_text(json.dumps(state))
    source = open_source(str(tmp_path / "saved"))
    assert read_all(source) == images
    assert source.labels.tolist() == [-1, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert source.classes == ("dress", "hat", "shoe")
    assert source.keys[8] == "data-00001-of-00002.arrow:1/8.png"
    assert source.problems == []
    assert not cache.exists()
    assert read_all(pickle.loads(pickle.dumps(source))) == images

    (tmp_path / "saved/state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "x"}]}))
    with pytest.raises(InputError, match="flatten_indices"):
        open_source(str(tmp_path / "saved"))


def test_parquet_is_copied_once(tmp_path, table, images, cache):
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    source = open_source(str(tmp_path / "a.parquet"))
    assert read_all(source) == images
    assert (source.labels.tolist()[1:4], source.classes[0], source.keys[3]) == ([1, 2, 0], "dress", "a.parquet:3/3.png")
    (copy,) = cache.iterdir()
    before = copy.stat().st_mtime_ns
    assert read_all(open_source(str(tmp_path))) == images
    assert [copy.stat().st_mtime_ns] == [path.stat().st_mtime_ns for path in cache.iterdir()] == [before]
    pq.write_table(table.slice(2), tmp_path / "a.parquet")
    assert read_all(open_source(str(tmp_path / "a.parquet"))) == images[2:]


def test_columns_are_found_without_the_hubs_words(tmp_path, images):
    plain = pa.table({"id": list(range(10)), "jpg": pa.array(images, pa.large_binary()), "class": list("baabbabbab")})
    save(plain, tmp_path / "file.arrow", file=True)
    source = open_source(str(tmp_path / "file.arrow"))
    assert read_all(source) == images
    assert (source.classes, source.labels.tolist()[:3]) == (("a", "b"), [1, 0, 0])
    pq.write_table(plain.select(["jpg"]), tmp_path / "b.parquet")
    bare = open_source([str(tmp_path / "b.parquet")])
    assert (bare.labels.tolist(), bare.classes) == ([-1] * 10, ())


def test_rows_without_bytes_name_a_file_or_are_counted(tmp_path, images):
    (tmp_path / "there.png").write_bytes(images[5])
    rows = [{"bytes": images[0], "path": None}, None, {"bytes": None, "path": str(tmp_path / "there.png")},
            {"bytes": None, "path": "gone.png"}]  # fmt: skip
    save(pa.table({"image": rows}), tmp_path / "a.arrow")
    source = open_source(str(tmp_path / "a.arrow"))
    assert read_all(source) == [images[0], images[5]]
    assert source.problems == [f"{tmp_path / 'a.arrow'}: 2 rows hold no image"]


def test_splits_must_be_chosen(tmp_path, table, images):
    for split in ("train", "test"):
        save(table, tmp_path / split / "data-00000-of-00001.arrow")
        (tmp_path / split / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / f"hub/data/{split}-00000-of-00001.parquet")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"splits train, test; name one, as .*train"):
        open_source(str(tmp_path))
    with pytest.raises(InputError, match=r"splits test, train; name one, as '.*data/train-\*\.parquet'"):
        open_source(str(tmp_path / "hub"))
    assert len(open_source(f"{tmp_path}/{{train,test}}")) == 20
    assert read_all(open_source(f"{tmp_path}/hub/data/train-*.parquet")) == images


def test_what_cannot_be_used_is_told(tmp_path, table, images, monkeypatch):
    save(table, tmp_path / "packed.arrow", options=pa.ipc.IpcWriteOptions(compression="lz4"))
    save(table.select(["text"]), tmp_path / "texts.arrow")
    (tmp_path / "page.parquet").write_bytes(b"<!DOCTYPE html>" * 9)
    save(table, tmp_path / "good.arrow")
    source = open_source(str(tmp_path))
    assert read_all(source) == images
    assert [problem.split(": ")[0] for problem in source.problems] == [
        str(tmp_path / name) for name in ("packed.arrow", "page.parquet", "texts.arrow")
    ]
    assert "is compressed" in source.problems[0]
    assert "no column of images" in source.problems[2] and "text string" in source.problems[2]
    pq.write_table(table, tmp_path / "a.parquet")
    monkeypatch.setattr(tables.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
    with pytest.raises(InputError, match="has no room; set XDG_CACHE_HOME"):
        open_source(str(tmp_path / "a.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"good\.arrow: reading it needs pyarrow: .*maejax\[hf\]"):
        open_source(str(tmp_path / "good.arrow"))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float16", "float32"])
def test_numbers_in_lists_are_images_of_their_type(tmp_path, cache, kind, suffix):
    pixels = np.arange(3 * 4 * 5 * 2).reshape(3, 4, 5, 2).astype(kind)
    leaf = pa.from_numpy_dtype(np.dtype(kind))
    rows = pa.array([*pixels.tolist(), None], pa.list_(pa.list_(pa.list_(leaf, 2))))
    table = pa.table({"bbox": [[[1.0]]] * 4, "image": rows, "label": [0, 1, 0, 1]})
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    source = open_source(str(path))
    assert source.labels.tolist() == [0, 1, 0] and "1 rows hold no image" in source.problems[0]
    form = agree(source, Form(image_type="auto", fits=False))
    assert (form.image_type, form.channels) == (kind, 2)
    np.testing.assert_array_equal(np.stack([read_pixels(source.read(i), form) for i in range(3)]), pixels)
