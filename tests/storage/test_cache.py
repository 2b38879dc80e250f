from pathlib import Path

import pytest

from maejax.storage import mirror
from maejax.storage.cache import cache_folder


@pytest.mark.parametrize(
    "value, expected", [("/scratch/cache", "/scratch/cache"), ("", "HOME/.cache"), ("relative", "HOME/.cache")]
)
def test_one_folder_for_all_copies(value, expected, tmp_path, monkeypatch):
    """XDG's rule: a variable that is empty or holds a relative path counts as unset."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder() == Path(expected.replace("HOME", str(tmp_path))) / "maejax"
    assert mirror.work_folder("gs://bucket/runs/a", 3) == cache_folder() / "runs/3/gs/bucket/runs/a"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache/maejax"


def test_only_a_path_in_a_mirror_has_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = mirror.work_folder("gs://bucket/runs/a", 0)
    assert mirror.address_of(folder / "best") == mirror.shown(folder / "best") == "gs://bucket/runs/a/best"
    for path in (tmp_path / "runs/0/gs/bucket", cache_folder() / "weights/0/gs/bucket", cache_folder() / "runs"):
        assert mirror.address_of(path) == "" and mirror.shown(path) == str(path)
