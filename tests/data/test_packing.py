import hashlib
import json
import tarfile

import numpy as np
import pytest

from maejax.data.decode import decode
from maejax.data.packing import pack
from maejax.data.sources import Source, open_source
from maejax.data.verify import verify
from maejax.errors import InputError


@pytest.fixture
def folder(tmp_path, encode):
    for i in range(11):
        path = tmp_path / "in" / ("shoe" if i % 2 else "dress") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full((6, 6), i, np.uint8)))
    return tmp_path / "in"


def test_shards_hold_the_same_bytes_balanced_and_shuffled(tmp_path, folder):
    calls = []
    index = pack(str(folder), str(tmp_path / "out"), shard_size=4, progress=lambda *args: calls.append(args))
    source, packed = open_source(str(folder)), open_source(str(tmp_path / "out"))
    before = {source.read(i): source.labels[i] for i in range(11)}
    after = {packed.read(i): packed.labels[i] for i in range(11)}
    assert before == after
    assert list(before) != list(after)
    assert packed.classes == ("dress", "shoe")
    assert len({key.partition(":")[2] for key in packed.keys}) == 11, "a name is given once over all shards"
    assert [shard["samples"] for shard in index["shards"]] == [4, 4, 3]
    assert calls[-1] == (11, 11)
    assert json.loads((tmp_path / "out/index.json").read_text()) == index
    for shard in index["shards"]:
        data = (tmp_path / "out" / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["index.json", "out-0000.tar", "out-0001.tar", "out-0002.tar"]


def test_the_same_input_gives_the_same_bytes(tmp_path, folder):
    for place in "ab":
        pack(str(folder), str(tmp_path / place / "out"), shard_size=4)
    for path in (tmp_path / "a/out").iterdir():
        assert path.read_bytes() == (tmp_path / "b/out" / path.name).read_bytes()
    pack(str(folder), str(tmp_path / "c"), shuffle_seed=None)
    with tarfile.open(tmp_path / "c/c-0000.tar") as tar:
        assert tar.getnames()[:3] == ["00000000.png", "00000000.cls", "00000001.png"]
    unshuffled, source = open_source(str(tmp_path / "c")), open_source(str(folder))
    assert [unshuffled.read(i) for i in range(11)] == [source.read(i) for i in range(11)]


def test_unreadable_images_are_left_out_and_named(tmp_path, folder):
    (folder / "shoe/bad.jpg").write_bytes(b"\xff\xd8\xff")
    index = pack(str(folder), str(tmp_path / "out"))
    assert index["total"] == 11
    assert list(index["skipped"]) == [str(folder / "shoe/bad.jpg")]
    assert len(open_source(str(tmp_path / "out"))) == 11
    for path in folder.rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match="none of 1 images can be read"):
        pack(str(folder), str(tmp_path / "none"))


def test_the_short_side_is_resized_where_it_is_longer(tmp_path, photo, encode):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.jpg").write_bytes(encode(photo, "JPEG", quality=95))
    (tmp_path / "in/2.png").write_bytes(encode(photo[..., 0]))
    (tmp_path / "in/3.png").write_bytes(encode(photo[:50, :60]))
    pack(str(tmp_path / "in"), str(tmp_path / "out"), shuffle_seed=None, image_size=75)
    with tarfile.open(tmp_path / "out/out-0000.tar") as tar:
        assert tar.getnames() == ["00000000.jpg", "00000001.png", "00000002.png"]
    packed = open_source(str(tmp_path / "out"))
    assert [decode(packed.read(i)).shape for i in range(3)] == [(75, 100, 3), (75, 100, 3), (50, 60, 3)]
    assert np.abs(decode(packed.read(0)).mean() - photo.mean()) < 1
    assert packed.read(2) == (tmp_path / "in/3.png").read_bytes()


def test_arrays_become_png(tmp_path):
    images = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([2, 0, 1]), classes=np.array(["x", "y", "z"]))
    pack(str(tmp_path / "a.npz"), str(tmp_path / "out"), shuffle_seed=None)
    packed = open_source(str(tmp_path / "out"))
    np.testing.assert_array_equal([decode(packed.read(i), 1)[..., 0] for i in range(3)], images)
    assert (packed.labels.tolist(), packed.classes) == ([2, 0, 1], ("x", "y", "z"))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupted_pack_goes_on_and_a_finished_one_is_left_alone(tmp_path, folder, workers):
    def interrupt(done, total):
        if done == 9:
            raise KeyboardInterrupt

    out, whole = tmp_path / "in-parts" / "out", tmp_path / "at-once" / "out"
    with pytest.raises(KeyboardInterrupt):
        pack(str(folder), str(out), shard_size=2, workers=workers, progress=interrupt)
    assert not (out / "index.json").exists()
    kept = {path: path.stat().st_ino for path in out.glob("*.tar")}
    assert 1 <= len(kept) <= 5  # a thread may write another one before it hears of the interruption
    (out / "out-0000.tar").write_bytes(b"cut")  # a record alone does not count
    kept.pop(out / "out-0000.tar", None)
    with (out / "pack.jsonl").open("a") as journal:
        journal.write('{"name": "out-0005')
    with pytest.raises(KeyboardInterrupt):
        pack(str(folder), str(out), shard_size=2, workers=1, progress=lambda *_: interrupt(9, 11))
    assert all(f'"{path.name}"' in (out / "pack.jsonl").read_text() for path in kept)
    calls = []
    index = pack(str(folder), str(out), shard_size=2, workers=2, progress=lambda *call: calls.append(call))
    images = sum(1 if path.name == "out-0005.tar" else 2 for path in kept)
    assert (calls[0], calls[-1]) == ((images + 1, 11), (11, 11))
    assert {path: path.stat().st_ino for path in kept} == kept
    assert pack(str(folder), str(whole), shard_size=2, workers=1) == index
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }

    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert pack(str(folder), str(out), shard_size=2) == index
    assert times == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(InputError, match="holds other files, or another pack"):
        pack(str(folder), str(out), shard_size=5)
    (out / "out-0001.tar").unlink()
    assert pack(str(folder), str(out), shard_size=2) == index
    assert (out / "out-0001.tar").read_bytes() == (whole / "out-0001.tar").read_bytes()
    assert times[out / "out-0002.tar"] == (out / "out-0002.tar").stat().st_mtime_ns


def test_shards_stay_balanced_where_images_are_left_out(tmp_path, folder, monkeypatch):
    for i in range(8):  # without a shuffle they fill shards of their own
        (folder / f"dress/bad{i}.jpg").write_bytes(b"\xff\xd8\xff")
    arguments = {"shard_size": 3, "shuffle_seed": None}
    index = pack(str(folder), str(tmp_path / "a/out"), **arguments)
    assert [shard["samples"] for shard in index["shards"]] == [3, 3, 3, 2]
    assert (index["total"], len(index["skipped"])) == (11, 8)
    names = sorted(path.name for path in (tmp_path / "a/out").iterdir())
    assert names == ["index.json", *(f"out-{i:04d}.tar" for i in range(4))]
    assert verify(str(tmp_path / "a/out"), deep=True).wrong == []
    source, packed = open_source(str(folder)), open_source(str(tmp_path / "a/out"))
    good = [i for i in range(19) if source.keys[i] not in index["skipped"]]
    assert [packed.read(i) for i in range(11)] == [source.read(i) for i in good]
    assert packed.labels.tolist() == source.labels[good].tolist()

    # Interrupted while the images are dealt out anew: the same in the end.
    read = Source.read

    def interrupt(source, i):
        if ".uneven" in str(source.files[0]) and i == 5:
            raise KeyboardInterrupt
        return read(source, i)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Source, "read", interrupt)
        pack(str(folder), str(tmp_path / "b/out"), **arguments)
    calls = []
    assert pack(str(folder), str(tmp_path / "b/out"), **arguments, progress=lambda *call: calls.append(call)) == index
    assert calls == [], "no image is read from the source again"
    assert sorted(path.name for path in (tmp_path / "b/out").iterdir()) == names


def test_quality_makes_lossy_images_smaller_and_leaves_the_others(tmp_path, photo, encode):
    (tmp_path / "in").mkdir()
    for name, data in {
        "1.jpg": encode(photo, "JPEG", quality=95),
        "2.jpeg": encode(photo, "JPEG", quality=20),
        "3.webp": encode(photo, "WEBP", lossless=True),
        "4.png": encode(photo),
    }.items():
        (tmp_path / "in" / name).write_bytes(data)
    pack(str(tmp_path / "in"), str(tmp_path / "out"), shuffle_seed=None, quality=60)
    source, packed = open_source(str(tmp_path / "in")), open_source(str(tmp_path / "out"))
    assert [key.partition(".tar:")[2] for key in packed.keys] == [
        f"0000000{i}{suffix}" for i, suffix in enumerate([".jpg", ".jpg", ".jpg", ".png"])
    ]
    assert len(packed.read(0)) < len(source.read(0)) / 2
    assert [packed.read(i) == source.read(i) for i in range(4)] == [False, True, False, True]
    assert np.abs(decode(packed.read(2)).astype(int) - photo).mean() < 6


def test_labels_come_from_a_file(tmp_path, folder):
    (tmp_path / "labels.csv").write_text("".join(f"{i}.png,{'even' if i % 2 == 0 else 'odd'}\n" for i in range(11)))
    pack(str(folder), str(tmp_path / "out"), shuffle_seed=None, labels=str(tmp_path / "labels.csv"))
    packed = open_source(str(tmp_path / "out"))
    assert packed.classes == ("even", "odd")
    assert [int(decode(packed.read(i)).max()) % 2 for i in range(11)] == packed.labels.tolist()


def test_a_folder_with_other_files_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="holds other files"):
        pack(str(folder), str(folder / "shoe"))
