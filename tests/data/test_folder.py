"""What a folder is taken for, what is left out with a word, and which folders are refused."""

import os

import numpy as np
import pytest

from maejax.data import folder as folder_module
from maejax.data.sources import open_source
from maejax.errors import InputError


@pytest.fixture
def image(encode):
    return encode(np.zeros((4, 4), np.uint8))


def grow(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_a_tar_beside_class_folders_is_ambiguous(tmp_path, image, write_tar):
    root = grow(tmp_path / "photos", {"shoe/1.png": image, "dress/1.png": image})
    write_tar(root / "backup.tar", {"x.png": image})
    with pytest.raises(InputError, match=r"tar shards \(backup\.tar\) and images \(.*dress\); .* give '.*/\*\.tar'"):
        open_source(str(root))
    assert len(open_source(f"{root}/*.tar")) == 1


def test_what_lies_beside_shards_is_left_out_with_a_word(tmp_path, image, write_tar):
    write_tar(tmp_path / "t-0.tar", {"1.png": image})
    grow(tmp_path, dict.fromkeys(["t-0.tar.idx", "t-0.tar.json", "t-0.tar.md5", "index.json", "sheet.png"], image))
    for spec, first in ((tmp_path, "sheet.png"), (f"{tmp_path}/t-*", "t-0.tar.idx")):
        source = open_source(str(spec))
        assert source.keys == ["t-0.tar:1.png"]
        assert len(source.problems) == 1 and source.problems[0].endswith(first)


def test_the_files_of_img2dataset_are_images_without_classes(tmp_path, image):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for part in ("00000", "00001"):
        grow(tmp_path, {f"{part}/{part}0001.jpg": image, f"{part}/{part}0001.json": b'{"caption": "a"}'})
        grow(tmp_path, {f"{part}_stats.json": b"{}"})
        pq.write_table(pa.table({"url": ["https://x"], "key": ["0"]}), tmp_path / f"{part}.parquet")
    source = open_source(str(tmp_path))
    assert (len(source), source.classes, source.labels.tolist()) == (2, (), [-1, -1])
    assert source.problems[0].startswith("2 left out: archives or tables among images")


def test_links_in_circles_end(tmp_path, image):
    root = grow(tmp_path / "photos", {"shoe/1.png": image, "dress/1.png": image})
    (root / "shoe/loop").symlink_to(root)
    (root / "hat").symlink_to(root / "dress")  # the same images under another name are no circle
    source = open_source(str(root))
    assert (len(source), source.classes) == (3, ("dress", "hat", "shoe"))
    assert source.problems == [
        f"1 left out: links that lead back to a folder above them; the first is {root}/shoe/loop"
    ]


def test_splits_are_no_classes(tmp_path, image):
    root = tmp_path / "photos"
    files = {f"data/{split}/{kind}/1.png": image for split in ("train", "Val") for kind in ("shoe", "dress")}
    grow(root, files)
    with pytest.raises(
        InputError, match=r"the splits Val, train of a data set; give .*/data/train, or .*/\{Val,train\}'"
    ):
        open_source(str(root))
    both = open_source(f"{root}/data/{{Val,train}}")
    assert (both.classes, both.labels.tolist()) == (("dress", "shoe"), [0, 1, 0, 1])
    vehicles = open_source(str(grow(tmp_path / "vehicles", {"train/1.png": image, "bus/1.png": image})))
    assert vehicles.classes == ("bus", "train")


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path, image, monkeypatch):
    root, scan = grow(tmp_path / "photos", {"shoe/1.png": image, "dress/1.png": image}), os.scandir

    def refuse(path):
        if str(path).endswith("dress"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(folder_module.os, "scandir", refuse)
    with pytest.raises(InputError, match=r"photos/dress: the folder cannot be read: Permission denied; make it"):
        open_source(str(root))


def test_images_under_other_suffixes_and_without_any(tmp_path, encode, write_tar):
    jpeg, png = (encode(np.zeros((4, 4, 3), np.uint8), format) for format in ("JPEG", "PNG"))
    avif = encode(np.full((16, 16, 3), 200, np.uint8), "AVIF")
    files = {"a/1.jfif": jpeg, "a/2.JPE": jpeg, "b/3": png, "b/README": b"read me", "b/4.avif": avif, "b/5.heic": b"x"}
    folder, tar = grow(tmp_path / "folder", files), write_tar(tmp_path / "s.tar", files)
    for source in (open_source(str(folder)), open_source(str(tar))):
        assert [key.rpartition("/")[2] for key in source.keys] == ["1.jfif", "2.JPE", "3", "4.avif"]
        assert source.labels.tolist() == [0, 0, 1, 1]
        assert source.read(2) == png
        assert len(source.problems) == 1 and source.problems[0].startswith("1 left out: .heic files")
