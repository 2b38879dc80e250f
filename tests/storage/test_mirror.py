"""Runs in a bucket, on a stand-in for Google Cloud Storage on loopback."""

import json
import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from maejax.storage import bucket_lock, mirror
from tests.training import harness

from ..gcs import Storage

RUN = "runs/pretrain"
FLAGS = ["--output-dir", "gs://mine/runs"]


@pytest.fixture
def storage(monkeypatch, tmp_path):
    """Give a bucket, and a home to this process."""
    server = Storage.connected(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(bucket_lock, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(bucket_lock, "STALE_SECONDS", 0.1)  # of processes that a test killed
    monkeypatch.setattr(bucket_lock, "RENEW_SECONDS", 2.0)
    yield server
    server.stop()


def lines(text):
    """Read metrics without what a clock says."""
    return [
        {name: value for name, value in json.loads(line).items() if not re.search("second|mfu|wait|host", name)}
        for line in text.splitlines()
    ]


def whole(storage, folder=f"{RUN}/checkpoints"):
    found = (re.fullmatch(rf"{folder}/(\d+)/commit_success.txt", name) for name in storage.names())
    return sorted(int(match[1]) for match in found if match)


@pytest.mark.slow
def test_killed_while_it_saves_it_goes_on_elsewhere_bit_for_bit(storage, tmp_path, images, train):
    """SIGKILL in the middle of a copy; a host that has nothing goes on as if the run lay on its disk."""
    more = ["--valid-dataset-shards", images, "--eval-interval", 3]
    code, printed = train(*more, "--output-dir", "here")
    assert code == 0, printed
    written, process = [], None

    def kill(method, key):
        if method == "WRITE" and key.startswith(f"{RUN}/checkpoints/4/"):
            written.append(key)
            if len(written) == 4:
                process.kill()
        return 0

    storage.refuse = kill
    process = harness.start(tmp_path, images, *more, *FLAGS, devices=4, HOME=tmp_path / "lost")
    code, printed = harness.finish(process)
    assert code == -9 and len(written) >= 4, printed
    assert whole(storage) == [2] and storage.names(f"{RUN}/checkpoints/4/")
    code, printed = train(*more, *FLAGS, "--resume", "must")
    assert code == 0 and "continuing gs://mine/runs/pretrain from step 2 of 6" in printed, printed
    assert whole(storage) == [2, 4, 6] and len(whole(storage, f"{RUN}/best")) == 1
    assert {f"{RUN}/config.json", f"{RUN}/images/6.png"} < set(storage.names())
    ours = lines(storage.objects["mine", f"{RUN}/metrics.jsonl"].decode())
    assert ours == lines((tmp_path / "here/pretrain/metrics.jsonl").read_text()) and len(ours) == 8
    for part in ("", "/best"):
        mine, theirs = harness.arrays_of(f"gs://mine/{RUN}{part}"), harness.arrays_of(f"here/pretrain{part}")
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    code, printed = train(*more, *FLAGS, "--resume", "never")
    assert code == 2 and "gs://mine/runs/pretrain has checkpoints up to step 6" in printed, printed


def test_a_bucket_that_fails_is_like_a_full_disk(storage, train, caplog):
    def refuse(start):
        storage.refuse = lambda method, key: 403 if method == "WRITE" and key.startswith(start) else 0

    refuse("")
    code, printed = train(*FLAGS)
    assert code == 2 and "--output-dir gs://mine/runs: cannot be written: " in printed and not storage.objects, printed
    refuse(f"{RUN}/checkpoints/4/")
    code, printed = train(*FLAGS, "--keep-checkpoints", 2)
    assert code == 0 and whole(storage) == [2, 6], printed
    assert caplog.text.count("checkpoint 4 in gs://mine/runs/pretrain/checkpoints was not saved: ") == 1, caplog.text
    refuse("runs/late/checkpoints/6/")
    code, printed = train(*FLAGS, "--name", "late")
    assert code == 1 and "the last save failed" in printed and whole(storage, "runs/late/checkpoints") == [2, 4], (
        printed
    )
    assert len(lines(storage.objects["mine", "runs/late/metrics.jsonl"].decode())) == 6
    refuse("nothing")
    code, printed = train(*FLAGS, "--name", "late")
    assert code == 0 and whole(storage, "runs/late/checkpoints") == [2, 4, 6], printed


def test_one_process_holds_a_run_and_a_dead_one_leaves_it_free(storage, train, tmp_path, monkeypatch):
    folder, lock = mirror.work_folder(f"gs://mine/{RUN}", 7), ("mine", f"{RUN}/lock.json")  # as on another host
    monkeypatch.setattr(bucket_lock, "STALE_SECONDS", 60.0)
    with bucket_lock.held_in_bucket(folder, "wait"):
        code, printed = train(*FLAGS)
        assert code == 1 and f"gs://mine/{RUN} is held by process {os.getpid()} on" in printed, printed
    assert set(storage.names()) == set()
    storage.objects[lock] = b'{"holder": "process 1 on gone", "id": "1", "renewed": 3}'
    monkeypatch.setattr(bucket_lock, "STALE_SECONDS", 0.1)
    code, printed = train(*FLAGS)
    assert code == 0 and lock not in storage.objects, printed


def test_a_damaged_checkpoint_is_set_aside(storage, train, caplog):
    code, printed = train(*FLAGS)
    assert code == 0, printed
    largest = max(storage.names(f"{RUN}/checkpoints/6/"), key=lambda name: len(storage.objects["mine", name]))
    data = bytearray(storage.objects["mine", largest])
    data[len(data) // 2] ^= 255
    storage.objects["mine", largest] = bytes(data)
    code, printed = train(*FLAGS)
    assert code == 0 and "checkpoint gs://mine/runs/pretrain/checkpoints/6 is damaged" in caplog.text, printed
    assert "continuing gs://mine/runs/pretrain from step 4" in printed and whole(storage) == [2, 4, 6]
    assert storage.names(f"{RUN}/checkpoints/6.damaged/")


def test_what_lies_in_a_bucket_can_be_used(storage, images, train, maejax):
    code, printed = train(*FLAGS)
    assert code == 0, printed
    code, printed = maejax("inspect", f"gs://mine/{RUN}/checkpoints/4", "--json")
    assert code == 0 and "step 4" in printed, printed
    linear = ["--mode", "linear", "--pretrained-ckpt", f"gs://mine/{RUN}", "--valid-dataset-shards", images]
    code, printed = train(*linear, *FLAGS, "--training-steps", 2, "--warmup-steps", 0)
    assert code == 0 and whole(storage, "runs/linear/checkpoints") == [2], printed
    code, printed = maejax("inspect", "gs://mine/runs/none")
    assert code == 2 and "gs://mine/runs/none has no config.json" in printed, printed


def test_a_copy_of_a_checkpoint_is_renewed(storage):
    """By content, for another run of that name may have files of the same sizes."""
    checkpoint = mirror.work_folder("gs://mine/runs/a/checkpoints/4", 0)
    objects = {f"runs/a/checkpoints/4/{name}": name.encode() for name in ("model/b", "commit_success.txt")}
    storage.objects |= {("mine", name): data for name, data in objects.items()}
    for content in (b"ours", b"next"):
        storage.objects["mine", "runs/a/checkpoints/4/model/b"] = content
        for _ in range(2):
            assert (mirror.bring(checkpoint) / "model/b").read_bytes() == content
            (checkpoint / "model/b").write_bytes(content[::-1])
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["4", "4.fetched"]


def test_folders_that_come_and_go_disturb_no_copy(storage):
    """The best checkpoint is copied while Orbax writes the last one and old ones are deleted."""
    folder = mirror.work_folder(f"gs://mine/{RUN}", 0)
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard/events").write_text("some")
    over = threading.Event()

    def disturb():
        while not over.is_set():
            for place in ("checkpoints/1/model/d", "images"):
                (folder / place).mkdir(parents=True)
            for place in ("checkpoints", "images"):
                shutil.rmtree(folder / place)

    with ThreadPoolExecutor(1) as disturber:
        disturbed = disturber.submit(disturb)
        try:
            for _ in range(300):
                mirror.publish(folder)
        finally:
            over.set()
    disturbed.result()
    assert storage.names() == [f"{RUN}/tensorboard/events"]


@pytest.mark.slow
def test_several_processes_write_as_one_does_to_a_disk(storage, tmp_path, images):
    """Each process has its own folders, as if on hosts apart; the state is split over all of them."""
    more = ["--sharding", "fsdp", "--valid-dataset-shards", images, "--eval-interval", 6, "--training-steps", 12]
    for output, environment in (("here", {}), ("gs://mine/runs", {"STOP_AT": 3, "NOTES": "notes"})):
        flags = [*more, "--output-dir", output]
        ended = [harness.finish(each) for each in harness.start_several(tmp_path, images, *flags, **environment)]
        if environment:
            assert [code for code, _ in ended] == [75, 75] and 2 < max(whole(storage)) < 12, ended
            ended = [harness.finish(each) for each in harness.start_several(tmp_path, images, *flags)]
        assert [code for code, _ in ended] == [0, 0], ended
    ours = lines(storage.objects["mine", f"{RUN}/metrics.jsonl"].decode())
    assert ours == lines((tmp_path / "here/pretrain/metrics.jsonl").read_text()) and len(ours) == 14
    mine, theirs = harness.arrays_of(f"gs://mine/{RUN}"), harness.arrays_of(tmp_path / "here/pretrain")
    for name in theirs:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
