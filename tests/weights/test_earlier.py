"""A run and a file that commit 02a4384 wrote: read, computed by this machine, and continued."""

import json
import tarfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import maejax
from maejax.evaluation.encoding import extract
from maejax.models.description import PLAIN, Compute
from maejax.training.log import read_metrics
from maejax.weights import files
from tests.bounds import assert_close
from tests.conftest import GOLDEN

EARLIER = GOLDEN / "run-02a4384"  # made by make.sh there
FLAGS = """--train-dataset-shards images.npz --image-size 16 --patch-size 4 --layers 2 --dim 8 --heads 2 --dec-layers 1
--dec-dim 8 --dec-heads 2 --dec-layerscale --train-batch-size 8 --warmup-steps 2 --training-steps 6 --log-interval 1
--save-interval 4 --learning-rate 0.05 --train-loader-workers 0 --mean 0.4 0.5 0.6 --std 0.2 0.3 0.2 --dropout 0.1
--droppath 0.1 --precision bfloat16 --grad-ckpt --scan-layers""".split()


@pytest.fixture
def run(tmp_path, monkeypatch, images):
    """Unpack the run in an empty folder, beside its images."""
    monkeypatch.chdir(tmp_path)
    Path("images.npz").write_bytes(images.read_bytes())
    with tarfile.open(EARLIER / "run.tar.gz") as file:
        file.extractall("runs/pretrain", filter="data")
    return Path("runs/pretrain")


def test_an_earlier_run_is_computed_as_this_machine_does(run):
    told = json.loads((run / "config.json").read_text())["model"]
    assert (told["dtype"], told["remat"], told["scan"]) == ("bfloat16", True, True)
    expected, images = np.load(EARLIER / "features.npz"), np.load("images.npz")["images"][:4]
    for source in (run, EARLIER / "converted.safetensors"):
        model = maejax.load(source)
        assert model.compute == PLAIN and model.mean == (0.4, 0.5, 0.6) and model.config.decoder.layerscale
        features = extract(model, images)
        assert_close(features, expected["float32"])
        largest = np.abs(expected["float32"]).max()
        assert np.abs(features - expected["bfloat16"]).max() > 1e-3 * largest  # what that commit's `load` gave


def test_an_earlier_run_is_continued(run, maejax):
    earlier = dict(read_metrics(run / "metrics.jsonl", "train/loss"))
    assert list(earlier) == [1, 2, 3, 4, 5, 6]
    code, printed = maejax("train", *FLAGS)
    assert code == 0, printed
    assert "continuing runs/pretrain from step 4 of 6" in printed
    again = dict(read_metrics(run / "metrics.jsonl", "train/loss"))
    for step in (5, 6):  # bfloat16 has 8 bits
        assert again[step] == pytest.approx(earlier[step], rel=1e-3) and again[step] != earlier[step - 1]
    told = json.loads((run / "config.json").read_text())
    assert told["model"]["decoder"]["dim"] == 8 and "dtype" not in told["model"]["encoder"]
    assert told["compute"] == asdict(Compute(dtype="bfloat16", remat=True, scan=True))
    assert files.read(run).config == files.read(EARLIER / "converted.safetensors").config
    code, printed = maejax("train", *FLAGS, "--heads", 4)
    assert code == 2 and "--heads 2 -> 4" in printed
