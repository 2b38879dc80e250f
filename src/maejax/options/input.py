"""Flags of the images: where they come from, and how they are augmented."""

import os
from dataclasses import dataclass
from typing import Literal

from maejax.options.flag import flag
from maejax.pixels import Pixels


@dataclass(frozen=True, kw_only=True)
class Data(Pixels):
    """Where images come from."""

    train_dataset_shards: str = ""
    """Tar shards (brace lists {0000..0103}, globs; quote them), an image folder (labelled or flat), a Hugging Face
    `datasets` folder, arrow or parquet files, or an .npz file. Shards are .tar, .tar.gz or .tar.zst, here, at https://,
    hf://datasets/..., gs://, s3://, or printed by a command, "pipe:COMMAND". @FILE lists such sources, one a line."""
    valid_dataset_shards: str = flag("", free=True)
    """The same for validation; fetched once, as a whole. Empty: no validation."""
    hold_out: int = flag(0, least=0)
    """Images of --train-dataset-shards, evenly spread, to validate on instead of training on them."""
    cache_dir: str = flag("", free=True)
    """Folder that keeps fetched shards for later epochs and runs. Empty: they are removed after use."""
    on_bad_data: Literal["skip", "stop"] = flag("skip", free=True)
    """What to do about images and shards that cannot be read. skip: leave them out, up to the limits below."""
    max_bad_images: float = flag(0.001, least=0, free=True)
    """Largest share of images that skip leaves out before the run stops; up to 10 are always forgiven, at 0 none."""
    max_lost_shards: int = flag(0, least=0, free=True)
    """Largest number of shards that skip leaves out, or reads only in part, before the run stops."""
    train_batch_size: int = 4096
    """Images per step, over all devices and hosts."""
    valid_batch_size: int = flag(512, free=True)
    """Images per validation batch, over all devices and hosts."""
    train_loader_workers: int = flag(os.cpu_count() or 1, least=0, free=True)
    """Cores of a host that read and decode, as threads or processes; 0: the main one. Never changes the order."""
    valid_loader_workers: int = flag(os.cpu_count() or 1, least=0, free=True)
    """The same for validation."""
    channels: int = 3
    """Channels of an image: 1 grey, 3 colour, 4 with alpha. At 3, arrays of other numbers or types keep all theirs."""
    statistics: str = flag("", free=True)
    """File that `maejax data --statistics` wrote: mean and deviation, names and missing value of the bands."""
    mean: tuple[float, ...] = ()
    """Mean of every channel: of uint8 on the 0..1 scale, else in own units. Empty: ImageNet's for 3, .5 otherwise."""
    std: tuple[float, ...] = ()
    """Standard deviation of every channel, as --mean. Empty: ImageNet's for 3 channels, .5 otherwise."""
    show_bands: str = flag("", free=True)
    """Three bands for red, green and blue of pictures, or one. Empty: the first three of 3 or 4, else the first."""


@dataclass(frozen=True)
class Augment:
    """Image augmentations."""

    random_crop: Literal["rrc", "src", "none"] = "rrc"
    """rrc: RandomResizedCrop. src: SimpleResizedCrop of DeiT-III. none: resize and centre crop."""
    crop_scale: float = 0.2
    """Smallest share of the image's area that rrc takes."""
    flip: Literal["horizontal", "vertical", "both", "none"] = "horizontal"
    """Mirrors every other image: left and right, top and bottom, or each of both."""
    rotate: Literal["none", "quarter"] = "none"
    """quarter: turns images by 0 to 3 quarters, for pictures without an up."""
    color_jitter: float = 0.0
    """Factor for brightness, contrast and saturation jitter."""
    auto_augment: str = "none"
    """Augmentation policy by its timm name (rand-m9-mstd0.5-inc1, augmix-..., original, v0, 3a), or none."""
    random_erasing: float = 0.0
    """Probability of random erasing."""
    augment_repeats: int = flag(1, least=1)
    """How many times each image enters a batch, augmented differently."""
    test_crop_ratio: float = flag(0.0, least=0, free=True)
    """Validation images are resized to image size / ratio, then cropped. 0: .875 up to 224 pixels, else 1."""
    mixup: float = 0.0
    """Alpha of Mixup; 0 switches it off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 switches it off."""
    criterion: Literal["ce", "bce"] = "ce"
    """Classification loss: ce softmax, bce sigmoid cross entropy."""
    label_smoothing: float = 0.0
    """Label smoothing."""
