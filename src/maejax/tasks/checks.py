"""What every task checks of its flags, and what of them is written down."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from maejax.config import Config, declarations, differences, flags
from maejax.data.policies import check_policy
from maejax.errors import InputError
from maejax.models.vit import IMAGENET_MEAN, IMAGENET_STD
from maejax.storage.redact import redact


def check_run_flags(config: Config, *, training: bool = True) -> None:
    """Refuse sizes that no task can use.

    Raises:
        InputError: with the first flag that is wrong.

    """
    given = flags(config)
    for name, declared in declarations().items():
        least = declared.get("least")
        if least is not None and given[name] < least:
            raise InputError(f"--{name.replace('_', '-')} {given[name]}: give at least {least}")
    if config.data.valid_dataset_shards:
        check_batch("--valid-batch-size", config.data.valid_batch_size, 1, config)
    if not training:
        return
    traced_steps(config)
    if not config.data.train_dataset_shards:
        raise InputError("--train-dataset-shards is missing: name tar shards, an image folder or an .npz file")
    if config.augment.auto_augment != "none":
        check_policy(config.augment.auto_augment, config.data.channels)
    if config.augment.color_jitter and config.data.channels not in (1, 3):
        raise InputError(f"--color-jitter works on 1 or 3 channels, not {config.data.channels}")
    check_batch("--train-batch-size", config.data.train_batch_size, config.optimization.grad_accum, config)


def refuse_ignored(config: Config, neutral: Mapping[str, Any], why: str) -> None:
    """Refuse flags that a task would have to ignore: those that are not as `neutral` says.

    Raises:
        InputError: with the first of them, and `why`.

    """
    given = flags(config)
    for name, value in neutral.items():
        if given[name] != value:
            raise InputError(f"--{name.replace('_', '-')} {given[name]}: {why}")


def encoder_arguments(config: Config) -> dict[str, Any]:
    """Collect the encoder's keyword arguments, as JSON can hold them."""
    encoder, data = config.encoder, config.data
    imagenet = data.channels == 3
    return {
        "image_size": list(config.image_shape),
        "patch_size": encoder.patch_size,
        "channels": data.channels,
        "mean": list(data.mean or (IMAGENET_MEAN if imagenet else (0.5,) * data.channels)),
        "std": list(data.std or (IMAGENET_STD if imagenet else (0.5,) * data.channels)),
        "dim": encoder.dim,
        "layers": encoder.layers,
        "heads": encoder.heads,
        "posemb": encoder.posemb,
        "layerscale": encoder.layerscale,
        "dropout": encoder.dropout,
        "droppath": encoder.droppath,
        "remat": kept_of_blocks(config),
        "scan": looped(config),
        "dtype": precision(config),
        "attention": encoder.attention,
    }


def kept_of_blocks(config: Config) -> bool | str:
    """Say what of each block is kept for the backward pass, as `Transformer` calls it: see the help of --grad-ckpt."""
    if config.encoder.grad_ckpt:
        return True
    return "named" if looped(config) else False


def looped(config: Config) -> bool:
    """Tell whether the layers run as a loop: in one, weights that are split cannot be whole for two layers at once."""
    return config.encoder.scan_layers or config.machine.sharding == "fsdp"


def precision(config: Config) -> str:
    """Resolve `--precision auto` for the devices that are there."""
    if config.run.precision != "auto":
        return config.run.precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def check_batch(flag: str, size: int, parts: int, config: Config) -> None:
    """Check that a global batch divides over the devices, times grad-accum.

    Raises:
        InputError: it does not; the nearest sizes that do are named.

    """
    if parts < 1 or config.augment.augment_repeats < 1:
        raise InputError("--grad-accum and --augment-repeats are at least 1")
    unit = int(np.lcm(jax.device_count() * parts, config.augment.augment_repeats))
    if size < 1 or size % unit:
        near = sorted({max(unit, size // unit * unit), (size // unit + 1) * unit})
        raise InputError(
            f"{flag} {size} does not divide by {jax.device_count()} devices x {parts} parts (--grad-accum) and "
            f"--augment-repeats {config.augment.augment_repeats}; take {' or '.join(map(str, near))}"
        )


def traced_steps(config: Config) -> tuple[int, int]:
    """Read `--profile START:STOP`; without it, steps that are never made.

    Raises:
        InputError: it has another form.

    """
    if not config.run.profile:
        return -1, -1
    start, _, stop = config.run.profile.partition(":")
    if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise InputError(f"--profile {config.run.profile}: give START:STOP, two steps such as 100:110")
    return int(start), int(stop)


def safe_flags(config: Config) -> dict[str, Any]:
    """List the flags for config.json: addresses and commands without their secrets, nothing of this machine."""
    declared = declarations()
    return {
        name: redact(value) if name.endswith("_dataset_shards") else value
        for name, value in flags(config).items()
        if declared[name].get("written", True)
    }


def run_differences(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """List what differs from an earlier run's config.json and may not change within a run: flags, number of images."""
    if old is None:
        return []
    free = {name for name, declared in declarations().items() if declared.get("free")}
    before, now = ({k: v for k, v in c["flags"].items() if k not in free} for c in (old, new))
    changed = differences(before, now)
    if None not in (old["images"], new["images"]) and old["images"] != new["images"]:
        changed.append(f"{old['images']} training images -> {new['images']}")
    return changed
