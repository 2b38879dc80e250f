"""Checks of flags that every task makes, and the flags that config.json holds."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax

from maejax.config import Config, declarations, flags, with_flags
from maejax.data.form import number_of, split_bands
from maejax.data.policies import check_policy
from maejax.errors import InputError
from maejax.models.code import name_code
from maejax.models.description import Compute, Decoder, ViT
from maejax.models.stored import from_json
from maejax.recipes import recipe
from maejax.storage.redact import redact

PIXELS = ("image_type", "channels", "bands", "no_data", "mean", "std")  # flags, and what they say of a model
RATE = ("training_steps", "schedule", "schedule_steps", "cooldown_steps", "min_learning_rate")  # of a later step
OF_ONE_MACHINE = ("train_loader_workers", "valid_loader_workers", "cache_dir", "hostname")


def check_least(config: Config) -> None:
    """Check that no flag is below its smallest value, or without the one it belongs to.

    Raises InputError with the first that is.
    """
    given = flags(config)
    if config.transfer.prefix and not config.run.pretrained_ckpt:
        raise InputError(f"--prefix {config.transfer.prefix} is for the tensors of --pretrained-ckpt: give one")
    for name, declared in declarations().items():
        least = declared.get("least")
        if least is not None and given[name] < least:
            raise InputError(f"--{name.replace('_', '-')} {given[name]}: give at least {least}")


def check_data(config: Config) -> None:
    """Check the flags of the data that training reads here. Raises InputError at the first that is wrong."""
    data = config.data
    if data.valid_dataset_shards:
        check_batch("--valid-batch-size", data.valid_batch_size, jax.device_count())
    if not data.train_dataset_shards:
        raise InputError("--train-dataset-shards is missing: name tar shards, an image folder or an .npz file")
    if config.augment.auto_augment != "none":
        check_policy(config.augment.auto_augment, data.channels)


def check_colours(config: Config) -> None:
    """Check what the flags do to images that are open. Raises InputError for colours that images do not have."""
    data, augment = config.data, config.augment
    height, width = config.image_shape
    if augment.rotate == "quarter" and height != width:
        raise InputError(f"--rotate quarter turns square images, not {height}x{width}")
    jitter, policy = augment.color_jitter, augment.auto_augment
    if not jitter and policy == "none":
        return
    flag = f"--color-jitter {jitter:g}" if jitter else f"--auto-augment {policy}"
    off = "0" if jitter else "none"
    if data.image_type not in ("auto", "uint8") or data.no_data:
        kind = "missing pixels" if data.no_data else data.image_type
        raise InputError(f"{flag} changes the colours of 8-bit pictures, and these have {kind}: set it to {off}")
    if data.channels not in (1, 3):
        raise InputError(f"{flag} works on 1 or 3 channels, and these images have {data.channels}: set it to {off}")


def check_step(config: Config, devices: int, where: str = "") -> None:
    """Check what a step computes on so many devices, named in `where`. Raises InputError at the first wrong flag."""
    traced_steps(config)
    check_schedule(config)
    if config.augment.color_jitter and config.data.channels not in (1, 3):
        raise InputError(f"--color-jitter works on 1 or 3 channels, not {config.data.channels}")
    parts, repeats = config.optimization.grad_accum, config.augment.augment_repeats
    check_batch("--train-batch-size", config.data.train_batch_size, devices, where, parts=parts, repeats=repeats)


def check_schedule(config: Config) -> None:
    """Check the flags of the learning rate together. Raises InputError if one is ignored or a part does not fit."""
    given = config.optimization
    ignored = {"cosine": "cooldown_steps", "constant": "schedule_steps cooldown_steps min_learning_rate"}
    names = ignored.get(given.schedule, "schedule_steps")
    refuse_ignored(config, names, f"--schedule {given.schedule} would ignore it; leave it out")
    if given.schedule != "wsd":
        return
    steps, warmup, cooldown = given.training_steps, given.warmup_steps, given.cooldown_steps
    if not cooldown:
        raise InputError(f"--schedule wsd needs --cooldown-steps: a fifth of --training-steps is {max(1, steps // 5)}")
    if warmup + cooldown > steps:
        raise InputError(
            f"--warmup-steps {warmup} and --cooldown-steps {cooldown} are more than --training-steps {steps}: lower one"
        )


def warnings_of(config: Config, images: int | None, width: int) -> list[str]:
    """List what is allowed and seldom meant, each with what to do; `images` is the number of them, if it is known."""
    data, run, optimization, found = config.data, config.run, config.optimization, []
    steps, warmup = optimization.training_steps, optimization.warmup_steps
    if warmup >= steps:
        found.append(f"--warmup-steps {warmup} is no less than --training-steps {steps}: try {steps // 20}")
    if images is not None and data.train_batch_size > images:
        found.append(
            f"--train-batch-size {data.train_batch_size} holds each of {images} images several times: lower it"
        )
    if run.mode == "finetune" and not run.pretrained_ckpt:
        found.append("--pretrained-ckpt is empty: the encoder starts from random weights")
    usual = recipe(run.mode).optimization.learning_rate
    if run.mode == "pretrain" and width < 384 and optimization.learning_rate == usual:
        found.append(f"--learning-rate {usual} is that of ViT-B and larger: with --dim {width}, try 1e-3")
    return found


def refuse_ignored(config: Config, names: str, why: str) -> None:
    """Check that flags which a task would have to ignore, a list of words, have the defaults of their mode.

    Raises InputError with the first that has not, and `why`.
    """
    given, usual = flags(config), flags(recipe(config.run.mode))
    for name in names.split():
        if given[name] != usual[name]:
            raise InputError(f"--{name.replace('_', '-')} {given[name]}: {why}")


def encoder_config(config: Config) -> ViT:
    """Describe the encoder that the flags ask for; fields have the names of their flags.

    Raises ValueError if its sizes do not fit together.
    """
    # What channels are named before the images are open, may be numbers of theirs.
    bands = split_bands(config.data.bands)
    named = bands if len(bands) == config.data.channels else ()
    given = {"image_size": config.image_shape, "image_type": image_type(config), "bands": named}
    given["no_data"] = number_of(config.data.no_data)
    return ViT(**_fields(ViT, flags(config) | given))


def before_images(config: Config) -> Config:
    """Return flags for a check before the images are open, which say how many channels they have."""
    told = len(config.data.mean) or len(split_bands(config.data.bands))
    return with_flags(config, channels=told) if told else config


def image_type(config: Config) -> str:
    """Return the type of a run's images; before they are open, "auto" is uint8."""
    return "uint8" if config.data.image_type == "auto" else config.data.image_type


def decoder_config(config: Config) -> Decoder:
    """Describe the decoder that the flags ask for; fields have the names of their flags, after `dec_`.

    Raises ValueError if its sizes do not fit together.
    """
    given = {name.removeprefix("dec_"): value for name, value in vars(config.mae).items()}
    kind: Any = config.mae.decoder
    return Decoder(**_fields(Decoder, given | ({"custom": kind} if callable(kind) else {"attention": kind})))


def _fields(description: type, given: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: given[field.name] for field in dataclasses.fields(description) if field.name in given}


def compute_of(config: Config) -> Compute:
    """Choose how the flags compute a model on the devices of this machine."""
    return Compute(
        dtype=precision(config),
        remat=config.encoder.grad_ckpt,
        # In a loop alone, layers that are split over the devices are gathered one at a time.
        scan=config.encoder.scan_layers or config.machine.sharding == "fsdp",
        attention=config.encoder.attention,
    )


def precision(config: Config) -> Literal["float32", "bfloat16"]:
    """Resolve `--precision auto` for the devices that are there."""
    if config.run.precision != "auto":
        return config.run.precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def check_batch(flag: str, size: int, devices: int, where: str = "", *, parts: int = 1, repeats: int = 1) -> None:
    """Check that a global batch divides over the devices, parts of `--grad-accum`, and repeats of an image.

    Raises InputError with the nearest sizes that do.
    """
    unit = math.lcm(devices * parts, repeats)
    if size < 1 or size % unit:
        near = sorted({max(unit, size // unit * unit), (size // unit + 1) * unit})
        split = f"the {devices} devices{where}{f' x {parts} parts (--grad-accum)' if parts > 1 else ''}"
        shared = f" and --augment-repeats {repeats}" if repeats > 1 else ""
        raise InputError(f"{flag} {size} does not divide by {split}{shared}; take {' or '.join(map(str, near))}")


def traced_steps(config: Config) -> tuple[int, int]:
    """Read `--profile START:STOP`; without it, steps that are never made.

    Raises InputError if it has another form.
    """
    if not config.run.profile:
        return -1, -1
    start, _, stop = config.run.profile.partition(":")
    if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise InputError(f"--profile {config.run.profile}: give START:STOP, two steps such as 100:110")
    return int(start), int(stop)


def safe_flags(config: Config) -> dict[str, Any]:
    """List the flags for config.json: addresses and commands without their secrets, nothing of this machine.

    Code of the user in the place of a flag is listed by its name.
    """
    declared = declarations()
    given = {name: name_code(value) if callable(value) else value for name, value in flags(config).items()}
    return {
        name: redact(value) if isinstance(value, str) else value
        for name, value in given.items()
        if declared[name].get("written", True)
    }


def shared_flags(config: Config) -> dict[str, Any]:
    """List the flags that all processes of a run must share, for comparison: all but those of one machine."""
    return {name: value for name, value in safe_flags(config).items() if name not in OF_ONE_MACHINE}


def extension_problem(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> str:
    """Return what is missing to go on from a step with other flags of the `RATE`; empty if the flags say it.

    A cosine goes on to more steps: it is stretched to them, or ends where it did and leaves the rate at its floor.
    What stays at its peak goes on to any cool-down that has not begun.
    """
    if now["schedule"] != "cosine":
        end = now["training_steps"] - now["cooldown_steps"]
        gone = f"--training-steps less --cooldown-steps is {end}, and step {end} is over: give at least {step}"
        return gone if end < step else ""
    steps, end = now["training_steps"], before["schedule_steps"] or before["training_steps"]
    stretched = now["schedule_steps"] == steps and now["min_learning_rate"] == before["min_learning_rate"]
    if stretched or (now["schedule_steps"] == end and now["min_learning_rate"] > 0):
        return ""
    return (
        f"to go on to step {steps}, give --schedule-steps {steps} for one cosine over all steps, or --schedule-steps "
        f"{end} and a --min-learning-rate above 0, at which the rate then stays"
    )


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List the flags that differ between two sets of flags, as `--name old -> new`."""
    old, new = (json.loads(json.dumps(values)) for values in (old, new))
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"--{name.replace('_', '-')} {old.get(name)} -> {new.get(name)}" for name in changed]


def run_differences(old: dict[str, Any] | None, new: dict[str, Any], step: int) -> list[str]:
    """List what differs from an earlier run's config.json and may not change within a run: flags, number of images.

    Flags that an earlier version did not have count as their defaults. The same images may lie elsewhere, the same
    precision may be named or not, and a run may be extended from its newest checkpoint, that of `step`.
    """
    if old is None:
        return []
    usual = flags(recipe(old["flags"]["mode"]))
    free = {name for name, declared in declarations().items() if declared.get("free")}
    before, now = (usual | made["flags"] for made in (old, new))
    if old.get("compute", {}).get("dtype") == new["compute"]["dtype"]:
        free.add("precision")
    if old.get("data") and old["data"] == new["data"]:
        free.add("train_dataset_shards")
    was, is_now = (from_json(made["model"]).encoder for made in (old, new))
    same = {name for name in PIXELS if getattr(was, name) == getattr(is_now, name)}
    free |= same if now["statistics"] or before["statistics"] else same - {"mean", "std"}
    problem = ""
    cosines = [each["schedule"] == "cosine" for each in (before, now)]
    longer, other = now["training_steps"] > before["training_steps"], any(before[name] != now[name] for name in RATE)
    if (all(cosines) and longer) or (not any(cosines) and other):
        problem = extension_problem(before, now, step)
        free |= set(RATE)
    changed = differences(*({k: v for k, v in each.items() if k not in free} for each in (before, now)))
    changed += [problem] if problem else []
    if None not in (old["images"], new["images"]) and old["images"] != new["images"]:
        changed.append(f"{old['images']} training images -> {new['images']}")
    return changed
