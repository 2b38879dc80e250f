"""Commands that write to a bucket: whole, the index last, and nothing stays on this machine."""

import json
from hashlib import sha256
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from maejax.storage import placed

from ..gcs import Storage


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Make an empty bucket; return a function that lists its files, and note the order in which they came."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    put, order = system.put_file, []
    monkeypatch.setattr(type(system), "put_file", lambda self, path, key, **_: order.append(key) or put(path, key))
    monkeypatch.setattr(placed, "try_bucket", lambda address: 0.0)
    yield order
    system.store.clear()


def there(name):
    return fsspec.filesystem("memory").cat_file(f"/b/{name}")


def left(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_every_command_that_writes_takes_an_address(trained, maejax, images, bucket, tmp_path):
    for command, files in (
        (("features", trained, images, "--out", "memory://b/f.npz"), ["f.npz"]),
        (("features", trained, images, "--out", "memory://b/d/f.npy"), ["d/f.npy", "d/f.parquet"]),
        (("convert", trained, "memory://b/encoder.safetensors", "--to", "timm"), ["encoder.safetensors"]),
        (("export", trained, "--out", "memory://b/hub"), ["hub/config.json", "hub/README.md"]),
        (("pack", images, "memory://b/packed", "--shard-size", 10), ["packed/packed-0000.tar", "packed/index.json"]),
        (("data", images, "--out", "memory://b/sheet.png"), ["sheet.png"]),
        (("evaluate", trained, "--train-dataset-shards", images, "--valid-dataset-shards", images, "--protocol", "knn",
          "--out", "memory://b/report"), ["report/report.html", "report/report.json"]),
    ):  # fmt: skip
        code, printed = maejax(*command)
        assert code == 0 and "memory://b/" in printed and str(tmp_path / "cache") not in printed, printed
        assert all(there(name) for name in files)
        assert command[0] != "pack" or "next     maejax train memory://b/packed\n" in printed
        assert left(tmp_path) == []
    index = json.loads(there("packed/index.json"))
    assert [len(there(f"packed/{shard['name']}")) for shard in index["shards"]] == [s["bytes"] for s in index["shards"]]
    assert bucket.index("/b/packed/index.json") > max(i for i, key in enumerate(bucket) if key.endswith(".tar"))
    code, printed = maejax("features", trained, images, "--out", "f.npz")
    assert code == 0 and there("f.npz") == Path("f.npz").read_bytes()
    count = len(bucket)  # a finished pack is left as it is
    assert maejax("pack", images, "memory://b/packed", "--shard-size", 10)[0] == 0 and len(bucket) == count


def test_parts_meet_in_a_bucket(trained, maejax, images, bucket, tmp_path):
    command = ("features", trained, images, "--out", "memory://b/f.npy")
    for number in range(3):
        assert maejax(*command, "--part", f"{number}/3")[0] == 0
    assert bucket[-1] == "/b/f-00002-of-00003.json"
    count = len(bucket)
    assert maejax(*command, "--part", "1/3")[0] == 0 and len(bucket) == count  # it is there
    code, printed = maejax(*command, "--gather")
    assert code == 0 and "24 features of shape [16] in 3 files that memory://b/f.json lists" in printed, printed
    assert [part["first"] for part in json.loads(there("f.json"))["parts"]] == [0, 8, 16] and left(tmp_path) == []
    fsspec.filesystem("memory").rm_file("/b/f-00001-of-00003.npy")
    code, printed = maejax(*command, "--gather")
    assert code == 1 and "part 1 of 3 is not there" in printed, printed


@pytest.fixture
def held(bucket, tmp_path, monkeypatch):
    """Note how many shards take room on this machine whenever a file is sent."""
    system, counts = type(fsspec.filesystem("memory")), []
    put = system.put_file

    def note(self, path, key, **more):
        counts.append(sum(each.stat().st_blocks > 0 for each in left(tmp_path) if each.suffix == ".tar"))
        put(self, path, key, **more)

    monkeypatch.setattr(system, "put_file", note)
    return counts


def test_shards_of_a_part_leave_this_machine_as_they_come(maejax, images, bucket, held, tmp_path):
    assert maejax("pack", images, "photos", "--shard-size", 4)[0] == 0
    code, printed = maejax("pack", "photos", "memory://b/packed", "--part", "0/1", "--workers", 1)
    assert code == 0 and bucket[:6] == [f"/b/packed/packed-{s:05d}-0000.tar" for s in range(6)], printed
    assert max(held) == 1 and left(tmp_path) == []
    assert maejax("pack", "photos", "memory://b/packed", "--gather")[0] == 0 and bucket[-1] == "/b/packed/index.json"
    assert_whole(json.loads(there("packed/index.json")))


def assert_whole(index):
    assert all(sha256(there(f"packed/{s['name']}")).hexdigest() == s["sha256"] for s in index["shards"])


def test_so_do_shards_of_local_files_of_which_some_are_broken(maejax, bucket, held, tmp_path, monkeypatch):
    """A bucket that fails on the way is no reason to send what it has again."""
    (tmp_path / "photos").mkdir()
    for i in range(12):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"photos/{i:02d}.png")
        if i < 4:
            (tmp_path / f"photos/{i:02d}.png").write_bytes(b"no picture")
    options = ("--shard-size", 2, "--shuffle-seed", "None", "--workers", 1)
    assert maejax("pack", "photos", "memory://b/undisturbed", *options)[0] == 0 and max(held) == 1
    del bucket[:], held[:]
    pack = ("pack", "photos", "memory://b/packed", *options)
    system = type(fsspec.filesystem("memory"))
    note = system.put_file
    with monkeypatch.context() as patch:
        patch.setattr(system, "put_file", lambda *a, **k: note(*a, **k) if len(held) < 3 else exec("raise OSError(5)"))
        assert maejax(*pack)[0] == 1
    assert maejax(*pack)[0] == 0 and left(tmp_path) == []
    shards = [f"/b/packed/packed-{s:04d}.tar" for s in range(6)]
    assert sorted(key for key in bucket if key.endswith(".tar")) == shards and bucket[-1] == "/b/packed/index.json"
    index = json.loads(there("packed/index.json"))
    assert [s["samples"] for s in index["shards"]] == [0, 0, 2, 2, 2, 2] and len(index["skipped"]) == 4
    assert_whole(index)
    code, printed = maejax("data", "memory://b/packed")
    assert code == 0 and "images    8  .png 8" in printed and "packed-0000.tar: holds no image" in printed, printed


def test_google_cloud_storage_is_written_and_gathered(trained, maejax, images, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage = Storage.connected(monkeypatch)
    try:
        assert maejax("pack", images, "photos", "--shard-size", 8)[0] == 0
        for number in range(2):
            assert maejax("pack", "photos", "gs://mine/packed", "--part", f"{number}/2")[0] == 0
            code, printed = maejax("features", trained, images, "--out", "gs://mine/f.npy", "--part", f"{number}/2")
            assert code == 0, printed
        assert maejax("pack", "photos", "gs://mine/packed", "--gather")[0] == 0
        assert maejax("features", trained, images, "--out", "gs://mine/f.npy", "--gather")[0] == 0
        shards = [f"packed/packed-{s:05d}-0000.tar" for s in range(3)]
        assert storage.names("packed") == ["packed/index.json", *shards] and left(tmp_path) == []
        assert maejax("features", trained, images, "--out", "f.npy")[0] == 0
        parts = [storage.objects["mine", f"f-0000{n}-of-00002.npy"] for n in range(2)]
        assert Path("f.npy").read_bytes()[128:] == b"".join(part[128:] for part in parts)
        storage.refuse = lambda method, key: 403 if method == "WRITE" else 0
        code, printed = maejax("features", trained, images, "--out", "gs://mine/g.npy")
        assert code == 2 and "--out gs://mine/g.npy: " in printed and "may write" in printed, printed
    finally:
        storage.stop()


def test_what_a_bucket_has_is_not_sent_by_a_command_that_is_tried_again(trained, maejax, images, bucket, monkeypatch):
    command = ("features", trained, images, "--out", "memory://b/f.npy", "--part")
    assert maejax(*command, "0/2")[0] == 0
    first, system = there("f-00000-of-00002.npy"), type(fsspec.filesystem("memory"))
    with monkeypatch.context() as patch:
        patch.setattr(system, "put_file", lambda *_, **__: exec("raise OSError('quota exceeded')"))
        assert maejax(*command, "1/2")[0] == 1
    assert maejax(*command, "1/2")[0] == 0 and there("f-00000-of-00002.npy") == first


def test_a_bucket_that_fails_keeps_what_was_written(trained, maejax, images, bucket, tmp_path, monkeypatch):
    system = type(fsspec.filesystem("memory"))
    works = system.put_file

    def fail(*_, **__):
        raise OSError("quota exceeded")

    monkeypatch.setattr(system, "put_file", fail)
    code, printed = maejax("features", trained, images, "--out", "memory://b/f.npz")
    assert code == 1 and "memory://b/f.npz cannot be written: quota exceeded; what was written is in" in printed, (
        printed
    )
    assert [path.name for path in left(tmp_path)] == ["f.npz"]
    # Another part is no reason to send or remove it.
    monkeypatch.setattr(system, "put_file", works)
    assert maejax("features", trained, images, "--out", "memory://b/f.npy", "--part", "0/2")[0] == 0
    assert [path.name for path in left(tmp_path)] == ["f.npz"] and "/b/f.npz" not in fsspec.filesystem("memory").store
    assert maejax("features", trained, images, "--out", "memory://b/f.npz")[0] == 0 and there("f.npz")
    code, printed = maejax("features", trained, images, "--out", "file:///tmp/f.npz")
    assert code == 2 and "without file://" in printed
    assert np.load(fsspec.open("memory://b/f.npz").open())["features"].shape == (24, 16)
