"""Flags of the run: task, place of the results, what is saved and reported."""

from dataclasses import dataclass
from typing import Literal

from maejax.options.flag import flag


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
    watch: str = flag("", free=True)
    """Images to judge features on while pre-training, as --train-dataset-shards; 1,000 of them at most. Logged: their
    effective rank and, where they have labels, how many a vote of their 20 nearest neighbours gets right."""
    watch_interval: int = flag(0, least=0, free=True)
    """Steps between two looks at --watch, and one at the end. 0: chosen to cost a hundredth of the training."""
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
    an address, such as hf://OWNER/NAME. Strict; positions are interpolated to --image-size."""
    export_msgpack: bool = flag(False, free=True)
    """At the end, also write OUTPUT_DIR/NAME/NAME-last.msgpack and NAME-best.msgpack, in the original's layout."""
    ipaddr: str = flag("", free=True, written=False)
    """Accepted for the original's scripts and ignored: it published the machine's address."""
    hostname: str = flag("", free=True)
    """Name of the machine, kept in config.json."""
