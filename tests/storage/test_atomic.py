import pytest

from maejax.storage.atomic import write_atomically


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with write_atomically(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == tmp_path
    assert path.read_text() == "new" and [*tmp_path.iterdir()] == [path]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), write_atomically(path) as temporary:
        temporary.write_text("ne")
        raise OSError("full")
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]
