import json

import numpy as np
import pytest

from maejax.data.labels import assign, read_labels
from maejax.data.sources import open_source
from maejax.errors import FormatError, InputError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "1.png,shoe\nd/2.png,dress\n"),
        ("a.csv", "file_name,label\n1.png,shoe\nd/2.png,dress\n"),
        ("a.csv", "\ufeffID;Breed;x\n1;shoe;0\nd/2;dress;0\n"),
        ("a.csv", 'label,width,image\nshoe,"1,5",./1.png\n dress ,2,d\\2.png\n'),
        ("a.tsv", "1.png\tshoe\n\nd/2.png\tdress\n"),
        ("a.json", '{"1": "shoe", "d/2.png": "dress"}'),
        ("a.json", '[{"file_name": "1.png", "label": "shoe"}, {"file_name": "2", "label": "dress"}]'),
        ("a.jsonl", '{"file_name": "1.png", "label": "shoe"}\n{"file_name": "d/2.png", "label": "dress"}\n'),
    ],
)
def test_every_form_says_the_same(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    labels, classes, missing = assign(["s.tar:1.png", "s.tar:d/2.png", "s.tar:d/3.png"], read_labels(tmp_path / name))
    assert (labels.tolist(), labels.dtype, classes, missing) == (
        [1, 0, -1],
        np.int32,
        ("dress", "shoe"),
        ["s.tar:d/3.png"],
    )


@pytest.mark.parametrize(
    ("content", "expected", "classes"),
    [
        (b"0.png,shoe\n1.png,\n2.png,hat\n", [1, -1, 0], ("hat", "shoe")),
        (b"0.png,10.0\n1.png,-1\n2.png,2.0\n", [10, -1, 2], ()),
        (b"picture,what it is\n0.png,shoe\n1.png,hat\n2.png,hat\n", [1, 0, 0], ("hat", "shoe")),
        (b"0.png;shoe, red\n1.png;hat, blue\n2.png;hat, blue\n", [1, 0, 0], ("hat, blue", "shoe, red")),
        ("0.png,Schürze\n1.png,hat\n2.png,hat\n".encode("utf-16"), [0, 1, 1], ("Schürze", "hat")),
    ],
    ids=["empty", "numbers", "header", "semicolon", "utf-16"],
)
def test_tables_as_people_write_them(tmp_path, content, expected, classes):
    (tmp_path / "a.csv").write_bytes(content)
    labels, names, missing = assign(["s.tar:0.png", "s.tar:1.png", "s.tar:2.png"], read_labels(tmp_path / "a.csv"))
    assert (labels.tolist(), names, missing) == (expected, classes, [])


def test_json_without_a_class_is_no_class_and_half_numbers_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"0": null, "1": 2.0, "2": "3"}')
    assert assign(["0.png", "1.png", "2.png"], read_labels(tmp_path / "a.json"))[0].tolist() == [-1, 2, 3]
    (tmp_path / "a.json").write_text('{"0": 0.5}')
    with pytest.raises(FormatError, match=r"name or number where it says 0\.5"):
        read_labels(tmp_path / "a.json")


def test_a_bare_name_of_two_images_is_refused():
    with pytest.raises(FormatError, match=r"1\.png is the name of /x/a/1\.png and of /x/b/1\.png; write it with"):
        assign(["/x/a/1.png", "/x/b/1.png"], {"1.png": "shoe"})


def test_metadata_of_hugging_face_gives_labels_but_captions_are_none(tmp_path, encode):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encode(np.full((4, 4), i, np.uint8)))
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a shoe\n1.png,a hat\n")
    source = open_source(str(tmp_path))
    assert source.labels.tolist() == [-1, -1] and "has no columns of names and classes" in source.problems[0]
    (tmp_path / "metadata.csv").write_text("file_name,text,label\n0.png,a shoe,shoe\n1.png,a hat,hat\n")
    source = open_source(str(tmp_path))
    assert (source.labels.tolist(), source.classes) == ([1, 0], ("hat", "shoe"))


def test_the_longest_name_counts_and_numbers_are_labels():
    labels, classes, _ = assign(["/x/a/1.png", "/x/b/1.png"], {"1": "7", "b/1.png": "2"})
    assert (labels.tolist(), classes) == ([7, 2], ())


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "a,b,c\n1,2,3\n", "columns of names and classes, it has a, b, c; call them file_name, label"),
        ("a.csv", "1.png,shoe\n2.png\n", "the line '2.png' has no class"),
        ("a.csv", "1.png,shoe\n1.png,hat\n", "1.png is shoe and also hat"),
        ("a.csv", "file_name,label\n", "names no image"),
        ("a.json", '{"1": [2]}', r"name or number where it says \[2\]"),
        ("a.json", "{", "is no json file"),
        ("a.txt", "", "a label file is .csv"),
    ],
)
def test_what_is_wrong_gets_one_sentence(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=sentence):
        read_labels(tmp_path / name)


def test_a_file_beside_images_without_labels_is_used_and_another_can_be_named(tmp_path, write_tar, encode):
    (tmp_path / "flat").mkdir()
    data = {f"{i}.png": encode(np.full((4, 4), i, np.uint8)) for i in range(3)}
    for name, image in data.items():
        (tmp_path / "flat" / name).write_bytes(image)
    (tmp_path / "flat/labels.csv").write_text("0,shoe\n1,dress\n2,shoe\n")
    shard = write_tar(tmp_path / "tars/s.tar", data)
    (tmp_path / "tars/labels.json").write_text(json.dumps({"0": 4, "2": 1}))
    flat, tar = open_source(str(tmp_path / "flat")), open_source(str(shard))
    assert (flat.labels.tolist(), flat.classes, flat.problems) == ([1, 0, 1], ("dress", "shoe"), [])
    assert (tar.labels.tolist(), tar.classes) == ([4, -1, 1], ())
    assert tar.problems == [f"{tmp_path / 'tars/labels.json'}: 1 images are not named, the first is s.tar:1.png"]

    own = write_tar(tmp_path / "tars/own.tar", data | {"0.cls": b"9"})
    assert open_source(str(own)).labels.tolist() == [9, -1, -1]
    named = open_source(str(own), labels=tmp_path / "flat/labels.csv")
    assert (named.labels.tolist(), named.classes) == ([1, 0, 1], ("dress", "shoe"))
    (tmp_path / "other.csv").write_text("x,shoe\n")
    with pytest.raises(InputError, match=r"other\.csv: names none of 3 images; the first is own\.tar:0\.png"):
        open_source(str(own), labels=tmp_path / "other.csv")
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        open_source(str(own), labels="none.csv")
    (tmp_path / "flat/labels.csv").write_text("0\n")
    assert "labels.csv" in open_source(str(tmp_path / "flat")).problems[0]
