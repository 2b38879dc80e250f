"""The flags of `maejax train` as keyword arguments, with their types; `options/` says what each does."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args, get_origin, get_type_hints

import numpy as np

from maejax.config import Config, with_flags
from maejax.errors import InputError
from maejax.recipes import recipe


class ReadFlags(TypedDict, total=False):
    """How the files of images become pixels."""

    image_type: Literal["auto", "uint8", "uint16", "int16", "float16", "float32"]
    value_range: Sequence[float]
    channels_first: bool
    pages: Literal["", "bands", "images"]
    dicom_range: Literal["full", "window"]
    bands: str
    no_data: str


class NetworkFlags(ReadFlags, total=False):
    """What decides about a model, but for a mask, a target and a decoder, which may be code."""

    layers: int
    dim: int
    heads: int
    labels: int
    layerscale: bool
    qk_norm: bool
    registers: int
    gated: bool
    patch_size: int
    image_size: int | str | tuple[int, int]
    posemb: Literal["learnable", "sincos2d", "rotary"]
    pooling: Literal["cls", "gap", "avg", "cls+avg", "map"]
    dropout: float
    droppath: float
    grad_ckpt: bool
    scan_layers: bool
    attention: Literal["auto", "xla", "pallas", "cudnn"]
    image_mask_ratio: float | Sequence[float]
    norm_pix_loss: bool
    target_decay: float
    loss_on: Literal["hidden", "all"]
    encoder_mask_tokens: bool
    predict_share: float
    dec_inputs: Literal["last", "blocks", "all"]
    dec_layers: int
    dec_dim: int
    dec_heads: int
    dec_layerscale: bool
    dec_posemb: Literal["learnable", "sincos2d"]
    dec_dropout: float
    dec_droppath: float
    channels: int
    mean: Sequence[float]
    std: Sequence[float]
    init_seed: int
    precision: Literal["auto", "bfloat16", "float32"]


class TrainFlags(NetworkFlags, total=False):
    """All other flags of a training."""

    hold_out: int
    cache_dir: str
    on_bad_data: Literal["skip", "stop"]
    max_bad_images: float
    max_lost_shards: int
    train_batch_size: int
    valid_batch_size: int
    train_loader_workers: int
    valid_loader_workers: int
    statistics: str
    show_bands: str
    random_crop: Literal["rrc", "src", "none"]
    crop_scale: float
    flip: Literal["horizontal", "vertical", "both", "none"]
    rotate: Literal["none", "quarter"]
    color_jitter: float
    auto_augment: str
    random_erasing: float
    augment_repeats: int
    test_crop_ratio: float
    mixup: float
    cutmix: float
    criterion: Literal["ce", "bce"]
    label_smoothing: float
    optimizer: Literal["adamw", "muon", "lamb", "sgd", "lars"]
    learning_rate: float
    sweep_rates: Sequence[float]
    weight_decay: float
    adam_b1: float
    adam_b2: float
    adam_eps: float
    lr_decay: float
    freeze_encoder_steps: int
    finetune_blocks: str
    ema: float
    clip_grad: float
    grad_accum: int
    min_learning_rate: float
    warmup_steps: int
    training_steps: int
    schedule: Literal["cosine", "constant", "wsd"]
    schedule_steps: int
    cooldown_steps: int
    mixup_seed: int
    dropout_seed: int
    shuffle_seed: int
    noise_seed: int
    output_dir: str | Path
    name: str
    project: str
    resume: Literal["auto", "never", "must"]
    save_interval: int
    save_minutes: float
    keep_checkpoints: int
    log_interval: int
    eval_interval: int
    watch: str
    watch_interval: int
    wandb: bool
    tensorboard: bool
    profile: str
    cache_features: int
    pretrained_ckpt: str | Path
    export_msgpack: bool
    hostname: str
    distributed: bool
    coordinator: str
    num_processes: int
    process_id: int
    silent_seconds: int
    sharding: Literal["replicated", "fsdp"]
    on_nan: Literal["stop", "skip"]
    channel_rule: Literal["", "sum", "repeat"]
    new_decoder: bool
    prefix: str
    label_mapping: str


def config_of(mode: str, given: Mapping[str, Any]) -> Config:
    """Return the flags of a mode with those that are given; raises InputError for an unknown name or a wrong value."""
    config, types = recipe(mode), types_of_flags()
    return with_flags(config, **{n: checked(n, v, types[n]) if n in types else v for n, v in given.items()})


def types_of_flags() -> dict[str, Any]:
    """Return the type of every flag by its name."""
    groups: Any = [group.default_factory for group in dataclasses.fields(Config)]
    return {name: kind for group in groups for name, kind in get_type_hints(group).items()}


def checked(name: str, value: Any, kind: Any) -> Any:
    """Return a value as its flag holds it; raises InputError if it is none.

    Sequences become tuples, paths text; `image_size` may be a number or (height, width) in pixels. Code of the user
    stays code.
    """
    if name == "image_size" and not isinstance(value, str):
        value = "x".join(map(str, value)) if isinstance(value, Sequence) else str(value)
    if name in ("mask", "target", "decoder") and callable(value):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise InputError(f"{name}={value!r}: give one of {', '.join(map(repr, get_args(kind)))}")
    elif kind is bool:
        if not isinstance(value, bool):
            raise InputError(f"{name}={value!r}: give True or False")
    elif kind is str:
        value = str(value) if isinstance(value, Path) else value
        if not isinstance(value, str):
            raise InputError(f"{name}={value!r}: give text")
    elif isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) and kind not in (int, float):
        value = tuple(checked(name, each, float) for each in value)
    elif isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        what = {int: "a whole number", float: "a number"}.get(kind, "a number, or several in a tuple")
        raise InputError(f"{name}={value!r}: give {what}")
    return value
