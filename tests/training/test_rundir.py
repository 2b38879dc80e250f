"""The directory of a run: held by one process at a time."""

import os
from pathlib import Path

import pytest

from maejax.errors import Failed
from maejax.tasks import run
from maejax.training.rundir import held


def test_a_run_is_held_by_one_process_and_let_go(tmp_path):
    directory = tmp_path / "runs" / "mine"
    with (
        held(directory),
        pytest.raises(Failed, match=rf"mine is being trained by process {os.getpid()} on .*; wait for it, stop it"),
        held(directory),
    ):
        raise AssertionError("two hold it")
    assert not directory.parent.exists()  # neither left anything
    with held(directory):
        directory.mkdir()
    assert [path.name for path in directory.parent.iterdir()] == ["mine"]


def test_a_lock_that_a_dead_process_left_is_nobodys(tmp_path):
    (tmp_path / ".mine.lock").write_text("process 1 on a host that is gone\n")
    with held(tmp_path / "mine"):
        assert f"process {os.getpid()} on " in (tmp_path / ".mine.lock").read_text()


def test_a_second_command_ends_with_the_name_of_the_first(train):
    with held(Path("runs/pretrain")):
        code, printed = train()
    assert code == 1 and f"runs/pretrain is being trained by process {os.getpid()} on" in printed, printed
    assert not Path("runs/pretrain").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--learning-rate": 9.0}, "process 1 and process 0 differ in --learning-rate: 9.0 against 0.05; start all"),
        ({"number of images": 23}, "differ in number of images: 23 against 24"),
        ({"maejax": "0.0", "--dim": 9}, "differ in --dim, maejax: 9 against 16"),
    ],
)
def test_processes_that_differ_are_refused(train, monkeypatch, change, sentence):
    monkeypatch.setattr(run, "gather", lambda own, mesh: [own, own | change])
    code, printed = train()
    assert code == 2 and sentence in printed, printed
    assert not Path("runs").exists()


def test_a_launcher_without_distributed_is_refused(train, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    code, printed = train()
    assert code == 2 and "a launcher started 2 processes, and each would train by itself: give --distributed" in printed
