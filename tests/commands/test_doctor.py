"""The doctor: what is well, and what it says of what is not."""

import json
from pathlib import Path

import fsspec
import pytest

from maejax.commands import doctor


def test_a_machine_that_is_well(maejax, images, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LOADER_SECONDS", 0.1)
    monkeypatch.setattr(doctor, "count_chips", lambda: 0)
    code, printed = maejax(
        "doctor", "--bucket", "memory://mine/sets", "--train-dataset-shards", images, "--consume", 1, "--json"
    )
    facts = json.loads(printed)
    states = {check["name"]: check["status"] for check in facts["checks"]}
    assert code == 0 and facts["ok"], printed
    assert list(states) == ["versions", "devices", "fast forms", "disk", "run folder", "bucket", "loader"]
    assert "none on cpu: plain products run" in printed
    assert {states[name] for name in ("devices", "run folder", "bucket", "loader")} == {"ok"}
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    assert fsspec.filesystem("memory").find("/mine") == []


def test_what_is_wrong_is_named_with_what_to_do(maejax, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LOADER_SECONDS", 0.1)
    monkeypatch.setattr(doctor, "DEVICE_SECONDS", 0.2)
    monkeypatch.setattr(doctor, "LOOK", "import time; time.sleep(60)")
    (tmp_path / "versions.txt").write_text("# tested\nNumPy==0.1\nnowhere-to-be-found==2\n")
    (tmp_path / "runs").write_text("a file in the way")
    code, printed = maejax(
        "doctor", "--bucket", "memo://mine", "--consume", 1e9, "--constraints", "versions.txt", "--output-dir", "runs/a"
    )
    assert code == 1
    for sentence in (
        "1 others than in versions.txt: NumPy", "JAX did not answer within 0.2 s", "runs/a cannot be written",
        "memo:// is no kind of address known here", "the model takes 1,000,000,000", "cores like these",
    ):  # fmt: skip
        assert sentence in printed, printed
    code, printed = maejax("doctor", "--constraints", "missing.txt")
    assert code == 2 and "--constraints missing.txt: cannot be read" in printed


def test_devices_that_do_not_compute_or_are_not_used(monkeypatch):
    monkeypatch.setattr(doctor, "LOOK", "raise RuntimeError('the chips are held')")
    assert doctor.check_devices(0)[1:3] == ("fail", "JAX cannot compute: RuntimeError: the chips are held")
    seen = {"platform": "cpu", "kind": "cpu", "here": 1, "all": 1, "processes": 1}
    monkeypatch.setattr(doctor, "LOOK", f"print('hello'); print('''{json.dumps(seen)}''')")
    assert doctor.check_devices(4).found == "1 x cpu, but there are 4 TPU chips"
    seen |= {"platform": "tpu", "kind": "TPU v4", "here": 4, "all": 16, "processes": 4}
    monkeypatch.setattr(doctor, "LOOK", f"print('''{json.dumps(seen)}''')")
    assert doctor.check_devices(4)[1:3] == ("ok", "4 x TPU v4 of 16 in 4 processes")


def test_fast_forms_are_compared_one_by_one(monkeypatch):
    passed, failed = "MLP in pieces of tokens in the decoder: off by 4.4e-03", "cuDNN attention in the encoder: no"
    told = json.dumps(["gpu", [[True, passed], [False, failed]]])
    monkeypatch.setattr(doctor, "COMPARE", f"print('hello'); print({told!r})")
    assert [check[1:3] for check in doctor.check_fast_forms()] == [("ok", passed), ("warn", failed)]
    monkeypatch.setattr(doctor, "COMPARE", "raise RuntimeError('the chips are held')")
    (check,) = doctor.check_fast_forms()
    assert check[1:3] == ("fail", "they cannot be compared: RuntimeError: the chips are held")


@pytest.mark.parametrize("operation", ["rename a folder", "append to a file"])
def test_a_folder_that_is_no_disk_is_refused(operation, tmp_path, monkeypatch):
    """A mounted bucket without folders of its own renames none; some file systems append by overwriting."""
    if operation == "rename a folder":
        monkeypatch.setattr(Path, "rename", lambda *_: next(Path("/nowhere").iterdir()))
    else:
        monkeypatch.setattr(Path, "read_text", lambda *_: "two\n")
    check = doctor.check_folder(tmp_path / "runs")
    assert check.status == "fail" and f"does not let a run {operation}" in check.found
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_cannot_be_written(tmp_path):
    (tmp_path / "sets").write_text("a file in the way")
    check = doctor.check_bucket(f"file://{tmp_path}/sets")
    assert check.status == "fail" and "cannot be written" in check.found


@pytest.mark.parametrize(("consume", "status"), [(80, "ok"), (100, "warn"), (200, "fail")])
def test_the_loader_is_held_against_what_the_model_takes(images, monkeypatch, consume, status):
    monkeypatch.setattr("maejax.data.loader_speed.measure", lambda *_: {"cores": 2, "one": 60.0, "all": 110.0})
    check = doctor.check_loader(str(images), consume)
    assert check.status == status and f"110 images/s with 2 threads; the model takes {consume}" in check.found
