"""Flags of training: optimizer and learning rate, seeds, processes and devices."""

from dataclasses import dataclass
from typing import Literal

from maejax.options.flag import flag
from maejax.options.job import Processes


@dataclass(frozen=True)
class Optimization:
    """Optimizer and learning rate."""

    optimizer: Literal["adamw", "muon", "lamb", "sgd", "lars"] = "adamw"
    """AdamW; Muon for matrices within (AdamW for all else, the same rates are good); LAMB; SGD or LARS, momentum .9."""
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
    """Steps in all. A run goes on to another number; for a longer cosine, --schedule-steps has to say how."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """Rate after the warm-up. cosine: falls to the end. constant: stays. wsd: stays, then falls in --cooldown-steps."""
    schedule_steps: int = flag(0, least=0)
    """Step to which the rate falls along a cosine, then staying at --min-learning-rate. 0: --training-steps."""
    cooldown_steps: int = flag(0, least=0)
    """Last steps, in which --schedule wsd falls to --min-learning-rate as 1 - sqrt; a fifth of all does well."""


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
class Machine(Processes):
    """Processes and devices, and what happens when a step goes wrong."""

    sharding: Literal["replicated", "fsdp"] = flag("replicated", free=True)
    """replicated: devices hold the whole state. fsdp: parts, gathered layer by layer (ZeRO-3) as with --scan-layers."""
    on_nan: Literal["stop", "skip"] = flag("stop", free=True)
    """If the loss or gradient is not finite. stop: write the batch, name the layer and end. skip: make no update."""
