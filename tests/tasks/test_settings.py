"""The choice of settings: a function of the number of images, their size, the speed and the time."""

import pytest

from maejax.config import declarations, flags, with_flags
from maejax.errors import InputError
from maejax.models.flops import pretrain_flop
from maejax.recipes import recipe
from maejax.tasks.pretrain import model_config
from maejax.tasks.settings import SIZES, Asked, choose, named, seconds_of

LAPTOP, GPU, POD = 3e10, 2e14, 3e15  # FLOP/s
HOUR = 3600


@pytest.mark.parametrize(
    ("images", "speed", "hours", "name", "batch"),
    [
        (1_000, LAPTOP, 0.5, "n12", 128),
        (1_000, GPU, 2, "ti8", 128),
        (5_000, LAPTOP, 2, "n12", 128),
        (5_000, GPU, 2, "s16", 128),
        (50_000, LAPTOP, 2, "n12", 1024),
        (50_000, GPU, 2, "b16", 1024),
        (1_000_000, LAPTOP, 24, "n12", 4096),
        (1_000_000, GPU, 2, "s16", 4096),
        (1_000_000, GPU, 24, "b16", 4096),
        (1_000_000, POD, 24, "h14", 4096),
    ],
)
def test_more_images_speed_and_time_give_larger_models_and_batches(images, speed, hours, name, batch):
    found = choose(images, 400, speed, hours * HOUR)
    assert (found.name, found.config.data.train_batch_size) == (name, batch)
    given, flop = found.config.optimization, pretrain_flop(model_config(found.config))
    assert given.training_steps * batch * flop / speed == pytest.approx(found.seconds)
    assert found.seconds <= hours * HOUR * 1.01 and found.epochs <= 1601
    assert given.warmup_steps == int(min(given.training_steps / 10, given.training_steps / found.epochs * 40))
    assert len(found.reasons) == 6


def test_the_rate_is_that_of_what_was_tried():
    """That of docs/clothing.md at 128 images, and the paper's for ViT-B at 4096."""
    peaks = {}
    for images, speed in ((5_000, LAPTOP), (1_000_000, GPU)):
        config = choose(images, 400, speed, 24 * HOUR if speed == GPU else HOUR).config
        size = config.data.train_batch_size
        peaks[config.encoder.dim, size] = config.optimization.learning_rate * size / 256
    assert peaks == {(128, 128): pytest.approx(2e-3, rel=1e-6), (768, 4096): pytest.approx(2.4e-3, rel=1e-6)}


@pytest.mark.parametrize(("images", "steps"), [(3_068, 1150), (3_873, 1452)])
def test_photos_of_clothing_get_their_measured_recipe(images, steps):
    """That of benchmarks/clothing.py, in its time: 48 epochs at the speed of 470 seconds for 3,068 photos."""
    clothing = {"image_size": "72", "patch_size": 12, "layers": 4, "dim": 128, "heads": 4, "norm_pix_loss": True}
    clothing |= {"dec_layers": 1, "dec_dim": 64, "dec_heads": 4, "train_batch_size": 128, "learning_rate": 4e-3}
    flop = pretrain_flop(model_config(with_flags(recipe("pretrain"), **clothing)))
    found = choose(images, 96, 48 * 3_068 / 470 * flop, 470 * images / 3_068)
    given = flags(found.config)
    assert {name: given[name] for name in clothing} == clothing
    free = {name for name, declared in declarations().items() if declared.get("free")}
    changed = {name for name, value in flags(recipe("pretrain")).items() if given[name] != value} - free
    assert changed <= {*clothing, "warmup_steps", "training_steps"}
    assert (given["training_steps"], given["warmup_steps"]) == (steps, steps // 10)


@pytest.mark.parametrize(
    ("side", "slow", "fast"),
    [
        (20, ("n2", "16"), ("b2", "20")),
        (28, ("n4", "32"), ("b4", "32")),
        (64, ("n8", "64"), ("b8", "64")),
        (96, ("n12", "72"), ("b12", "96")),
        (400, ("n12", "72"), ("b16", "224")),
    ],
)
def test_small_images_keep_some_64_patches(side, slow, fast):
    for speed, wanted in ((LAPTOP, slow), (POD, fast)):
        found = choose(50_000, side, speed, HOUR)
        assert (found.name, found.config.encoder.image_size) == wanted


def test_what_was_asked_for_stays():
    config = with_flags(recipe("pretrain"), image_size="48", learning_rate=1e-3, training_steps=77)
    found = choose(5_000, 400, LAPTOP, HOUR, Asked(config, {"image_size", "learning_rate", "training_steps"}))
    given = found.config.optimization
    assert (found.config.encoder.image_size, given.learning_rate, given.training_steps) == ("48", 1e-3, 77)
    assert given.warmup_steps == 7 and found.epochs == pytest.approx(77 * 128 / 5000)
    assert choose(5_000, 400, LAPTOP, 9, Asked(model="h14", epochs=3)).config.encoder.layers == 32
    sizes = choose(5_000, 400, POD, HOUR, Asked(with_flags(recipe("pretrain"), dim=96, heads=4), {"dim", "heads"}))
    assert sizes.name == "" and sizes.config.encoder == with_flags(recipe("pretrain"), dim=96, heads=4).encoder
    assert choose(5_000, 400, LAPTOP, HOUR, Asked(epochs=400)).name == "n12"  # epochs as well as time
    few = choose(20, 400, LAPTOP, HOUR, devices=3).config
    assert few.data.train_batch_size == 18  # a multiple of the devices


def test_named_settings_are_those_of_the_paper():
    for name, layers, dim, heads, patch, size in (
        ("b16", 12, 768, 12, 16, "224"),
        ("l16", 24, 1024, 16, 16, "224"),
        ("h14", 32, 1280, 16, 14, "224"),
        ("s8", 12, 384, 6, 8, "112"),
    ):
        found = named(name, 400)
        assert [found[flag] for flag in ("layers", "dim", "heads", "patch_size", "image_size")] == (
            [layers, dim, heads, patch, size]
        )
        assert all(found[flag] == usual for flag, usual in (("dec_layers", 8), ("dec_dim", 512))) or name == "s8"
    assert set(SIZES) == {"n", "ti", "s", "b", "l", "h"}
    for wrong in ("x16", "s", "16", "s0", "s-1", "S 16"):
        with pytest.raises(InputError, match=r"--model .*: choose one of n12, ti8, s16, b16, l16, h14"):
            named(wrong, 400)


def test_a_time_needs_its_unit():
    assert [seconds_of(text) for text in ("90s", "30m", "30 min", "2h", "1.5d")] == [90, 1800, 1800, 7200, 129600]
    for wrong in ("0", "0h", "2", "two hours", "-2h", ""):
        with pytest.raises(InputError, match=r"--budget .*: give a time above 0 with its unit, such as 30m"):
            seconds_of(wrong)
