"""Runs on images of other types: statistics, names of bands, missing pixels, pictures, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from maejax.training.log import read_metrics

BANDS = ("B02", "B03", "B04", "B08")
SIZE = ["--image-size", 16, "--valid-batch-size", 8]


def scenes(kind, count=24):
    rng = np.random.default_rng(0)
    smooth = rng.normal(0, 1, (count, 4, 4, 4)).repeat(4, axis=1).repeat(4, axis=2)
    values = 2000 + 500 * smooth + rng.normal(0, 50, smooth.shape)
    return values.clip(1, 10_000).astype(kind)


@pytest.fixture
def source(maejax):
    """Write images of four named bands; return their type."""
    np.savez("s2.npz", images=scenes("uint16"), labels=np.arange(24) % 3, bands=np.array(BANDS))
    return "uint16"


def run_of(name):
    return json.loads(Path(f"runs/{name}/config.json").read_text())["model"]["encoder"]


def losses(name):
    return read_metrics(Path(f"runs/{name}/metrics.jsonl"), "train/loss")


def test_a_run_needs_statistics_keeps_them_and_goes_on_bit_for_bit(maejax, train, source):
    shards = "packed"
    assert maejax("pack", "s2.npz", "packed", "--shard-size", 9)[0] == 0
    first = ["--train-dataset-shards", shards, "--name", "s2"]
    code, printed = train(*first)
    assert code == 2 and f"images of {source} have no usual mean and deviation" in printed
    assert f"`maejax data {shards} --statistics FILE` and give --statistics FILE, or --mean and --std" in printed
    code, printed = maejax("data", shards, "--statistics", "s2.json", "--workers", 1)
    assert code == 0 and "B08" in printed, printed
    given = [*first, "--statistics", "s2.json", "--valid-dataset-shards", "s2.npz", "--show-bands", "B04,B03,B02"]
    code, printed = train(*given)
    assert code == 0 and f"({source})" in printed, printed
    kept, statistics = run_of("s2"), json.loads(Path("s2.json").read_text())
    assert (kept["image_type"], kept["bands"], kept["channels"]) == (source, list(BANDS), 4)
    assert kept["mean"] == statistics["mean"] and kept["std"] == statistics["std"]
    half = [*first[:2], *given[4:], "--name", "half", "--schedule-steps", 6]
    assert train(*half, "--training-steps", 4)[0] == 0
    Path("s2.json").unlink()  # config.json has the numbers
    code, printed = train(*half, "--training-steps", 6)
    assert code == 0, printed
    assert losses("half") == losses("s2")


def test_bands_are_picked_by_name_everywhere(maejax, train, source, caplog, idle):
    maejax("data", "s2.npz", "--statistics", "s2.json", "--workers", 1)
    first = ["--train-dataset-shards", "s2.npz", "--statistics", "s2.json", "--name", "rgb"]
    with idle():
        code, printed = train(*first, "--bands", "B04,B03,B02")
    assert code == 0, printed
    statistics = json.loads(Path("s2.json").read_text())
    assert run_of("rgb")["mean"] == statistics["mean"][2::-1] and run_of("rgb")["bands"] == ["B04", "B03", "B02"]
    code, printed = maejax("features", "runs/rgb", "s2.npz", "--out", "f.npz")
    assert code == 0, printed
    np.savez("other.npz", images=scenes(source)[..., ::-1], bands=np.array(BANDS[::-1]))
    assert maejax("features", "runs/rgb", "other.npz", "--out", "g.npz")[0] == 0
    np.testing.assert_array_equal(np.load("f.npz")["features"], np.load("g.npz")["features"])
    np.savez("lacks.npz", images=scenes(source)[..., 1:], bands=np.array(BANDS[1:]))
    code, printed = maejax("features", "runs/rgb", "lacks.npz", "--out", "h.npz")
    assert code == 2 and "--bands B02: the images have B03, B04, B08" in printed, printed
    more = ["--pretrained-ckpt", "runs/rgb", "--new-decoder", "--name", "more"]
    code, printed = train(*first, *more)
    assert code == 2 and "the weights have no filter for B08" in printed, printed
    with idle():
        code, printed = train(*first, *more, "--channel-rule", "repeat")
    assert code == 0 and "16 of 17 published comparisons" in caplog.text, printed
    caplog.clear()
    with idle():
        code, printed = train(*first, *more, "--bands", "B02,B04", "--name", "less")
    assert code == 0 and not caplog.text, printed


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--color-jitter", ".4"], "--color-jitter 0.4 changes the colours of 8-bit pictures, and these have uint16"),
        (["--bands", "B99"], "--bands B99: the images have B02, B03, B04, B08, or the numbers 0 to 3"),
        (["--no-data", "-1"], "--no-data -1: no pixel of uint16 has this value"),
        (["--image-type", "int16"], "holds uint16, which int16 cannot hold"),
        (["--value-range", "0", "1"], "--value-range says what --image-type uint8 makes 0 and 255"),
        (["--statistics", "none.json"], "--statistics none.json: cannot be read"),
        (["--rotate", "quarter", "--image-size", "16x32"], "--rotate quarter turns square images"),
        (["--valid-dataset-shards", "bytes.npz"], "holds uint8, and uint16 is needed"),
        (["--mean", "0", "0", "0", "0", "--std", "1", "1", "1", "0"], "--std 0: a deviation is more than 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_step_one(train, flags, sentence):
    np.savez("s2.npz", images=scenes("uint16"), bands=np.array(BANDS))
    np.savez("bytes.npz", images=np.zeros((8, 16, 16, 4), np.uint8))
    usual = ["--mean", 1, 1, 1, 1, "--std", 1, 1, 1, 1]
    code, printed = train("--train-dataset-shards", "s2.npz", *usual, *flags)
    assert code == 2 and sentence in printed and "Traceback" not in printed, printed


def test_missing_pixels_are_told_and_left_out(maejax, train):
    images = scenes("float32")
    images[:, 4:8, 2:7], images[:, 8:12, 2:7] = np.nan, -9999
    np.savez("holes.npz", images=images)
    code, printed = maejax("data", "holes.npz", "--statistics", "s.json", "--no-data", -9999, "--workers", 1)
    assert code == 0 and "15.62%" in printed, printed
    code, printed = train("--train-dataset-shards", "holes.npz", "--statistics", "s.json", "--name", "holes")
    assert code == 0, printed
    assert run_of("holes")["no_data"] == -9999 and min(run_of("holes")["mean"]) > 1900
    assert all(np.isfinite(value) for _, value in losses("holes"))


def test_commands_take_other_types_or_refuse_in_a_sentence(maejax, train, source, images, idle):
    maejax("data", "s2.npz", "--statistics", "s2.json", "--workers", 1)
    with idle():
        code, printed = train("--train-dataset-shards", "s2.npz", "--statistics", "s2.json", "--bands", "B04,B03,B02")
    assert code == 0 and "pixels   uint16, 3 channels (B04, B03, B02)" in printed, printed
    Path("bands.txt").write_text("\n".join(BANDS))
    np.save("four.npy", scenes(source, 1)[0])
    code, printed = maejax("reconstruct", "runs/pretrain", "four.npy")
    assert code == 0 and Path("reconstructions/000-four.png").exists(), printed
    code, printed = maejax("export", "runs/pretrain", "--to", "stablehlo")
    assert code == 0 and "within 0.0e+00" in printed, printed
    np.save("three.npy", scenes(source, 1)[0, ..., :3])
    refused = {
        ("reconstruct", "runs/pretrain", "three.npy"): "three.npy has 3 bands, and 4 names are given",
        ("features", "runs/pretrain", images, "--out", "f.npz"): "holds uint8, and uint16 is needed: give --image-type",
        ("features", "runs/pretrain", "s2.npz", "--out", "f.npz", "--no-data", 3): "for the model no pixel is missing",
        ("features", "runs/pretrain", "s2.npz", "--out", "f.npz", "--image-type", "int16"): "the model takes uint16",
        ("export", "runs/pretrain"): "takes images of uint16, and the processors of transformers and timm",
    }
    for args, sentence in refused.items():
        code, printed = maejax(*args)
        assert code == 2 and sentence in printed and "Traceback" not in printed, printed
