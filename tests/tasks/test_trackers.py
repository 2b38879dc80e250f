"""Weights & Biases and TensorBoard, the real libraries: what a run shows, and that it gives nothing away."""

import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import HistoryItem, HistoryRecord, Record

from maejax.pages.frames import read_frames
from maejax.pages.history import History
from maejax.training import trackers
from maejax.training.log import read_metrics

from .. import conftest
from ..pages.test_run_page import parsed

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "HF_TOKEN": "hf_secretsecretsecret",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-secret", "GOOGLE_APPLICATION_CREDENTIALS": "/secret/credentials.json",
}  # fmt: skip
HEADER = "hf_secretinaheader"


def test_event_files_hold_what_metrics_jsonl_holds(train, images, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "name-of-this-machine")
    code, printed = train("--tensorboard", "--valid-dataset-shards", images, "--profile", "2:4")
    assert code == 0, printed
    (path,) = Path("runs/pretrain/tensorboard").iterdir()
    assert "name-of-this-machine" not in path.name and b"name-of-this-machine" not in path.read_bytes()
    events = EventAccumulator("runs/pretrain/tensorboard").Reload()
    for name in ("train/loss", "train/param_norm", "val/loss", "val/loss/best", "train/images_per_second_per_device"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        logged = read_metrics(Path("runs/pretrain/metrics.jsonl"), name)
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged] and shown, name
    assert events.Images("reconstructions")[0].step == 6
    assert list(Path("runs/pretrain/profile/0").rglob("*.xplane.pb"))  # of --profile


def test_a_run_gives_no_secret_away(tmp_path, images):
    """Flags that hold an address, secrets in the environment, W&B offline: none is in any file or printed line."""
    shards = f"pipe:cat {write_shard(tmp_path, images)} # -H 'Authorization: Bearer {HEADER}'"
    run = subprocess.run(
        [sys.executable, conftest.ROOT / "src/main.py", *conftest.TINY, "--train_dataset_shards", shards,
         "--training-steps", "2", "--wandb", "--tensorboard", "--project", "mine", "--ipaddr", "203.0.113.9"],
        cwd=tmp_path, env={**os.environ, **SECRETS, "WANDB_MODE": "offline"}, text=True, capture_output=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    records = list(tmp_path.rglob("*.wandb"))
    assert len(records) == 1 and b"train/loss" in records[0].read_bytes(), run.stdout + run.stderr
    forbidden = [*SECRETS.values(), HEADER, "203.0.113.9", *addresses()]
    for path in tmp_path.rglob("*"):
        text = path.read_bytes() if path.is_file() else b""
        assert not [word for word in forbidden if word.encode() in text], path
    assert not [word for word in forbidden if word in run.stdout + run.stderr]


def test_a_killed_run_shows_no_step_twice(train, images, monkeypatch):
    sent, wandb = [], MagicMock()
    wandb.init.return_value.log = sent.append
    wandb.__spec__ = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # its service would stay in this process
    flags = ["--wandb", "--valid-dataset-shards", images, "--eval-interval", 2]
    assert train(*flags)[0] == 0
    for step in (4, 6):  # as if it had been killed after step 6, before it saved step 4
        shutil.rmtree(f"runs/pretrain/checkpoints/{step}")
    assert "from step 2 of 6" in train(*flags)[1]
    for name, steps in (("train/loss", [1, 2, 3, 4, 5, 6]), ("val/loss", [2, 4, 6]), ("reconstructions", [2, 4, 6])):
        assert [entry["step"] for entry in sent if name in entry] == steps, name
    folder = Path("runs/pretrain")
    page, history = parsed(folder / "report.html"), History.read(folder)
    for text in ("It is done, after 6 steps", "mean squared error of pixels", "--eval-interval", "reconstructed"):
        assert text in page.text
    assert [step for step, _ in history.points("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert list(read_frames(folder)["frames"]) == ["2", "4", "6"]


def test_offline_records_tell_what_they_hold(tmp_path):
    data = b":W&B" + bytes(3)
    for step in range(2000):  # more than a block: pieces in two
        items = [HistoryItem(key=name, value_json=str(step)) for name in ("step", "train/loss")]
        message = Record(history=HistoryRecord(item=items)).SerializeToString()
        while message:
            left = trackers.BLOCK - len(data) % trackers.BLOCK
            if left < 7:
                data += bytes(left)
                continue
            part, message = message[: left - 7], message[left - 7 :]
            kind = 1 if not message and len(part) < left - 7 else 4 if not message else 2
            data += bytes(4) + struct.pack("<HB", len(part), kind) + part
    (tmp_path / "offline-run-1").mkdir()
    (tmp_path / "offline-run-1" / "run-1.wandb").write_bytes(data[:-3])  # killed in the middle of the last
    found = trackers.recorded(tmp_path)
    assert sorted(found) == list(range(1999)) and found[0] == {"step", "train/loss"}


def write_shard(folder, images):
    """Write the images as a tar shard."""
    path = folder / "images.tar"
    with np.load(images) as file, tarfile.open(path, "w") as tar:
        for i, picture in enumerate(file["images"]):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            member = tarfile.TarInfo(f"{i}.png")
            member.size = buffer.tell()
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    return path


def addresses():
    """List this machine's own addresses, but for loopback."""
    found = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    return [address for address in found if not address.startswith(("127.", "::1"))]


def test_a_tracker_that_fails_costs_nothing_else(train, caplog, monkeypatch):
    def fail(*_):
        raise ConnectionError("no network")

    monkeypatch.setattr(trackers.TensorBoard, "write", fail)
    code, _ = train("--tensorboard")
    assert code == 0 and "TensorBoard.write failed" not in caplog.text.replace("fail failed", "")
    assert np.isfinite(read_metrics(Path("runs/pretrain/metrics.jsonl"), "train/loss")[-1][1])


def test_a_library_that_is_missing_is_named(train, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    code, printed = train("--wandb")
    assert code == 2 and "pip install 'maejax[wandb]'" in printed
