"""`maejax train IMAGES`: settings are chosen, said with their reasons, and repeated by the command that is printed."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maejax.cli import parse
from maejax.commands.train import TrainCommand
from maejax.data.folder import find_parts
from maejax.tasks import chosen, settings, speed
from maejax.tasks.images import open_images
from maejax.training.log import read_metrics

from ..conftest import TINY

RUN = Path("runs/pretrain")


@pytest.fixture
def photos(tmp_path):
    """Write 44 small photos into a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (44, 20, 16, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Measure nothing, and choose a model that is compiled soon."""
    monkeypatch.setitem(settings.SIZES, "n", settings.Size((1, 16, 2), (1, 8, 2), 12, 72, 0))
    monkeypatch.setattr(chosen, "products_per_second", lambda config: 1e9)
    monkeypatch.setattr(chosen, "images_per_second", lambda config, sources: 100.0)


@pytest.mark.usefixtures("quick", "photos")
def test_what_is_chosen_is_said_repeated_and_kept(maejax, monkeypatch):
    more = "--epochs", 4, "--warmup-epochs", 2, "--log-interval", 1, "--eval-interval", 5
    code, printed = maejax("train", "photos", *more)
    assert code == 0, printed
    assert "photos   42 images, median 16 x 20: n2, 1 x 16 at 16 px, batch 32, 3.81 epochs" in printed, printed
    for line in (
        "model    1 x 16, the largest",
        "epochs   3.81: as asked for, at 100 images/s",
        "held out 2 more",
        "rate     ",
    ):
        assert line in printed, printed
    config, losses = json.loads((RUN / "config.json").read_text()), read_metrics(RUN / "metrics.jsonl", "train/loss")
    assert (config["images"], config["flags"]["training_steps"], config["flags"]["warmup_steps"]) == (42, 5, 3)
    assert read_metrics(RUN / "metrics.jsonl", "val/loss") and len(losses) == 5

    def refuse(*_):
        raise AssertionError("it is chosen again")

    monkeypatch.setattr(chosen, "choose", refuse)
    code, again = maejax("train", "photos", *more, "--budget", "1h", "--print-config")
    assert code == 0 and "chosen   when the run began" in again, again
    found = json.loads(again[again.index("{") :])
    assert all(found[name] == config["flags"][name] for name in chosen.CHOSEN)
    shutil.rmtree(RUN)
    (repeat,) = [line for line in printed.splitlines() if line.startswith("repeat   ")]
    code, printed = maejax(*shlex.split(repeat.removeprefix("repeat   "))[1:])
    assert code == 0 and json.loads((RUN / "config.json").read_text()) == config, printed
    assert read_metrics(RUN / "metrics.jsonl", "train/loss") == losses


@pytest.mark.usefixtures("quick")
def test_a_part_named_validation_is_used(maejax, photos):
    for part, numbers in (("train", range(40)), ("Val", range(40, 43)), ("test", range(43, 44))):
        (photos / "inner" / part / "a").mkdir(parents=True)
        for i in numbers:
            (photos / f"{i:02}.png").rename(photos / "inner" / part / "a" / f"{i}.png")
    assert find_parts(photos) == (photos / "inner/train", photos / "inner/Val")
    code, printed = maejax("train", "photos", "--model", "n8", "--print-config", "--budget", "1m")
    found = json.loads(printed[printed.index("{") :])
    assert code == 0 and found["valid_dataset_shards"] == "photos/inner/Val" and not found["hold_out"], printed
    assert (found["train_dataset_shards"], found["patch_size"], found["dim"]) == ("photos/inner/train", 8, 16)
    (photos / "inner/Val").rename(photos / "inner/cars")
    (photos / "inner/test").rename(photos / "inner/other")
    assert find_parts(photos) == (photos, None)  # classes, one of them named train


def test_epochs_become_steps_in_every_mode(maejax, images):
    flags = [
        "--mode",
        "finetune",
        "--train-dataset-shards",
        images,
        "--train-batch-size",
        8,
        "--augment-repeats",
        2,
        "--auto-augment",
        "none",
    ]
    code, printed = maejax("train", *flags, "--hold-out", 4, "--epochs", 3, "--warmup-epochs", 0.5, "--print-config")
    found = json.loads(printed)
    assert (code, found["training_steps"], found["warmup_steps"]) == (0, 15, 2), printed  # 20 images, each twice
    assert (found["dim"], found["learning_rate"]) == (768, 1e-3)  # the published recipe


def test_bad_input_ends_in_one_sentence_before_any_work(maejax, photos, images, monkeypatch):
    monkeypatch.setattr(chosen, "products_per_second", lambda config: pytest.fail("something was measured"))
    Path("empty").mkdir()
    for args, sentence in (
        (["empty"], "empty: no image found"),
        (["nowhere"], "nowhere: not found"),
        (["photos", "--budget", "0"], "--budget 0: give a time above 0 with its unit, such as 30m, 2h or 1.5d"),
        (["photos", "--model", "x16"], "--model x16: choose one of n12, ti8"),
        (["photos", "--model", "s16", "--dim", 64], "--model s16 and --dim both name sizes"),
        (["photos", "--epochs", 2, "--training-steps", 3], "--epochs 2 and --training-steps say the same"),
        (["photos", "--warmup-epochs", 2, "--warmup-steps", 3], "--warmup-epochs 2 and --warmup-steps say the same"),
        (["photos", "--epochs", 0], "--epochs 0: give a number above 0"),
        (["photos", "--mode", "linear", "--model", "s16"], "--model s16 is for pre-training, and this is --mode"),
        (["photos", "--train-dataset-shards", images], "photos: --train-dataset-shards names images to train on too"),
        (["photos", "more"], "train photos more: the shell made several names of one; put it in quotes"),
        (["photos", "--hold-out", 44], "--hold-out 44: there are 44 images; hold out fewer"),
        (["photos", "--hold-out", 4, "--valid-dataset-shards", images], "--hold-out 4: --valid-dataset-shards names"),
        (["photos", "--train-batch-size", 0], "--train-batch-size 0 does not divide by the 4 devices; take 4"),
        (["--model", "s16"], "--train-dataset-shards is missing"),
    ):
        code, printed = maejax("train", *args)
        assert code == 2 and sentence in printed and "Traceback" not in printed, printed
    assert not Path("runs").exists()


@pytest.mark.usefixtures("one_step_each")
def test_the_speed_is_that_of_real_steps(images):
    read = parse(["train", "--train-dataset-shards", str(images), *TINY])
    assert isinstance(read, TrainCommand)
    config = read.config
    seconds = iter(range(0, 1000, 2))  # each look at the clock takes two
    found = speed.images_per_second(config, open_images(config)[1:], 5, lambda: next(seconds))
    assert found == 8 * 3 / 4  # one step of two seconds, so that two more are to take five; they took two
    assert speed.products_per_second(config) > 1e6
