"""report.html of a run: there while it trains, small however long it does, and no reason to stop."""

import json
from pathlib import Path

import numpy as np
import pytest

from maejax.pages.frames import FRAMES, add_frame, draw_slider, read_frames
from maejax.pages.history import POINTS, Curve, History
from maejax.pages.run_page import RunPage, write_run_page

from .test_report import Page

FLAGS = {"mode": "pretrain", "training_steps": 100_000, "train_batch_size": 64, "name": "long"}


def parsed(path):
    page = Page()
    page.feed(Path(path).read_text())
    page.close()
    assert page.open == []
    assert all(resource.startswith("data:") for resource in page.resources)
    return page


def test_a_page_says_how_far_the_run_is(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"flags": FLAGS}))
    page = RunPage(tmp_path, 0)
    page.write(5, {"train/loss": 1.0, "train/eta_seconds": 3700.0})
    assert "It trains: step 5 of 100,000, about 1 h 1 min left" in parsed(tmp_path / "report.html").text
    page.write(6, {"train/loss": 0.5})  # not renewed so soon
    assert "step 5" in parsed(tmp_path / "report.html").text
    page.write(6, {"val/loss": 0.75})
    assert "step 6" in parsed(tmp_path / "report.html").text
    page.close()
    assert "It stopped at step 6" in parsed(tmp_path / "report.html").text


def test_a_page_that_cannot_be_written_is_logged_once_and_stops_nothing(tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps({"flags": FLAGS}))
    (tmp_path / "report.html").mkdir()
    page = RunPage(tmp_path, 0)
    for step in (1, 2):
        page.write(step, {"val/loss": 1.0})
    page.close()
    assert caplog.text.count("report.html cannot be written") == 1


def test_a_page_stays_small_however_long_the_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"flags": FLAGS, "images": 1000}))
    history, rng = History.read(tmp_path), np.random.default_rng(0)
    for step in range(1, 100_001, 7):
        rate = {"train/images_per_second": 640.0, "train/images_per_second_per_device": 160.0}
        more = {"val/loss": 1 / step, "watch/knn": 50.0, "watch/rank": 9.0} if step % 5 == 0 else {}
        noise = dict(zip(("train/loss", "train/grad_norm", "train/input_wait"), rng.random(3), strict=True))
        history.add({"step": step, "processed_samples": 64 * step, **noise, **rate, **more})
    write_run_page(tmp_path, history, "trains")
    assert (tmp_path / "report.html").stat().st_size < 150_000
    assert history.seconds == pytest.approx(100_000 / 10, rel=1e-3)
    assert history.device_seconds == pytest.approx(4 * history.seconds)


def test_a_curve_keeps_its_ends_and_its_mean():
    curve = Curve()
    for step in range(1, 1002):
        curve.add(step, float(step))
        curve.add(step, -1.0)  # the same step again
    assert len(curve.points) <= POINTS
    assert (curve.least, curve.most, curve.last) == ((1, 1.0), (1001, 1001.0), (1001, 1001.0))
    assert all(step == value for step, value in curve.points) and curve.points[-1][0] > 995


def test_frames_are_bounded_even_and_of_a_run_that_goes_back(tmp_path):
    picture = np.zeros((6, 8, 8, 3), np.uint8)
    for step in range(10, 1010, 10):
        add_frame(tmp_path, step, picture, picture, picture + np.uint8(step % 250))
    steps = [int(step) for step in read_frames(tmp_path)["frames"]]
    assert len(steps) == FRAMES and (steps[0], steps[-1]) == (10, 1000)
    assert max(np.diff(steps)) <= 4 * min(np.diff(steps)[:-1])
    add_frame(tmp_path, 500, picture, picture, picture)
    assert [step for step in read_frames(tmp_path)["frames"] if int(step) >= 500] == ["500"]
    assert "step 500" not in draw_slider({"": (read_frames(tmp_path), 499)})
