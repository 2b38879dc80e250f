"""The demo, cut short: everything it promises is there and has the promised form."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from maejax.commands import demo
from maejax.data import fashion_mnist


def test_the_demo_does_the_whole_job(maejax, monkeypatch, tmp_path):
    # A part of the images, and fewer draws of labels, will do to judge three steps.
    for split, count in (("train", 500), ("test", 200)):
        with np.load(fashion_mnist.path(split)) as file:
            np.savez(tmp_path / f"{split}.npz", **{name: file[name][:count] for name in file.files})
    monkeypatch.setattr(fashion_mnist, "path", lambda split: tmp_path / f"{split}.npz")
    monkeypatch.setattr(demo, "DRAWS", 2)
    monkeypatch.setitem(demo.RECIPE, "layers", 1)
    code, printed = maejax("demo", "--training-steps", 3)
    assert code == 0, printed
    assert "same encoder, untrained" in printed and "Pre-training" in printed
    assert "maejax serve runs/demo" in printed.splitlines()[-1]
    report = json.loads(Path("runs/demo/report.json").read_text())
    for features in ("pretrained", "untrained", "pixels"):
        assert {"knn", "linear", "linear_100", "linear_100_std"} == report["scores"][features].keys()
        assert all(0 < score < 100 for score in report["scores"][features].values())
    assert report["scores"]["pixels"]["knn"] > 55  # the images are real and the labels theirs
    assert {"pack", "pre-train", "evaluate", "total"} == report["seconds"].keys()
    page = Path("runs/demo/report.html").read_text()
    assert f"{report['scores']['pretrained']['knn']:.1f}" in page and "data:image/png;base64," in page
    with Image.open("runs/demo/reconstructions.png") as picture:
        assert picture.height > 500
