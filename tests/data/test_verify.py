import json

import numpy as np
import pytest

from maejax.data.packing import pack
from maejax.data.verify import verify
from maejax.errors import InputError


@pytest.fixture
def packed(tmp_path, numbered):
    pack(str(numbered(tmp_path / "in.tar", 12)), str(tmp_path / "out"), shard_size=3)
    return tmp_path / "out"


def test_what_was_packed_is_right(packed):
    calls = []
    found = verify(str(packed), deep=True, progress=lambda *call: calls.append(call))
    assert (found.shards, found.images, found.wrong) == (4, 12, [])
    assert found.bytes == sum(path.stat().st_size for path in packed.glob("*.tar")) == calls[-1][0] == calls[-1][1]


def test_everything_that_is_wrong_is_named(packed, encode, write_tar):
    cut, flipped, gone = (packed / f"out-000{i}.tar" for i in range(3))
    cut.write_bytes(cut.read_bytes()[:-700])
    data = bytearray(flipped.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 255
    flipped.write_bytes(data)
    gone.unlink()
    write_tar(packed / "new.tar", {"1.png": encode(np.zeros((4, 4), np.uint8))})
    wrong = verify(str(packed)).wrong
    assert [name for name, _ in wrong] == ["new.tar", "out-0000.tar", "out-0001.tar", "out-0002.tar"]
    assert [reason.split(" ")[0] for _, reason in wrong] == ["is", "has", "has", "is"]
    deep = [name for name, _ in verify(str(packed), deep=True).wrong]
    assert len(deep) == 5 and deep[3].startswith("out-0001.tar:")


def test_shards_of_others_need_no_more_than_names_in_the_index(packed, encode, write_tar):
    names = [path.name for path in sorted(packed.glob("*.tar"))]
    (packed / "index.json").write_text(json.dumps({"shards": [{"name": name} for name in names]}))
    assert verify(str(packed)).wrong == []
    write_tar(packed / names[0], {"1.png": encode(np.zeros((4, 4), np.uint8))[:43]})
    with (packed / names[1]).open("r+b") as file:
        file.truncate(540)
    wrong = verify(str(packed), deep=True).wrong
    assert [name for name, _ in wrong] == [f"{names[0]}:1.png", names[1]]
    assert "it was cut" in wrong[1][1]


def test_without_an_index_there_is_nothing_to_compare(tmp_path, packed):
    with pytest.raises(InputError, match=r"has no index\.json; maejax pack writes one"):
        verify(str(tmp_path))
    (packed / "index.json").write_text("[]")
    with pytest.raises(InputError, match="is no index of shards"):
        verify(str(packed))
