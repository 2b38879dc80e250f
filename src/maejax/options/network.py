"""Flags of the network: encoder, masks, decoder, and how other weights are used."""

from dataclasses import dataclass
from typing import Literal

from maejax.options.flag import flag


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

    image_mask_ratio: float | tuple[float, float] = 0.75
    """Share of the patches that is hidden, drawn per image; exactly int(N * (1 - ratio)) stay visible. Of two numbers,
    each step draws one of four shares from the first to the second; validation hides their mean."""
    mask: Literal["random", "block", "grid", "noise"] = "random"
    """Which patches are hidden: any, large blocks, three of every 2 x 2, or small spread groups (band-passed noise)."""
    norm_pix_loss: bool = False
    """Predict every patch normalised by its own mean and standard deviation."""
    target: str = "pixels"
    """What is predicted of a patch: pixels; pca, its 96 largest principal components; ema, features of the running
    average of the encoder; or weights, as --pretrained-ckpt takes them: features of this frozen teacher."""
    target_decay: float = 0.999
    """Decay of the running average of --target ema."""
    loss_on: Literal["hidden", "all"] = "hidden"
    """Patches that the loss is on."""
    encoder_mask_tokens: bool = False
    """Let mask tokens enter the encoder instead of the decoder, at more than three times the cost."""
    decoder: Literal["self", "cross"] = "self"
    """self: visible and mask tokens attend to all, as in the paper. cross: mask tokens attend to visible tokens alone,
    which takes a fraction of the time (CrossMAE)."""
    predict_share: float = 1.0
    """Share of the hidden patches that --decoder cross predicts in training; try .33."""
    dec_inputs: Literal["last", "blocks", "all"] = "all"
    """What the layers of --decoder cross read of the encoder. last: its output. blocks: each layer a learned mix of the
    outputs of all blocks. all: the same, with the input of the first block."""
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
