"""Tars as people make them: the same images and labels from a tar, from a folder, and from a stream."""

import io
import tarfile

import numpy as np
import pytest

from maejax.data.decode import decode
from maejax.data.sources import open_source, open_stream
from maejax.data.tar import members
from maejax.errors import FormatError, InputError, UnreadableImage, WeightsError
from maejax.weights.files import read


def add(tar, name, data):
    """Add bytes, a hard link (str) or a symbolic link (a list with its target) to a tar."""
    member = tarfile.TarInfo(name)
    if isinstance(data, bytes):
        member.size = len(data)
    else:
        member.type = tarfile.LNKTYPE if isinstance(data, str) else tarfile.SYMTYPE
        member.linkname = data if isinstance(data, str) else data[0]
    tar.addfile(member, io.BytesIO(data) if isinstance(data, bytes) else None)


def pack(members, format=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members.items():
            add(tar, name, data)
    return buffer.getvalue()


def of_source(source):
    return {source.keys[i].rpartition(":")[2]: (source.read(i), int(source.labels[i])) for i in range(len(source))}


def of_stream(spec):
    """Read the first shard of a stream to its end."""
    reading = open_stream(spec).open(0)
    (samples,) = reading.windows(iter([999, 999]))
    found = {sample.key.rpartition(":")[2]: (sample.image.read(), sample.label) for sample in samples}
    reading.close()
    return found


@pytest.fixture
def images(encode):
    return [encode(np.full((4, 4), i, np.uint8)) for i in range(9)]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_have_the_bytes_of_their_targets_and_their_own_labels(tmp_path, images, format):
    far = "d" * 120 + "/0.png"  # a name that needs a header of its own
    members = {
        far: images[0], f"{far[:-4]}.cls": b"0",
        "hard.png": far, "hard.cls": b"1",
        "shoe/up.png": [f"../{far}"], "shoe/up.cls": b"2",
        "shoe/again.png": ["up.png"], "shoe/again.cls": b"3",
        "ahead.png": ["./later.png"], "ahead.cls": b"4",
        "later.png": images[1], "later.cls": b"5",
        "nothing.png": ["gone.png"], "a.png": ["b.png"], "b.png": ["a.png"],
    }  # fmt: skip
    (tmp_path / "s.tar").write_bytes(pack(members, format))
    expected = {far: (images[0], 0), "hard.png": (images[0], 1), "shoe/up.png": (images[0], 2),
                "shoe/again.png": (images[0], 3), "ahead.png": (images[1], 4), "later.png": (images[1], 5)}  # fmt: skip
    source = open_source(str(tmp_path / "s.tar"))
    assert of_source(source) == expected
    assert source.problems == ["3 left out: links that lead to nothing; the first is s.tar:nothing.png"]
    assert of_stream(f"pipe:cat {tmp_path}/s.tar") == expected


def test_joined_tars_are_read_to_the_end_and_keep_their_labels(tmp_path, images):
    for s in (0, 1):
        members = {f"{i}.{kind}": images[3 * s + i] if kind == "png" else str(3 * s + i).encode()
                   for i in range(3) for kind in ("png", "cls")}  # fmt: skip
        (tmp_path / f"x-{s}.tar").write_bytes(pack({"ahead.png": ["2.png"], "ahead.cls": b"7", **members}))
    joined = (tmp_path / "x-0.tar").read_bytes() + (tmp_path / "x-1.tar").read_bytes()
    (tmp_path / "all.tar").write_bytes(joined)
    for spec in (str(tmp_path / "all.tar"), f"pipe:cat {tmp_path}/x-{{0,1}}.tar"):
        source = open_source(spec)
        assert [source.read(i) for i in range(len(source))] == [*images[:3], images[2], *images[3:6], images[5]]
        assert source.labels.tolist() == [0, 1, 2, 7, 3, 4, 5, 7]
    reading = open_stream(f"pipe:cat {tmp_path}/x-{{0,1}}.tar").open(0)
    (samples,) = reading.windows(iter([99, 99]))
    assert [sample.image.read() for sample in samples] == [source.read(i) for i in range(len(source))]
    assert [sample.label for sample in samples] == source.labels.tolist()
    reading.close()
    (tmp_path / "all.tar").write_bytes(joined[:10240] + b"damage" * 200)
    assert "no tar header at byte 10240" in open_source(str(tmp_path / "all.tar")).problems[0]


def test_names_with_dots_give_the_same_from_tar_folder_and_stream(tmp_path, images):
    files = {
        "22.05.png": images[0], "22.05.cls": b"5", "22.06.png": images[1], "22.06.cls": b"6",
        "IMG.jpg": images[2], "IMG.2.jpg": images[3], "IMG.cls": b"1",
        "x.png": images[4], "x.seg.png": images[5], "x.json": b'{"class": 2}', "y.seg.png": images[6],
    }  # fmt: skip
    (tmp_path / "s.tar").write_bytes(pack(files))
    (tmp_path / "folder").mkdir()
    for name, data in files.items():
        (tmp_path / "folder" / name).write_bytes(data)
    expected = {"22.05.png": (images[0], 5), "22.06.png": (images[1], 6), "IMG.jpg": (images[2], 1),
                "IMG.2.jpg": (images[3], 1), "x.png": (images[4], 2), "y.seg.png": (images[6], -1)}  # fmt: skip
    tar, folder = open_source(str(tmp_path / "s.tar")), open_source(str(tmp_path / "folder"))
    assert of_source(tar) == expected == of_stream(f"pipe:cat {tmp_path}/s.tar")
    assert {key.rpartition("/")[2]: value for key, value in of_source(folder).items()} == expected
    for source in (tar, folder):
        assert [problem[:32] for problem in source.problems] == ["1 left out: images that describe"]


def test_class_folders_are_the_same_in_tars_and_folders_however_deep(tmp_path, images):
    names = ["shoe/deep/1.png", "shoe/2.png", "dress/x/3.png", "dress/4.png"]
    for top in ("", "photos/all/", "./"):
        (tmp_path / "s.tar").write_bytes(pack({top + name: images[0] for name in names}))
        for name in names:
            path = tmp_path / f"folder{len(top)}" / top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images[0])
        tar, folder = open_source(str(tmp_path / "s.tar")), open_source(str(tmp_path / f"folder{len(top)}"))
        assert tar.classes == folder.classes == ("dress", "shoe")
        assert (tar.labels.tolist(), folder.labels.tolist()) == ([1, 1, 0, 0], [0, 0, 1, 1])


def test_a_stream_tells_which_labels_it_cannot_give(tmp_path, images, caplog):
    (tmp_path / "named.tar").write_bytes(pack({"0.png": images[0], "0.cls": b"shoe", "1.heic": b"", "2.heic": b""}))
    (tmp_path / "late.tar").write_bytes(pack({"0.png": images[0], "1.png": images[1], "0.cls": b"1"}))
    for name, words in (("named", "0.png has the class 'shoe', and no index"), ("late", "0.cls comes after its image")):
        stream = open_stream(f"pipe:cat {tmp_path}/{name}.tar")
        reading = stream.open(0)
        assert next(reading.windows(iter([99, 99])))[0].label == -1
        assert words in stream.unlabelled
        reading.close()
    assert "2 left out: .heic files, which cannot be decoded here" in caplog.text
    stream = open_stream(f"pipe:cat {tmp_path}/named.tar")
    stream.classes = ("hat", "shoe")  # of an index.json beside the shards
    reading = stream.open(0)
    assert next(reading.windows(iter([99, 99])))[0].label == 1 and not stream.unlabelled
    reading.close()


def test_a_sparse_member_is_refused(tmp_path, images):
    data = bytearray(pack({"a.png": images[0]}, tarfile.GNU_FORMAT))
    data[156:157] = b"S"
    (tmp_path / "s.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"'a\.png' is stored with holes; make the tar without --sparse"):
        open_source(str(tmp_path / "s.tar"))


def test_a_pointer_of_git_lfs_is_named_as_that(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
    for name in ("x.tar", "x.npz", "x.safetensors"):
        (tmp_path / name).write_bytes(pointer)
    with pytest.raises(InputError, match="is a pointer of git-lfs, not the file itself; fetch it with"):
        open_source(str(tmp_path / "x.npz"))
    with pytest.raises(WeightsError, match=r"x\.safetensors is a pointer of git-lfs"):
        read(tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="is a pointer of git-lfs"):
        list(members(tmp_path / "x.tar"))
    with pytest.raises(UnreadableImage, match="is a pointer of git-lfs"):
        decode(pointer, 3)
