"""A lock between processes: one holder, named; nothing left."""

import os

import pytest

from maejax.errors import Failed
from maejax.storage.lock import held


def test_one_holds_and_is_named_and_nothing_is_left(tmp_path):
    path = tmp_path / "runs" / "mine"
    with (
        held(path, "mine", "wait"),
        pytest.raises(Failed, match=rf"mine is held by process {os.getpid()} on .*, since .*; wait$"),
        held(path, "mine", "wait"),
    ):
        raise AssertionError("two hold it")
    assert not path.parent.exists()
    with held(path, "mine", "wait"):
        path.mkdir()
    assert [path.name for path in path.parent.iterdir()] == ["mine"]


def test_a_file_that_a_dead_process_left_is_nobodys(tmp_path):
    (tmp_path / ".mine.lock").write_text("process 1 on a host that is gone\n")
    with held(tmp_path / "mine", "mine", "wait"):
        assert f"process {os.getpid()} on " in (tmp_path / ".mine.lock").read_text()
