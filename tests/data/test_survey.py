import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from maejax.data.sources import open_source
from maejax.data.survey import survey


@pytest.fixture
def encode():
    def encode(pixels, format="PNG", **options):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format, **options)
        return buffer.getvalue()

    return encode


def test_a_folder_is_counted_measured_and_its_faults_named(tmp_path, encode):
    for i in range(12):
        path = tmp_path / ("shoe" if i < 9 else "dress") / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(np.zeros((10 + i, 20, 3), np.uint8), "JPEG"))
    (tmp_path / "dress/9.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "loose.PNG").write_bytes(encode(np.zeros((40, 5), np.uint8)))
    calls = []
    facts = survey(open_source(str(tmp_path)), sample=None, channels=3, progress=lambda *call: calls.append(call))
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["images"], facts["looked_at"], facts["shards"], calls[-1]) == (13, 13, None, (13, 13))
    assert facts["suffixes"] == {".jpg": 12, ".PNG": 1}
    assert (facts["formats"], facts["modes"]) == ({"JPEG": 11, "PNG": 1}, {"RGB": 11, "L": 1})
    assert (facts["height"]["0%"], facts["height"]["100%"], facts["width"]["50%"]) == (10, 40, 20)
    assert facts["classes"] == {"count": 2, "images": [["shoe", 9], ["dress", 3]], "unlabelled": 1}
    ((bad, reason),) = facts["bad"].items()
    assert bad.endswith("dress/9.jpg") and "JPEG" in reason


def test_shards_duplicates_and_empty_classes(tmp_path, encode):
    image = tmp_path / "image.png"
    image.write_bytes(encode(np.zeros((4, 4, 3), np.uint8)))
    (tmp_path / "0.cls").write_bytes(b"2")
    for shard, names in {"a": ["x.png", "0001.png", "x.png"], "b": ["0001.png", "y.png"], "c": ["y.png"]}.items():
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for name in names:
                tar.add(image, name)
            tar.add(tmp_path / "0.cls", names[0].replace("png", "cls"))
    index = {"shards": [{"name": f"{s}.tar"} for s in "abc"], "classes": ["p", "q", "r"]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    facts = survey(open_source(f"{tmp_path}/*.tar"), sample=4, channels=3)
    assert facts["looked_at"] == sum(facts["formats"].values()) == 4
    assert facts["shards"]["count"] == 3
    assert facts["shards"]["images"] == {"0%": 1, "50%": 2, "100%": 3}
    assert facts["duplicates"] == {"a.tar:x.png": 2, "x.png": 2, "y.png": 2}
    assert facts["classes"]["images"] == [["r", 4], ["p", 0], ["q", 0]]
    assert facts["classes"]["unlabelled"] == 2


def test_arrays_and_labels_without_names(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((6, 8, 4, 2), np.uint8), labels=np.array([3, 3, 3, 9, 9, 1]))
    facts = survey(open_source(str(tmp_path / "a.npz")), sample=100, channels=2)
    assert (facts["formats"], facts["modes"]) == ({"array": 6}, {"2 channels": 6})
    assert (facts["width"]["50%"], facts["height"]["50%"], facts["bytes"]["50%"]) == (4, 8, 64)
    assert facts["classes"]["images"] == [["3", 3], ["9", 2], ["1", 1]]
    assert (facts["shards"], facts["duplicates"]) == (None, {})
