"""The flags that the user left open: chosen for the images and this machine, or counted in epochs."""

import math
import shlex
import time
from collections.abc import Collection

import jax
from rich.console import Console

from maejax.config import Config, flag_words, flags, with_flags
from maejax.console import plain
from maejax.data.part import hold_out
from maejax.data.sources import Source
from maejax.data.stream import Stream
from maejax.data.survey import typical_size
from maejax.distributed.processes import broadcast_from_0
from maejax.errors import InputError
from maejax.models.code import name_code
from maejax.models.flops import pretrain_flop
from maejax.recipes import recipe
from maejax.storage.redact import redact
from maejax.tasks.checks import check_batch, check_data, check_least
from maejax.tasks.images import Sources, held_out, open_images
from maejax.tasks.pretrain import model_config
from maejax.tasks.settings import OF_A_MODEL, Asked, Choice, choose, duration, named, number, seconds_of
from maejax.tasks.speed import images_per_second, products_per_second

BUDGET = "2h"
HELD_OUT, MOST_HELD_OUT = 20, 1000  # one image of so many is held out, and at most so many
CHOSEN = (  # flags that a run keeps which goes on
    *(*OF_A_MODEL, "image_size", "norm_pix_loss", "train_batch_size", "training_steps", "warmup_steps"),
    *("learning_rate", "eval_interval", "save_minutes", "hold_out", "valid_dataset_shards", "valid_batch_size"),
)


def fill_in(
    asked: Asked, budget: str | None, saved: dict | None, console: Console, given: Sources | None = None
) -> tuple[Config, Sources | None]:
    """Fill in the flags that the user left open, and return the images if they are open already, as `given` are.

    With a `budget`, "" for the usual one, they are chosen; without, only epochs become steps. A run that goes on has
    those of `saved`, its config.json. Raises InputError if something is wrong.
    """
    config, sources = asked.config, given
    check_least(config)
    check_data(config)
    if budget is None or "train_batch_size" in asked.given:
        check_batch("--train-batch-size", config.data.train_batch_size, jax.device_count())
    if budget is not None:
        seconds, twice = seconds_of(budget or BUDGET), sorted(OF_A_MODEL & {*asked.given})
        if asked.model and twice:
            flag = f"--{twice[0].replace('_', '-')}"
            raise InputError(f"--model {asked.model} and {flag} both name sizes; leave one out")
        if asked.model:
            named(asked.model, 0)  # raises for one that is not known, before the images are opened
        if saved:
            plain(console, "chosen   when the run began; it goes on with the same settings")
            config = as_begun(config, asked.given, saved)
            if given is not None and given[1] is None and config.data.hold_out:
                sources = held_out(open_images(config, sources=given)[1], None, config.data.hold_out)
        else:
            config, sources = choose_here(asked, seconds, console, given)
            return config, sources if given or isinstance(sources[0], Source) else None
    if asked.epochs is not None or asked.warmup is not None:
        if sources is None and not saved:
            sources = open_images(config)[1:]
        images = saved["images"] if saved else count(sources[0], config)  # type: ignore[index]
        config = in_steps(config, images, asked)
    return config, sources if given or (sources and isinstance(sources[0], Source)) else None


def as_begun(config: Config, given: Collection[str], saved: dict) -> Config:
    """Return the flags of a run that goes on: as they were chosen when it began, but for those `given`."""
    before = flags(config) | saved["flags"]
    return with_flags(config, **{name: before[name] for name in CHOSEN if name not in given})


def choose_here(asked: Asked, budget: float, console: Console, given: Sources | None = None) -> tuple[Config, Sources]:
    """Choose the flags of pre-training for the images and this machine, and print them with their reasons.

    The speed is measured by some steps of what is chosen, then the choice is made again, until it stays. All processes
    call this together. Returns the flags, and the images that are open. Raises InputError if something is wrong.
    """
    begun, took = time.monotonic(), 0.0
    _, source, valid = open_images(asked.config, sources=given)
    images = count(source, asked.config)
    held = min(images // HELD_OUT, MOST_HELD_OUT)
    if valid is None and held and isinstance(source, Source) and "hold_out" not in asked.given:
        asked, (source, valid) = asked._replace(config=with_flags(asked.config, hold_out=held)), hold_out(source, held)
        images -= held
    if valid is not None and "valid_batch_size" not in asked.given:
        devices = jax.device_count()
        batch = math.ceil(min(asked.config.data.valid_batch_size, len(valid)) / devices) * devices
        asked = asked._replace(config=with_flags(asked.config, valid_batch_size=batch))
    height, width = typical_size(source)
    speed, measured = broadcast_from_0(products_per_second(asked.config)), set()
    while True:
        left = max(budget / 2, budget - broadcast_from_0(time.monotonic() - begun + took))
        choice = choose(images, min(height, width), speed, left, asked, devices=jax.device_count())
        if choice.name in measured:
            break
        plain(console, f"speed    measuring {choice.name or 'the model of the flags'} for some seconds")
        start = time.monotonic()
        rate = broadcast_from_0(images_per_second(choice.config, (source, valid)))
        took = time.monotonic() - start  # the run will compile it again
        speed = min(speed, rate * pretrain_flop(model_config(choice.config)))
        measured.add(choice.name)
    announce(choice, images, (height, width), console)
    return choice.config, (source, valid)


def announce(choice: Choice, images: int, size: tuple[int, int], console: Console) -> None:
    """Print a choice, its reasons, and the command that repeats it."""
    config, (height, width) = choice.config, size
    encoder, of_name = config.encoder, f"{choice.name}, " if choice.name else ""
    plain(
        console,
        f"photos   {images:,} images, median {width} x {height}: {of_name}{encoder.layers} x {encoder.dim} at "
        f"{encoder.image_size} px, batch {config.data.train_batch_size}, {number(choice.epochs)} epochs, about "
        f"{duration(choice.seconds)} on this machine",
    )
    reasons, side = [*choice.reasons], config.image_shape[0]
    if held := config.data.hold_out:
        reasons.append(f"held out {held} more, evenly spread, to validate on: no folder is named validation")
    if min(size) >= 3 * side:
        place = shlex.quote(redact(config.data.train_dataset_shards))
        reasons.append(
            f"hint     decoding {min(size)} px for {side} takes time in every epoch; `maejax pack {place} shards "
            f"--image-size {side * 4 // 3}` once takes less"
        )
    for reason in [*reasons, f"repeat   {command_of(config)}"]:
        plain(console, reason)


def command_of(config: Config) -> str:
    """Return the command of a pre-training by its flags, without secrets."""
    usual, words = flags(recipe("pretrain")), ["maejax", "train"]
    for name, value in flags(config).items():
        if value != usual[name]:
            value = name_code(value) if callable(value) else value
            words += flag_words(name, redact(value) if isinstance(value, str) else value)
    return shlex.join(words)


def count(source: Source | Stream, config: Config) -> int:
    """Return the number of training images. Raises InputError if it is not known."""
    if source.total is None:
        place = redact(config.data.train_dataset_shards)
        raise InputError(f"{place}: the number of its images is not known: give --training-steps, or pack it first")
    return source.total


def in_steps(config: Config, images: int, asked: Asked) -> Config:
    """Return flags with the steps of the epochs that were asked for."""
    each, changes = images * config.augment.augment_repeats / config.data.train_batch_size, {}
    if asked.epochs is not None:
        changes["training_steps"] = max(1, round(asked.epochs * each))
    if asked.warmup is not None:
        changes["warmup_steps"] = round(asked.warmup * each)
    return with_flags(config, **changes)
