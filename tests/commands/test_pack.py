import errno
import io
import json
import os

import numpy as np
import pytest
from rich.console import Console

from maejax import console


def test_shards_are_packed_and_verified(maejax, images, tmp_path):
    assert maejax("pack", images, "out", "--shard-size", 10, "--workers", 2)[0] == 0
    code, printed = maejax("pack", "--verify", "out", "--deep")
    assert code == 0 and "all right: 3 shards, 24 images" in printed
    shard = tmp_path / "out/out-0001.tar"
    shard.write_bytes(shard.read_bytes()[:-100])
    code, printed = maejax("pack", "out", "--verify")
    assert code == 2 and "out-0001.tar: has " in printed and "1 wrong in 3 shards" in printed
    code, printed = maejax("pack", "out", "--verify", "--json")
    assert code == 2 and json.loads(printed[: printed.rindex("}") + 1])["wrong"][0][0] == "out-0001.tar"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "DST is missing"),
        (["out", "--verify"], "--verify takes one folder"),
        (["out", "--deep"], "--deep belongs to --verify"),
        (["out", "--quality", "101"], "--quality 101: give at least 1 and at most 100"),
        (["out", "--workers", "0"], "--workers 0: give at least 1"),
        (["out", "--shard-size", "0"], "--shard-size 0"),
        (["images.npz/x"], "images.npz/x cannot be written: Not a directory"),
    ],
)
def test_wrong_flags_get_one_sentence(maejax, images, tmp_path, args, sentence):
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 4, 4), np.uint8))
    code, printed = maejax("pack", images, *args)
    assert code == 2 and sentence in printed and "Traceback" not in printed, printed


def test_a_full_disk_ends_with_a_sentence(maejax, images, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("maejax.data.packing.os.fsync", full)
    code, printed = maejax("pack", images, "out")
    assert code == 1 and "out: No space left on device; make room" in printed and "Traceback" not in printed, printed


def test_where_no_bar_can_be_drawn_lines_tell_speed_and_time_left(monkeypatch):
    now = iter([0.0, 4.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    text = io.StringIO()
    with console.progress(Console(file=text, width=200), "packing", "images") as tell:
        tell(1000, 9000)  # kept from an earlier call
        tell(2100, 9000)
        tell(2200, 9000)
    assert text.getvalue() == "packing 2,100 of 9,000 images, 100 images/s, 0:01:09 left\n"
