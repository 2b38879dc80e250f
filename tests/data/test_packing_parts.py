"""Packing in parts: the same shards whatever the parts, from shards where they lie, also after a stop."""

import json
import tempfile
from collections import Counter
from hashlib import sha256

import numpy as np
import pytest

from maejax.data.packing_parts import gather_shards, pack_part
from maejax.data.pieces import Part
from maejax.data.sources import open_source
from maejax.data.verify import verify
from maejax.errors import Failed, InputError

SIZES = (5, 1, 7, 4)  # images of the shards; each holds one class folder
KINDS = ("cat", "dog", "cat", "eel")


@pytest.fixture
def shards(encode, write_tar, tmp_path):
    """Write shards of class folders; image i of all has the value i. Returns their spec."""
    number = iter(range(100))
    for s, (size, kind) in enumerate(zip(SIZES, KINDS, strict=True)):
        files = {f"{kind}/{i}.png": encode(np.full((6, 6, 3), next(number), np.uint8)) for i in range(size)}
        write_tar(tmp_path / "in" / f"s-{s}.tar", files)
    return f"{tmp_path}/in/s-{{0..3}}.tar"


def packed(folder):
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def content(folder):
    """Count (value, class) of all images in a folder of shards."""
    source = open_source(f"{folder}/*.tar")
    pictures = [open_source(f"{folder}/*.tar").read(i) for i in range(len(source))]
    from maejax.data.decode import decode

    return Counter(
        (int(decode(picture, 1)[0, 0, 0]), source.classes[label])
        for picture, label in zip(pictures, source.labels, strict=True)
    )


@pytest.mark.parametrize("where", ["here", "there", "folder"])
def test_shards_do_not_depend_on_the_parts(shards, server, tmp_path, encode, where):
    spec = shards
    if where == "there":
        server.files |= {f"/s-{s}.tar": (tmp_path / "in" / f"s-{s}.tar").read_bytes() for s in range(4)}
        spec = f"{server.url}/s-{{0..3}}.tar"
    if where == "folder":
        spec, number = str(tmp_path / "photos"), iter(range(100))
        for s, (size, kind) in enumerate(zip(SIZES, KINDS, strict=True)):
            for i in range(size):
                path = tmp_path / "photos" / kind / f"{s}-{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(np.full((6, 6, 3), next(number), np.uint8)))
    found = []
    for count in (1, 3, 8):
        folder = tmp_path / str(count) / "out"
        for number in reversed(range(count)):
            before = len(server.seen)
            pack_part(spec, str(folder), Part(number, count), shard_size=3)
            (folder / "out-0000.tar.1-1.part").write_bytes(b"of a part that was killed")
            assert len({seen[0] for seen in server.seen[before:]} - {"/index.json"}) <= -(-4 // count)
        before = packed(folder)
        assert pack_part(spec, str(folder), Part(0, count), shard_size=3)["pack"]["part"] == [0, count]
        assert packed(folder) == before  # a finished part is left as it is
        index = gather_shards(str(folder))
        assert (index["total"], index["classes"]) == (17, ["cat", "dog", "eel"]) and gather_shards(str(folder)) == index
        assert verify(str(folder), deep=True).wrong == [] and not list(folder.glob("*part*"))
        files = packed(folder)
        files.pop("index.json")
        found.append(files)
    assert found[0] == found[1] == found[2] and len(found[0]) == (6 if where == "folder" else 8)
    expected = [(value, kind) for value, kind in enumerate(np.repeat(KINDS, SIZES).tolist())]
    assert content(tmp_path / "3" / "out") == Counter(expected)


def test_a_stopped_part_goes_on_and_two_shards_at_most_are_here(shards, server, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server.files |= {f"/s-{s}.tar": (tmp_path / "in" / f"s-{s}.tar").read_bytes() for s in range(4)}
    spec, most = f"{server.url}/s-{{0..3}}.tar", []

    def stop(done, total):
        most.append(len(list(tmp_path.glob("maejax-shards-*/*"))))
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_part(spec, str(tmp_path / "out"), Part(0, 1), shard_size=3, workers=1, progress=stop)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert max(most) <= 2 and len(kept) >= 4
    pack_part(spec, str(tmp_path / "out"), Part(0, 1), shard_size=3)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}.items()
    pack_part(spec, str(tmp_path / "whole" / "out"), Part(0, 1), shard_size=3)
    assert packed(tmp_path / "out") == packed(tmp_path / "whole" / "out")
    del server.files["/s-1.tar"]
    with pytest.raises(Failed, match=r"s-1\.tar: .*404"):
        pack_part(spec, str(tmp_path / "less" / "out"), Part(0, 2), shard_size=3)


def test_shards_elsewhere_are_packed_one_by_one(shards, server, tmp_path, maejax):
    server.files |= {f"/s-{s}.tar": (tmp_path / "in" / f"s-{s}.tar").read_bytes() for s in range(4)}
    command = ("pack", f"{server.url}/s-{{0..3}}.tar", "out", "--shard-size", 3)
    code, printed = maejax(*command)
    assert code == 0 and "17 images in 8 shards in out" in printed, printed
    before, asked = packed(tmp_path / "out"), len(server.seen)
    assert maejax(*command)[0] == 0 and packed(tmp_path / "out") == before
    assert {path for path, *_ in server.seen[asked:]} <= {"/index.json"}  # a finished pack is left as it is
    pack_part(shards, str(tmp_path / "parts" / "out"), Part(0, 1), shard_size=3)
    assert {name: digest for name, digest in before.items() if name != "index.json"}.items() <= packed(
        tmp_path / "parts" / "out"
    ).items()
    assert verify(str(tmp_path / "out"), deep=True).wrong == []
    code, printed = maejax(*command, "--image-size", 4)
    assert code == 2 and "holds other files, or another pack" in printed


def test_parts_that_do_not_fit_are_refused(shards, tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(Failed, match="no part of a pack is there"):
        gather_shards(str(folder))
    pack_part(shards, str(folder), Part(0, 2), shard_size=3)
    with pytest.raises(Failed, match="1 of 2 parts are not there, or not whole, the first 1/2"):
        gather_shards(str(folder))
    with pytest.raises(InputError, match="holds other files, or another pack"):
        pack_part(shards, str(folder), Part(1, 2), shard_size=4)
    pack_part(shards, str(folder), Part(1, 3), shard_size=3)
    with pytest.raises(InputError, match="has parts of 2 and 3"):
        gather_shards(str(folder))
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        pack_part(shards, str(folder), Part(1, 2), shard_size=3)


def test_numbers_stay_in_cls_files(numbered, tmp_path):
    for s in range(2):
        numbered(tmp_path / "in" / f"s-{s}.tar", 4)
    pack_part(f"{tmp_path}/in/s-{{0,1}}.tar", str(tmp_path / "out"), Part(0, 1))
    assert gather_shards(str(tmp_path / "out"))["classes"] == []
    assert sorted(open_source(f"{tmp_path}/out/*.tar").labels.tolist()) == [0, 0, 0, 0, 1, 1, 2, 2]
    assert json.loads((tmp_path / "out" / "index.json").read_text())["total"] == 8
