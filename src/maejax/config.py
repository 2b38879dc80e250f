"""Every flag of a training run; the docstrings are the help text of `maejax train --help`.

Defaults are the published recipe of pre-training (the original's flags; paper, Table 8); `recipes.py` has the others.
"""

import dataclasses
import difflib
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from maejax.errors import InputError
from maejax.pixels import Pixels


def flag(default: Any, *, least: float | None = None, free: bool = False, written: bool = True) -> Any:
    """Declare the `least` value of a flag, and whether it may change within a run (`free`) and config.json has it.

    A free flag changes nothing that is computed. One that is not `written` belongs to this process and its machine.
    """
    return field(default=default, metadata={"least": least, "free": free, "written": written})


@dataclass(frozen=True)
class Run:
    """Task, place of the results, and intervals of saving and reporting."""

    mode: Literal["pretrain", "linear", "finetune"] = "pretrain"
    """pretrain: masked-autoencoder pre-training. linear: linear probing. finetune: end-to-end fine-tuning."""
    output_dir: str = flag("runs", free=True)
    """Folder of all runs, or its address in a bucket (gs://, s3://, ...); this run writes to OUTPUT_DIR/NAME."""
    name: str = flag("", free=True)
    """Name of this run and of its folder. Empty: the mode's name."""
    project: str = flag("", free=True)
    """Name of the project this run belongs to, for --wandb; kept in config.json."""
    resume: Literal["auto", "never", "must"] = flag("auto", free=True)
    """auto: continue from the newest checkpoint if there is one. never: refuse to. must: refuse to start anew."""
    save_interval: int = flag(1000, least=1, free=True)
    """Steps between checkpoints; one is also written at the end and when the run is stopped."""
    save_minutes: float = flag(0.0, free=True)
    """Also save if the last checkpoint is this many minutes old; 0 switches it off."""
    keep_checkpoints: int = flag(3, least=1, free=True)
    """Number of the newest checkpoints that are kept."""
    log_interval: int = flag(50, least=1, free=True)
    """Steps between log lines."""
    eval_interval: int = flag(0, least=0, free=True)
    """Steps between validations; 0: only at the end. Each one also draws pictures of reconstructions."""
    wandb: bool = flag(False, free=True)
    """Also log to Weights & Biases, in the project --project; WANDB_MODE=offline keeps it in the run directory."""
    tensorboard: bool = flag(False, free=True)
    """Also write TensorBoard event files, to OUTPUT_DIR/NAME/tensorboard."""
    profile: str = flag("", free=True)
    """START:STOP traces these steps on every process into OUTPUT_DIR/NAME/profile, for TensorBoard or xprof."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the matrix products. auto: bfloat16 on TPU and GPU, float32 on CPU. All else is float32."""
    print_config: bool = flag(False, free=True)
    """Print all flags as they are resolved, and the peak of the learning rate, as JSON; do nothing else."""
    eval_only: bool = flag(False, free=True)
    """Train nothing: print the loss and accuracy of the classifier in --pretrained-ckpt on --valid-dataset-shards."""
    cache_features: int = 0
    """Augmented epochs that --mode linear encodes once, to train heads of several rates and keep the best; 0: none."""
    pretrained_ckpt: str = ""
    """Weights to start from: run directory or checkpoint, .safetensors, .msgpack, .pth, a Hugging Face directory, or
    the address of a file, such as hf://OWNER/NAME/FILE. Strict; positions are interpolated to --image-size."""
    export_msgpack: bool = flag(False, free=True)
    """At the end, also write OUTPUT_DIR/NAME/NAME-last.msgpack and NAME-best.msgpack, in the original's layout."""
    ipaddr: str = flag("", free=True, written=False)
    """Accepted for the original's scripts and ignored: it published the machine's address."""
    hostname: str = flag("", free=True)
    """Name of the machine, kept in config.json."""


@dataclass(frozen=True, kw_only=True)
class Data(Pixels):
    """Where images come from."""

    train_dataset_shards: str = ""
    """Tar shards (brace lists {0000..0103}, globs; quote them), an image folder (labelled or flat), a Hugging Face
    `datasets` folder, arrow or parquet files, or an .npz file. Shards are .tar, .tar.gz or .tar.zst, here, at https://,
    hf://datasets/..., gs://, s3://, or printed by a command, "pipe:COMMAND". @FILE lists such sources, one a line."""
    valid_dataset_shards: str = flag("", free=True)
    """The same for validation; fetched once, as a whole. Empty: no validation."""
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
    """Cores of a host that read and decode: threads, 16 a process at most; 0: the main one. Never changes the order."""
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


@dataclass(frozen=True)
class Encoder:
    """ViT architecture."""

    layers: int = 12
    """Number of layers."""
    dim: int = 768
    """Width."""
    heads: int = 12
    """Number of attention heads."""
    labels: int = 0
    """Number of classes; 0 or less: read from the data."""
    layerscale: bool = False
    """LayerScale, initial value 1e-4."""
    qk_norm: bool = False
    """LayerNorm over the queries and keys of each head."""
    registers: int = flag(0, least=0)
    """Learned tokens beside the cls token, which belong to no patch."""
    gated: bool = False
    """SwiGLU in place of the MLP, of the same width: half as many parameters again."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    image_size: str = "224"
    """Image size in pixels: a number, or HxW; divisible by the patch size."""
    posemb: Literal["learnable", "sincos2d", "rotary"] = "sincos2d"
    """Positional embeddings: learnable, fixed sine-cosine, or rotary. Fine-tuning of --pretrained-ckpt: learnable."""
    pooling: Literal["cls", "gap", "avg", "cls+avg", "map"] = "cls"
    """Input of a classifier: the cls token; gap: the patch tokens' mean, then a norm; avg: a norm, then their mean;
    cls+avg: both; map: attention pooling, as SigLIP has it."""
    dropout: float = 0.0
    """Dropout rate."""
    droppath: float = 0.0
    """Stochastic depth, rising linearly from 0 to this rate over the layers."""
    grad_ckpt: bool = flag(False, free=True)
    """Keep only each block's input, and compute the rest again: least memory, a third more time."""
    scan_layers: bool = flag(False, free=True)
    """Run the layers as one loop: compiles faster, runs slower."""
    attention: Literal["auto", "xla", "pallas", "cudnn"] = flag("auto", free=True)
    """pallas: kernel for TPU from v4 on. cudnn: NVIDIA's, for GPU in half precision. xla: plain products. auto: the
    device's kernel if it passes a comparison with those before step one, else xla. A named form is not compared."""


@dataclass(frozen=True)
class Mae:
    """Masking and the MAE decoder architecture."""

    image_mask_ratio: float = 0.75
    """Share of the patches that is hidden, drawn per image; exactly int(N * (1 - ratio)) stay visible."""
    norm_pix_loss: bool = False
    """Predict every patch normalised by its own mean and standard deviation."""
    dec_layers: int = 8
    """Number of decoder layers."""
    dec_dim: int = 512
    """Width of the decoder."""
    dec_heads: int = 16
    """Number of attention heads in the decoder."""
    dec_layerscale: bool = False
    """LayerScale in the decoder."""
    dec_posemb: Literal["learnable", "sincos2d"] = "sincos2d"
    """Positional embeddings of the decoder."""
    dec_dropout: float = 0.0
    """Dropout rate in the decoder."""
    dec_droppath: float = 0.0
    """Stochastic depth in the decoder."""


@dataclass(frozen=True)
class Optimization:
    """Optimizer and learning rate."""

    optimizer: Literal["adamw", "lamb", "sgd", "lars"] = "adamw"
    """AdamW, LAMB, SGD with momentum .9, or LARS with momentum .9."""
    learning_rate: float = 1.5e-4
    """Base learning rate per 256 images, for every optimizer: peak = base * batch size / 256."""
    sweep_rates: tuple[float, ...] = ()
    """Base learning rates that --cache-features tries. Empty: from a tenth to ten times --learning-rate."""
    weight_decay: float = 0.05
    """Weight decay; never on biases, norms, LayerScale and positions."""
    adam_b1: float = 0.9
    """Adam's beta1."""
    adam_b2: float = 0.95
    """Adam's beta2."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    lr_decay: float = 1.0
    """Layer-wise decay: head and final norm 1, block i decay^(depth - i), embedding decay^(depth + 1)."""
    freeze_encoder_steps: int = flag(0, least=0)
    """Steps in which pre-training leaves the encoder of --pretrained-ckpt as it is and trains the decoder alone."""
    finetune_blocks: str = "all"
    """Part of the encoder that --mode finetune trains: all, half or .5 (the last MLP), or a number of last blocks."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then validated and kept as best; 0: none."""
    clip_grad: float = 0.0
    """Largest global gradient norm; 0 switches clipping off."""
    grad_accum: int = flag(1, least=1, free=True)
    """Number of parts of a batch, computed one after the other; the result is that of the whole batch."""
    min_learning_rate: float = 0.0
    """Final learning rate; absolute, not per 256 images."""
    warmup_steps: int = flag(10_000, least=0)
    """Steps over which the learning rate rises from 0 to its peak."""
    training_steps: int = flag(200_000, least=1)
    """Steps in all. A run goes on to a larger number if --schedule-steps says how."""
    schedule_steps: int = flag(0, least=0)
    """Step to which the rate falls along a cosine, then staying at --min-learning-rate. 0: --training-steps."""


@dataclass(frozen=True)
class Seeds:
    """Random seeds: fixed numbers, the same on every host."""

    init_seed: int = 0
    """Weight initialisation."""
    mixup_seed: int = 0
    """Mixup and CutMix."""
    dropout_seed: int = 0
    """Dropout and stochastic depth."""
    shuffle_seed: int = 0
    """Order of the images and their augmentation."""
    noise_seed: int = 0
    """Masks."""


@dataclass(frozen=True)
class Machine:
    """Processes and devices, and what happens when a step goes wrong."""

    distributed: bool = flag(False, free=True)
    """This is one of several processes that a TPU pod, SLURM, Open MPI or Kubernetes started; fails if it is not."""
    coordinator: str = flag("", free=True, written=False)
    """HOST:PORT of process 0, if no launcher starts the processes; also give --num-processes and --process-id."""
    num_processes: int = flag(0, free=True, written=False)
    """Number of processes, for --coordinator."""
    process_id: int = flag(-1, free=True, written=False)
    """Number of this process, from 0, for --coordinator."""
    silent_seconds: int = flag(60, least=5, free=True)
    """Seconds without a sign of life, as of a paused host, after which a process counts as lost and the others end."""
    sharding: Literal["replicated", "fsdp"] = flag("replicated", free=True)
    """replicated: devices hold the whole state. fsdp: parts, gathered layer by layer (ZeRO-3) as with --scan-layers."""
    on_nan: Literal["stop", "skip"] = flag("stop", free=True)
    """If the loss or gradient is not finite. stop: write the batch, name the layer and end. skip: make no update."""


@dataclass(frozen=True)
class Transfer:
    """How pre-trained weights of another shape are used."""

    channel_rule: Literal["", "sum", "repeat"] = ""
    """If --pretrained-ckpt has other channels. sum: add filters up (grey). repeat: in turn, scaled. Empty: an error."""
    new_decoder: bool = False
    """Pre-train with the encoder of --pretrained-ckpt and a fresh decoder, whether or not the file has one."""
    prefix: str = ""
    """Take the tensors of --pretrained-ckpt alone whose names begin so, such as "backbone." or "model_ema."."""
    label_mapping: str = ""
    """JSON file: for every new class the index of the old one, -1 for none; re-uses the pre-trained head's rows."""


@dataclass(frozen=True)
class Config:
    """All flags of a training run, in groups; each group has the title that help shows."""

    run: Run = field(default_factory=Run, metadata={"title": "MaskedAutoencoder"})
    data: Data = field(default_factory=Data, metadata={"title": "Data"})
    augment: Augment = field(default_factory=Augment, metadata={"title": "Image Augmentations"})
    encoder: Encoder = field(default_factory=Encoder, metadata={"title": "ViT Architecture"})
    mae: Mae = field(default_factory=Mae, metadata={"title": "MAE Decoder Architecture"})
    optimization: Optimization = field(default_factory=Optimization, metadata={"title": "Optimization"})
    seeds: Seeds = field(default_factory=Seeds, metadata={"title": "Random Seeds"})
    machine: Machine = field(default_factory=Machine, metadata={"title": "Processes and Devices"})
    transfer: Transfer = field(default_factory=Transfer, metadata={"title": "Transfer"})

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels of `--image-size`."""
        return image_shape(self.encoder.image_size)


def image_shape(text: str) -> tuple[int, int]:
    """Read height and width in pixels from a value of `--image-size`: a number, or HxW."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and (width or height).isdecimal()):
        raise InputError(f"--image-size {text}: give a number of pixels, or HEIGHTxWIDTH such as 224x112")
    return int(height), int(width or height)


def flags(config: Config) -> dict[str, Any]:
    """List all flags of a configuration as one flat dictionary."""
    return {name: value for group in dataclasses.asdict(config).values() for name, value in group.items()}


def declarations() -> dict[str, Any]:
    """List what `flag` declares of each flag, by name; nothing for most."""
    groups: Any = (group.default_factory for group in dataclasses.fields(Config))
    return {flag.name: flag.metadata for group in groups for flag in dataclasses.fields(group)}


def with_flags(config: Config, **changes) -> Config:
    """Change flags by name, whatever group they stand in; raises InputError for a name that is no flag."""
    groups = {group.name: getattr(config, group.name) for group in dataclasses.fields(config)}
    for name, value in changes.items():
        group = next((g for g, values in groups.items() if hasattr(values, name)), None)
        if group is None:
            near = difflib.get_close_matches(name, flags(config), 1)
            raise InputError(f"there is no flag --{name}" + (f"; did you mean --{near[0]}?" if near else ""))
        groups[group] = dataclasses.replace(groups[group], **{name: value})
    return Config(**groups)
