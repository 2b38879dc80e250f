import pytest
from maejax.storage.whole_file import written_whole


@pytest.mark.parametrize("shared", [False, True])
def test_readers_see_the_old_file_or_all_of_the_new_one(tmp_path, shared):
    path = tmp_path / "a.json"
    path.write_text("old")
    with written_whole(path, shared=shared) as new:
        new.write_text("half")
        assert path.read_text() == "old"
    assert path.read_text() == "half"
    with pytest.raises(KeyError), written_whole(path, shared=shared) as new:
        new.write_text("broken")
        raise KeyError
    assert path.read_text() == "half"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]
