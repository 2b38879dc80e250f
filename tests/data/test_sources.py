import bz2
import gzip
import json
import lzma
import pickle
import re
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest

from maejax.data.decode import decode
from maejax.data.expand import expand
from maejax.data.sources import open_source
from maejax.errors import InputError
from maejax.storage.unpack import zstd

PHOTOS = Path(__file__).parents[3] / "shared/data/clothing-small.tar"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_read_as_tarfile_reads_it(tmp_path, write_tar, encode, format):
    names = ["a.png", "ä.png", f"{'d' * 90}/{'e' * 60}.png", f"long/{'n' * 90}.png"]
    if format != tarfile.USTAR_FORMAT:
        names.append("x" * 300 + ".png")
    members = {name: encode(np.full((4, 4), i, np.uint8)) + bytes(i * 300) for i, name in enumerate(names)}
    source = open_source(str(write_tar(tmp_path / "s.tar", members, format)))
    assert source.keys == [f"s.tar:{name}" for name in names]
    assert [source.read(i) for i in range(len(source))] == list(members.values())
    assert source.problems == []


def test_every_suffix_and_label_form_is_a_sample(tmp_path, write_tar, encode):
    image = encode(np.zeros((4, 4), np.uint8))
    shard = write_tar(
        tmp_path / "s.tar",
        {
            "0.png": image,
            "0.cls": b"7\n",
            "1.JPG": image,
            "1.json": b'{"label": 3}',
            "2.webp": image,
            "2.json": b'{"cls": 4, "caption": "' + b"x" * 900 + b'"}',
            "3.JPEG": image,
            "3.txt": b"a shoe",
            "4.jpg": image,
            "4.seg.png": image,
            "4.cls": b"dress",
            "v1.2.jpg": image,
            "v1.3.jpg": image,
            "._0.png": image,
            "__MACOSX/0.png": image,
        },
    )
    source = open_source(str(shard))
    names = [key.removeprefix("s.tar:") for key in source.keys]
    assert names == ["0.png", "1.JPG", "2.webp", "3.JPEG", "4.jpg", "v1.2.jpg", "v1.3.jpg"]
    assert source.labels.tolist() == [7, 3, 4, -1, -1, -1, -1]
    assert source.labels.dtype == np.int32
    assert [problem.rpartition(":")[2] for problem in source.problems] == ["4.seg.png", "4.jpg"]
    assert (
        "that describe others of the same name" in source.problems[0] and "names where others are" in source.problems[1]
    )


def test_brace_lists_globs_lists_and_folders_name_the_same_shards(tmp_path, numbered, monkeypatch):
    for i in (8, 9, 10):
        numbered(tmp_path / f"d/train-{i:02d}.tar", 2)
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = open_source(f"{tmp_path}/d/train-{{08..10}}.tar").keys
    assert keys[::2] == [f"train-{i:02d}.tar:0000.png" for i in (8, 9, 10)]
    for spec in ("~/d", "~/d/*.tar", "~/d/train-{0{8,9},10}.tar", [f"~/d/train-{i}.tar" for i in ("08", "09", "10")]):
        assert open_source(spec).keys == keys
    with pytest.raises(InputError, match=r"not found: .*train-07\.tar; "):
        open_source(f"{tmp_path}/d/train-{{07..10}}.tar")


def test_braces_globs_and_lists_as_shells_have_them(tmp_path, numbered):
    for name, numbers in (
        ("{0..10..5}", "0 5 10"),
        ("{10..0..5}", "10 5 0"),
        ("{a..c}", "a b c"),
        ("{00..2}", "00 01 02"),
    ):
        assert expand(f"https://h/{name}.tar") == [f"https://h/{number}.tar" for number in numbers.split()]
    assert expand("https://h/{a..2}.tar") == ["https://h/{a..2}.tar"]
    shards = [numbered(tmp_path / f"data [2024]/t-{name}.tar", 1) for name in "ab"]
    assert expand(f"{tmp_path}/data [2024]/*.tar") == expand(f"{tmp_path}/data [2024]/t-{{a..b}}.tar") == shards
    (tmp_path / "list").write_text(f"\ufeff{shards[0]}\n", encoding="utf-8")
    assert expand(f"@{tmp_path}/list") == shards[:1]


def test_specs_of_shards_elsewhere(tmp_path, server, monkeypatch):
    command = "pipe:curl -s -L https://h/{08..10}.tar -H 'Authorization:Bearer $T' | awk '{print $1,$2}' | tee {a,b}"
    assert expand(command) == [command.replace("{08..10}", n) for n in ("08", "09", "10")]
    assert expand("https://h/{a,b}-{0,1}.tar?x=1") == [f"https://h/{x}.tar?x=1" for x in ("a-0", "a-1", "b-0", "b-1")]
    system = fsspec.filesystem("memory")
    for name in ("t-0.tar", "t-1.tar.gz", "index.json"):
        system.pipe(f"/specs/d/{name}", b"x")
    shards = ["memory://specs/d/t-0.tar", "memory://specs/d/t-1.tar.gz"]
    assert expand("memory://specs/d/") == expand("memory://specs/d/t-*") == shards
    assert expand("memory://specs/*/t-{0.tar,1.tar.*}") == shards
    system.rm("/specs", recursive=True)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    page = [{"type": "file", "path": f"data/t-{i}.tar"} for i in (1, 0)] + [{"type": "directory", "path": "data/x"}]
    server.files["/api/datasets/me/set/tree/main/data"] = json.dumps(page).encode()
    found = ["hf://datasets/me/set/data/t-0.tar", "hf://datasets/me/set/data/t-1.tar"]
    assert expand("hf://datasets/me/set/data/*.tar") == expand("hf://datasets/me/set/data") == found
    (tmp_path / "list").write_text(f"# all\n\n{found[0]}\n  pipe:x\n")
    assert expand(f"@{tmp_path}/list") == [found[0], "pipe:x"]
    for spec, words in [
        ("memory://specs/none/*.tar", "no tar shards there"),
        ("https://h/*.tar", "cannot list its files"),
        ("hf://me/set/*.tar", "write hf://datasets/OWNER/NAME/PATH"),
        ("hf://me/set/a.tar", "write hf://datasets/OWNER/NAME/PATH"),
        (f"@{tmp_path}/missing", "cannot be read as a list of shards: No such file"),
        (f"@{server.url}/missing?token=secret", r"token=\*\*\*: cannot be read.*404"),
    ]:
        with pytest.raises(InputError, match=words):
            expand(spec)
    (tmp_path / "list").write_text("# nothing\n")
    with pytest.raises(InputError, match="holds no shards"):
        expand(f"@{tmp_path}/list")


def test_keys_tell_shards_of_one_name_apart(tmp_path, numbered):
    source = open_source([str(numbered(tmp_path / name / "s.tar", 2)) for name in "ab"])
    assert len(set(source.keys)) == 4


def test_class_folders_are_labels_in_tars_and_on_disk(tmp_path, write_tar, encode):
    images = {
        f"train/{name}": encode(np.full((4, 4), i, np.uint8))
        for i, name in enumerate(["shoe/1.png", "dress/1.png", "dress/2.PNG"])
    }
    for name, data in images.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    nested = tmp_path / "train/shoe/deep/3.png"
    nested.parent.mkdir()
    nested.write_bytes(images["train/shoe/1.png"])
    folder = open_source(str(tmp_path / "train"))
    assert folder.classes == ("dress", "shoe")
    assert folder.labels.tolist() == [0, 0, 1, 1]
    assert folder.keys[-1] == str(nested)
    assert folder.read(2) == images["train/shoe/1.png"]

    tar = open_source(str(write_tar(tmp_path / "s.tar", images)))
    assert (tar.classes, tar.labels.tolist()) == (("dress", "shoe"), [1, 0, 0])
    flat = open_source(str(tmp_path / "train/dress"))
    assert (flat.classes, flat.labels.tolist()) == ((), [-1, -1])
    (tmp_path / "one").mkdir()
    (tmp_path / "train/shoe").rename(tmp_path / "one/shoe")
    one = open_source(str(tmp_path / "one"))
    assert (one.classes, one.labels.tolist()) == ((), [-1, -1])
    dotted = write_tar(tmp_path / "d.tar", {"./1.png": b"", "./shoe/1.png": b"", "./dress/1.png": b""})
    assert open_source(str(dotted)).labels.tolist() == [-1, 1, 0]


def test_arrays_are_a_source(tmp_path):
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([1, 0]), classes=np.array(["dress", "shoe"]))
    source = open_source(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(decode(source.read(1), 1)[..., 0], images[1])
    assert (source.labels.tolist(), source.classes, source.keys[1]) == ([1, 0], ("dress", "shoe"), "a.npz:1")
    np.savez(tmp_path / "b.npz", images=images.astype(str))
    with pytest.raises(InputError, match=r"<U3 \[2, 3, 4\]; they must be numbers"):
        open_source(str(tmp_path / "b.npz"))


def test_a_cut_tar_gives_what_is_whole_and_is_named(tmp_path, numbered):
    whole = numbered(tmp_path / "whole.tar", 4)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[: 512 * 4 * 2 + 512 * 3 + 20])  # in the third image
    page = tmp_path / "page.tar"
    page.write_bytes(b"<!DOCTYPE html>" * 100)
    source = open_source([str(path) for path in (whole, cut, page)])
    assert [key.split(":")[0] for key in source.keys].count("whole.tar") == 4
    assert source.keys[4:] == ["cut.tar:0000.png", "cut.tar:0001.png"]
    assert [problem.split(": ")[0] for problem in source.problems] == [str(cut), str(page)]
    assert "it was cut" in source.problems[0]
    assert "not a tar" in source.problems[1]


def test_damaged_headers_end_the_listing_and_never_hang(tmp_path, write_tar):
    data = write_tar(tmp_path / "s.tar", {"a" * 200 + ".png": b"x"}, tarfile.PAX_FORMAT).read_bytes()
    for broken in (
        data.replace(b" path=", b"!path=", 1),
        data[:512] + b"0" + data[513:],
        data[:124] + b"-0000001777\0" + data[136:],
        re.sub(rb"\d\d\d path=", b"000 path=", data),
    ):
        (tmp_path / "s.tar").write_bytes(broken)
        with pytest.raises(InputError, match="no image found"):
            open_source(str(tmp_path / "s.tar"))


def test_nothing_found_says_what_was_looked_at(tmp_path, write_tar):
    write_tar(tmp_path / "s.tar", {"1.txt": b"", "2.txt": b"", "3.bin": b""})
    with pytest.raises(InputError, match=r"no image found; looked at 1 path with 3 files, suffixes seen: \.txt x 2"):
        open_source(str(tmp_path / "s.tar"))
    with pytest.raises(InputError, match="no image found"):
        open_source(str(tmp_path / "s.tar").replace("s.tar", "*"))


def test_class_names_come_from_the_index_beside_the_shards(tmp_path, numbered):
    shard = numbered(tmp_path / "s.tar", 3)
    index = {"shards": [{"name": "s.tar"}], "classes": ["a", "b", "c"]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert open_source(str(shard)).classes == ("a", "b", "c")
    (tmp_path / "index.json").write_text("[]")
    assert open_source(str(shard)).classes == ()


def test_packed_local_shards_are_unpacked(tmp_path, numbered):
    shard = numbered(tmp_path / "d/s-0.tar", 3)
    (tmp_path / "d/s-1.tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
    (tmp_path / "d/s-2.tar.zst").write_bytes(zstd.compress(shard.read_bytes()))
    (tmp_path / "d/s-3.tar.bz2").write_bytes(bz2.compress(shard.read_bytes()))
    (tmp_path / "d/s-4.tar.xz").write_bytes(lzma.compress(shard.read_bytes()))
    source = open_source(str(tmp_path / "d"))
    assert sorted(source.keys) == sorted(
        f"{s}:{i:04d}.png"
        for s in ("s-0.tar", "s-1.tar.gz", "s-2.tar.zst", "s-3.tar.bz2", "s-4.tar.xz")
        for i in range(3)
    )
    assert source.labels.tolist() == [0, 1, 2] * 5
    assert {source.read(i) for i in range(15)} == {source.read(i) for i in range(3)}


def test_a_source_can_be_sent_to_another_process(tmp_path, numbered):
    source = open_source(str(numbered(tmp_path / "s.tar", 3)))
    assert pickle.loads(pickle.dumps(source)).read(2) == source.read(2)


@pytest.mark.skipif(not PHOTOS.exists(), reason="the photos are not on this machine")
def test_real_photos_have_ten_classes():
    source = open_source(str(PHOTOS))
    assert len(source) == 3781
    assert len(source.classes) == 10
    assert source.classes[source.labels[0]] in source.keys[0]
    assert source.problems == [f"{PHOTOS}: holds the splits test, train, validation, and all of them are read"]
