import base64
from html.parser import HTMLParser

import pytest
from PIL import Image

from maejax.pages.report import Report, write_report

SCORES = {
    "pretrained": {"knn": 83.7, "linear": 86.7, "linear_100": 75.0, "linear_100_std": 1.2},
    "untrained": {"knn": 70.0, "linear": 78.5, "linear_100": 53.0, "linear_100_std": 2.8},
    "pixels": {"knn": 83.0, "linear": 85.3, "linear_100": 69.0, "linear_100_std": 1.1},
}
VOID = {"br", "meta", "circle", "img", "input", "line", "polyline"}


class Page(HTMLParser):
    """Collects text, resources and tags; fails on tags that do not close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.resources, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.resources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path):
    picture = tmp_path / "grid.png"
    Image.new("RGB", (3, 2), "red").save(picture)
    report = Report(
        title="Shirts & shoes",
        scores=SCORES,
        seconds={"pretrain": 481.25, "kNN": 1.5},
        more=["<h2>Curves</h2>"],
        pictures={"Test images <3>": picture},
        config={"lr": 0.0012, "paths": tmp_path, "price": "$5"},
        command="maejax demo --seed 3 && true",
        notes=["10,000 training images."],
        licence="Images: MIT licence.",
    )
    write_report(tmp_path / "report.html", report)
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(written)
    parsed.close()
    assert parsed.open == []
    return parsed, written, picture


def test_it_says_everything(page):
    parsed, _, _ = page
    for text in (
        "Shirts & shoes", "Pre-training helped", "83.7", "75.0 ± 1.2", "53.0 ± 2.8", "raw pixels", "481.2 s", "482.8 s",
        "Curves", "Test images <3>", '"lr": 0.0012', "$5",
        "maejax demo --seed 3 && true", "10,000 training images.", "Images: MIT licence.",
    ):  # fmt: skip
        assert text in parsed.text
    assert "details" in parsed.tags


def test_it_needs_nothing(page):
    parsed, written, picture = page
    assert parsed.resources == ["data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()]
    assert "http" not in written.replace("http-equiv", "")
    assert "default-src 'none'" in written and "src=" not in written.replace('src="data:', "")
    assert "url(" not in written
    assert "@import" not in written
