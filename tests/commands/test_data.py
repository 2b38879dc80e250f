import json

import numpy as np
import pytest
from PIL import Image

from maejax.commands.data import keeps_up
from maejax.data import loader_speed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measure for a moment only."""
    measure = loader_speed.measure
    monkeypatch.setattr(loader_speed, "measure", lambda *args: measure(*args, seconds=0.01))


def test_a_source_is_looked_at(maejax, images):
    code, printed = maejax("data", images, "--image-size", "16x32", "--consume", "1e9")
    assert code == 0, printed
    for part in ("24", "classes", "3, 8 to 8 images each", "all: array 24", "none", "with 1 thread", "does not keep up",
                 "contact-sheet.png"):  # fmt: skip
        assert part in printed
    with Image.open("contact-sheet.png") as sheet:
        assert sheet.width > sheet.height / 2

    code, printed = maejax("data", images, "--sample", 5, "--json", "--image-size", 16, "--out", "a/b.png")
    facts = json.loads(printed)
    assert (code, facts["looked_at"], facts["classes"]["count"], facts["contact_sheet"]) == (0, 5, 3, "a/b.png")
    assert facts["loader"]["one"] > 0 and facts["loader"]["all"] > 0


def test_the_sheet_shows_what_training_sees(maejax, tmp_path):
    for i in range(3):
        Image.fromarray(np.full((16, 16, 3), 50 * i + 50, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "bad[red].jpg").write_bytes(b"no image")
    code, printed = maejax("data", ".", "--image-size", 64)
    assert code == 0 and "1 cannot be read" in printed and "bad[red].jpg" in printed
    with Image.open("contact-sheet.png") as sheet:
        colours = set(np.asarray(sheet)[2:-2, 2:-2].reshape(-1, 3)[:, 0].tolist())
    assert colours == {50, 100, 150, 255}, "three images and paper, nothing for the one that cannot be read"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--image-size", "x"], "--image-size x"),
        (["--out", "sheet.text"], "--out sheet.text"),
        (["--sample", "0"], "--sample 0"),
        (["--color-jitter", "0.4", "--channels", "2"], "--color-jitter"),
        (["--labels", "none.csv"], "none.csv"),
    ],
)
def test_wrong_flags_get_one_sentence(maejax, images, flags, sentence):
    code, printed = maejax("data", images, *flags)
    assert code == 2 and sentence in printed and "Traceback" not in printed, printed


def test_cores_are_counted_at_the_rate_of_all_together():
    loader = {"cores": 4, "one": 150.0, "all": 400.0}
    assert keeps_up(loader, 400) == {"keeps_up": True, "cores_needed": 4}
    assert keeps_up(loader, 401) == {"keeps_up": False, "cores_needed": 5}
    assert keeps_up(loader, 90)["cores_needed"] == 1
