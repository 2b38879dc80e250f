"""The commands on a run that was really trained: export, inspect, convert, start from every layout and an address."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maejax.evaluation.encoding import extract
from maejax.weights import files
from maejax.weights.weights import model_of
from tests.bounds import assert_close
from tests.data.server import Server


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


def test_a_run_is_exported_inspected_converted_and_gone_on_from(train, maejax, images, server, same, monkeypatch, idle):
    code, printed = train("--name", "first", "--valid-dataset-shards", images, "--export-msgpack", "--norm-pix-loss")
    assert code == 0, printed
    assert "exported runs/first/first-last.msgpack" in printed and Path("runs/first/first-best.msgpack").exists()

    code, printed = maejax("inspect", "runs/first", "--json")
    facts = json.loads(printed)
    assert (facts["layout"], facts["kind"], facts["target"]) == ("maejax", "mae", "pixels normalised per patch")
    assert facts["positions"] == "sine-cosine, the authors' table" and facts["decoder"]["heads"] == 2
    assert any("--pretrained-ckpt runs/first" in use["command"] for use in facts["uses"])
    assert maejax("inspect", "runs/first/best")[0] == 0

    Path("report.json").write_text(
        json.dumps({"scores": {"pretrained": {"knn": 12.34}}, "images": {"test": 7}, "classes": ["a", "b"]})
    )
    code, printed = maejax("export", "runs/first/best", "--report", "report.json", "--name", "me/first")
    assert code == 0, printed
    card = Path("first-hub/README.md").read_text()
    dim = facts["encoder"]["dim"]
    for row in (f"| train | {images} |", f"| --dim | {dim} |", "| steps |", "| val/loss |", "| knn | 12.3 % |"):
        assert row in card, row
    assert 'from_pretrained("me/first")' in card
    same(files.read("first-hub").arrays, files.read("runs/first/best").arrays)

    # Into our file and out again nothing changes; the original has no place for the decoder's table and the pixels.
    trained = files.read("runs/first")
    code, printed = maejax("convert", "runs/first", "first.safetensors", "--to", "maejax", "--json")
    assert code == 0 and json.loads(printed)["notices"] == []
    same(files.read("first.safetensors").arrays, trained.arrays)
    last = files.read("runs/first/first-last.msgpack")
    assert last.config.encoder.posemb == "learnable" and last.config.encoder.gelu == "erf"
    same(*({n: a for n, a in w.arrays.items() if n != "dec_positions"} for w in (trained, last)))

    served = Path("first.safetensors").read_bytes()
    server.files["/first.safetensors"] = served
    address = server.url + "/first.safetensors"
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").absolute()))
    for i, source in enumerate(["first.safetensors", address, "runs/first/first-last.msgpack"]):
        flags = ["--norm-pix-loss", "--posemb", "learnable" if "msgpack" in source else "sincos2d"]
        with idle():
            code, printed = train("--name", f"next{i}", "--pretrained-ckpt", source, *flags)
        assert code == 0, printed
        if source == address:
            assert f"{len(served):,} bytes, sha256 {hashlib.sha256(served).hexdigest()}" in printed.replace("\n", "")
        after = files.read(f"runs/next{i}")
        same(*({n: a for n, a in w.arrays.items() if n != "dec_positions"} for w in (trained, after)))
        assert after.config.encoder.gelu == "erf"


def test_a_compiled_encoder_runs_without_us(maejax, weights):
    made = weights("mae")
    files.write(made, "m.safetensors", "maejax")
    code, printed = maejax("export", "m.safetensors", "--to", "stablehlo", "--pool", "cls+mean", "--json")
    assert code == 0 and json.loads(printed)["files"] == ["m.stablehlo"]
    images = np.random.default_rng(3).integers(0, 256, (5, 16, 24, 3), np.uint8)
    np.save("images.npy", images)
    program = (
        "import sys, jax, numpy as np; from jax import export; sys.modules['maejax'] = None\n"
        "f = export.deserialize(bytearray(open('m.stablehlo', 'rb').read())); assert 'tpu' in f.platforms\n"
        "np.save('features.npy', f.call(np.load('images.npy')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert_close(np.load("features.npy"), extract(model_of(made), images, 2))


def test_what_does_not_fit_is_said_before_anything_runs(train, maejax, weights):
    files.write(weights("encoder"), "encoder.safetensors", "maejax")
    code, printed = train("--pretrained-ckpt", "encoder.safetensors")
    assert code == 2 and "has no decoder for 3 channels, which pre-training needs" in printed
    for kind in ("encoder", "cls"):
        files.write(weights(kind), f"{kind}.safetensors", "maejax")
        code, printed = maejax("reconstruct", f"{kind}.safetensors", "mine.jpg")
        assert code == 2 and f"maejax: {kind}.safetensors has no decoder and cannot reconstruct" in printed, printed
    code, printed = maejax("convert", "encoder.safetensors", "x", "--to", "nothing")
    assert code == 2
    code, printed = maejax("export", "encoder.safetensors", "--report", "none.json")
    assert code == 2 and "--report none.json is no report.json" in printed
    Path("rubbish.msgpack").write_bytes(b"rubbish")
    code, printed = maejax("inspect", "rubbish.msgpack")
    assert code == 2 and "rubbish.msgpack is no msgpack file of weights" in printed
