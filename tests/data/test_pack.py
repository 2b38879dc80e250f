import hashlib
import json
import tarfile

import numpy as np
import pytest

from maejax.data.decode import decode
from maejax.data.pack import pack
from maejax.data.shards import DataError, open_source


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
    with pytest.raises(DataError, match="none of 1 images can be read"):
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


def test_a_finished_pack_is_left_alone_and_an_interrupted_one_done_again(tmp_path, folder):
    out = tmp_path / "out"

    def interrupt(done, total):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(str(folder), str(out), shard_size=4, progress=interrupt)
    assert not (out / "index.json").exists()
    index = pack(str(folder), str(out), shard_size=4)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert pack(str(folder), str(out), shard_size=4) == index
    assert times == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(DataError, match="holds other files, or another pack"):
        pack(str(folder), str(out), shard_size=5)
    (out / "out-0001.tar").unlink()
    assert pack(str(folder), str(out), shard_size=4) == index
    assert (out / "out-0001.tar").exists()


def test_a_folder_with_other_files_is_refused(tmp_path, folder):
    with pytest.raises(DataError, match="holds other files"):
        pack(str(folder), str(folder / "shoe"))
