"""Named settings of pre-training, and the choice among them for one's own photos (docs/small-data.md).

`choose` is a function of the number of images, their size, the speed of the machine and the time; nothing is measured
here. What was measured, and what is taken from whom, is in the page.
"""

import math
import re
from collections.abc import Collection
from typing import Any, NamedTuple

from maejax.config import Config, with_flags
from maejax.errors import InputError
from maejax.models.flops import pretrain_flop
from maejax.recipes import recipe
from maejax.tasks.pretrain import model_config
from maejax.training.schedule import IMAGES_PER_RATE


class Size(NamedTuple):
    """Sizes of a model: encoder and decoder, usual patch and largest image in pixels.

    `images` is the number of photos from which on it is chosen.
    """

    encoder: tuple[int, int, int]  # layers, width, heads
    decoder: tuple[int, int, int]
    patch: int
    pixels: int
    images: int


SIZES = {
    "n": Size((4, 128, 4), (1, 64, 4), 12, 72, 0),  # of docs/clothing.md and docs/demo.md
    "ti": Size((12, 192, 3), (2, 96, 3), 8, 64, 1_000),  # ViT (Touvron et al. 2021, Table 1: Ti and S)
    "s": Size((12, 384, 6), (4, 192, 6), 16, 224, 5_000),
    "b": Size((12, 768, 12), (8, 512, 16), 16, 224, 50_000),  # paper, Table 8 and config/pretrain
    "l": Size((24, 1024, 16), (8, 512, 16), 16, 224, 300_000),
    "h": Size((32, 1280, 16), (8, 512, 16), 14, 224, 1_000_000),
}
NAMES = tuple(f"{name}{size.patch}" for name, size in SIZES.items())
_ENCODER, _DECODER = ("layers", "dim", "heads"), ("dec_layers", "dec_dim", "dec_heads")
OF_A_MODEL = frozenset({*_ENCODER, *_DECODER, "patch_size"})  # flags that name sizes: then none is chosen
FEWEST_PATCHES = 8  # along a side
LEAST_EPOCHS, MOST_EPOCHS = 200, 1600  # for a larger model; the most that the paper has (Figure 7)
BATCHES, LEAST_STEPS = (128, 4096), 2000
WARMUP, MOST_WARMUP = 1 / 10, 40  # of all steps, as in docs/clothing.md, and at most the epochs of the paper
# Peaks of the rate and their batches. That of docs/clothing.md is for a width, the paper's (Table 8) the least.
RATE, RATE_DIM, RATE_BATCH = 2e-3, 128, 128
LEAST_RATE, LEAST_RATE_BATCH = 2.4e-3, 4096
EVALUATIONS = 10
UNITS = {"d": 86400, "h": 3600, "m": 60, "min": 60, "s": 1}


class Asked(NamedTuple):
    """The flags of the user, the names of those on the command line, and what stands in the place of others.

    `model` is the name of a setting, `epochs` and `warmup` are numbers of epochs; "" and None are chosen.
    """

    config: Config = recipe("pretrain")
    given: Collection[str] = ()
    model: str = ""
    epochs: float | None = None
    warmup: float | None = None


class Choice(NamedTuple):
    """The flags of a run, the name of its setting, "" if flags name its sizes, its epochs and seconds, and reasons."""

    config: Config
    name: str
    epochs: float
    seconds: float
    reasons: tuple[str, ...]


def choose(
    images: int, side: int, speed: float, budget: float, asked: Asked | None = None, *, devices: int = 1
) -> Choice:
    """Choose the flags of pre-training for so many images, whose shorter side has `side` pixels.

    `speed` is in FLOP/s of training, `budget` in seconds. Flags that were given stay. Raises InputError for an unknown
    setting, and for sizes that do not fit together.
    """
    asked = asked or Asked()
    name, config, why = _choose_size(images, side, speed, budget, asked)
    repeats, model = config.augment.augment_repeats, model_config(config)
    rate = speed / pretrain_flop(model)  # images per second
    most = min(budget * rate / images / repeats, MOST_EPOCHS)
    epochs = asked.epochs or most
    usual = _batch(images, epochs, math.lcm(devices * config.optimization.grad_accum, repeats))
    batch = config.data.train_batch_size if "train_batch_size" in asked.given else usual
    steps = max(1, round(epochs * images * repeats / batch))
    steps = config.optimization.training_steps if "training_steps" in asked.given else steps
    epochs, seconds = steps * batch / images / repeats, steps * batch / rate
    warmup = int(min(steps * WARMUP, steps / epochs * MOST_WARMUP))
    warmup = warmup if asked.warmup is None else round(steps / epochs * asked.warmup)
    of_width = RATE * RATE_DIM / config.encoder.dim / math.sqrt(RATE_BATCH)
    peak = max(of_width, LEAST_RATE / math.sqrt(LEAST_RATE_BATCH)) * math.sqrt(batch)
    chosen = {
        "train_batch_size": batch,
        "training_steps": steps,
        "warmup_steps": warmup,
        "learning_rate": float(f"{peak * IMAGES_PER_RATE / batch:.3g}"),
        "eval_interval": math.ceil(steps / EVALUATIONS),
        "save_minutes": 10.0,
    }
    config = with_flags(config, **{flag: value for flag, value in chosen.items() if flag not in asked.given})
    if asked.epochs or "training_steps" in asked.given:
        limit = f"as asked for, at {rate:,.0f} images/s"
    elif most == MOST_EPOCHS:
        limit = f"the most that the paper has, less than {duration(budget)} at {rate:,.0f} images/s"
    else:
        limit = f"{duration(budget)} at {rate:,.0f} images/s"
    of_batch = f"a thirtieth of the images, for {LEAST_STEPS:,} steps or more, from {BATCHES[0]} on"
    of_batch = of_batch if batch >= BATCHES[0] else "no more than there are images"
    given, encoder = config.optimization, config.encoder
    reasons = (
        f"model    {encoder.layers} x {encoder.dim}, {why}",
        f"size     {encoder.image_size} px in patches of {encoder.patch_size}, {model.encoder.patches} of them: the "
        f"shorter sides have {side} px",
        f"batch    {batch}: {_unless(asked, 'train_batch_size', of_batch)}",
        f"epochs   {number(epochs)}: {limit}",
        f"rate     {given.learning_rate:g} x {batch} / 256: "
        f"{_unless(asked, 'learning_rate', 'by the width of the model and the root of the batch')}",
        f"warm-up  {given.warmup_steps} steps: {_unless(asked, 'warmup_steps', 'a tenth, at most 40 epochs')}",
    )
    return Choice(config, name, epochs, seconds, reasons)


def _unless(asked: Asked, flag: str, why: str) -> str:
    given = {*asked.given, *(["warmup_steps"] if asked.warmup is not None else [])}
    return "as asked for" if flag in given else why


def _choose_size(images: int, side: int, speed: float, budget: float, asked: Asked) -> tuple[str, Config, str]:
    """Return the name of a setting, the flags with its sizes, and why: the largest that sees enough in the budget.

    Enough is every image `LEAST_EPOCHS` times, or as many images as it has weights. If none does it is the smallest.
    """
    if OF_A_MODEL & set(asked.given):
        return "", asked.config, "as the flags or the weights have it"
    if asked.model:
        return asked.model, _with_sizes(asked, named(asked.model, side)), f"as --model {asked.model} has it"
    left_out = ""
    for name, size in reversed(SIZES.items()):
        if images < size.images:
            continue
        # Small images have smaller patches, so that 7 or 8 fit along a side.
        setting = f"{name}{max(1, min(size.patch, round(side / FEWEST_PATCHES)))}"
        config = _with_sizes(asked, named(setting, side))
        seen = budget * speed / pretrain_flop(model_config(config)) / images
        enough = asked.epochs or min(LEAST_EPOCHS, _weights(config) / images)
        if seen >= enough or not size.images:
            break
        left_out = f"; {setting} sees each {number(seen)} times, and needs {number(enough)}"
    return setting, config, f"the largest for {images:,} images and {duration(budget)}{left_out}"


def _with_sizes(asked: Asked, sizes: dict[str, Any]) -> Config:
    return with_flags(asked.config, **{flag: value for flag, value in sizes.items() if flag not in asked.given})


def _weights(config: Config) -> int:
    """Count about the weights of the matrices of all layers."""
    encoder, mae = config.encoder, config.mae
    return 12 * (encoder.layers * encoder.dim**2 + mae.dec_layers * mae.dec_dim**2)


def _batch(images: int, epochs: float, unit: int) -> int:
    """Choose the images of a batch, a multiple of `unit`."""
    wanted = min(max(BATCHES[0], min(images / 30, images * epochs / LEAST_STEPS)), BATCHES[1], images)
    return math.ceil(2 ** math.floor(math.log2(wanted)) / unit) * unit


def named(model: str, side: int) -> dict[str, Any]:
    """Return the flags of a setting, such as s16, for images of `side` pixels. Raises InputError if there is none."""
    found = re.fullmatch(r"([a-z]+)(\d+)", model)
    if found is None or found[1] not in SIZES or not int(found[2]):
        raise InputError(f"--model {model}: choose one of {', '.join(NAMES)}, or one of these with another patch")
    size, patch = SIZES[found[1]], int(found[2])
    # Few patches leave little to hide: small images are enlarged, and small patches do not make the image larger.
    fewest, most = min(FEWEST_PATCHES, size.pixels // patch), size.pixels // max(patch, size.patch)
    image = patch * max(1, fewest, min(side // patch, most))
    sizes = dict(zip((*_ENCODER, *_DECODER), (*size.encoder, *size.decoder), strict=True))
    return {**sizes, "patch_size": patch, "image_size": str(image), "norm_pix_loss": True}


def seconds_of(budget: str) -> float:
    """Read a time such as 2h, 30m or 1.5d in seconds. Raises InputError if it has another form, or is none."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+) *([a-z]+)", budget.strip().lower())
    if found is None or found[2] not in UNITS or not float(found[1]):
        raise InputError(f"--budget {budget}: give a time above 0 with its unit, such as 30m, 2h or 1.5d")
    return float(found[1]) * UNITS[found[2]]


def duration(seconds: float) -> str:
    """Write a time in seconds as people say it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.99 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def number(value: float) -> str:
    """Write a number in three digits, or whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
