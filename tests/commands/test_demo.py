"""The demo, cut short: everything it promises is there and has the promised form."""

import json
from pathlib import Path

from PIL import Image

from maejax.commands import demo


def first(n, split):
    return demo.Split(split.images[:n], split.labels[:n])


def test_the_demo_does_the_whole_job(maejax, monkeypatch):
    # A part of the images will do to judge three steps.
    read = demo.read_split
    monkeypatch.setattr(demo, "read_split", lambda *split: first(2000, read(*split)))
    code, printed = maejax("demo", "--training-steps", 3)
    assert code == 0, printed
    assert "same encoder, untrained" in printed and "Pre-training" in printed
    report = json.loads(Path("runs/demo/report.json").read_text())
    for features in ("pretrained", "untrained", "pixels"):
        assert {"knn", "linear", "linear_100", "linear_100_std"} == report["scores"][features].keys()
        assert all(0 < score < 100 for score in report["scores"][features].values())
    assert report["scores"]["pixels"]["knn"] > 75  # the images are real and the labels theirs
    assert {"pack", "pre-train", "evaluate", "total"} == report["seconds"].keys()
    page = Path("runs/demo/report.html").read_text()
    assert f"{report['scores']['pretrained']['knn']:.1f}" in page and "data:image/png;base64," in page
    with Image.open("runs/demo/reconstructions.png") as picture:
        assert picture.height > 500
