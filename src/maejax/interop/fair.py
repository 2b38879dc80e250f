"""The layout of the authors' PyTorch code (also timm's for a plain ViT): names, transposes and what they mean here.

Names there are `blocks.3.attn.qkv.weight`; here the blocks are one stack whose arrays carry a leading depth axis.
"""

import re
from collections.abc import Mapping

import numpy as np

# theirs: ours
BLOCK = {
    "norm1.weight": "norm1.scale",
    "norm1.bias": "norm1.bias",
    "attn.qkv.weight": "attention.qkv.kernel",
    "attn.qkv.bias": "attention.qkv.bias",
    "attn.proj.weight": "attention.proj.kernel",
    "attn.proj.bias": "attention.proj.bias",
    "norm2.weight": "norm2.scale",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "fc1.kernel",
    "mlp.fc1.bias": "fc1.bias",
    "mlp.fc2.weight": "fc2.kernel",
    "mlp.fc2.bias": "fc2.bias",
}
ENCODER = {
    "cls_token": "cls_token",
    "pos_embed": "positions",
    "patch_embed.proj.weight": "embed.kernel",
    "patch_embed.proj.bias": "embed.bias",
    "norm.weight": "norm.scale",
    "norm.bias": "norm.bias",
}
DECODER = {
    "mask_token": "mask_token",
    "decoder_pos_embed": "dec_positions",
    "decoder_embed.weight": "dec_embed.kernel",
    "decoder_embed.bias": "dec_embed.bias",
    "decoder_norm.weight": "dec_norm.scale",
    "decoder_norm.bias": "dec_norm.bias",
    "decoder_pred.weight": "predict.kernel",
    "decoder_pred.bias": "predict.bias",
}
HEAD = {
    "fc_norm.weight": "norm.scale",
    "fc_norm.bias": "norm.bias",
    "head.weight": "head.kernel",
    "head.bias": "head.bias",
}


def our_name(theirs: str) -> tuple[str, int | None]:
    """Translate a tensor's name to (our path, layer), the layer None outside a stack.

    Raises:
        KeyError: the authors' code has no such tensor.

    """
    if match := re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)", theirs):
        stack = "decoder.blocks." if match[1] else "encoder.transformer.blocks."
        return stack + BLOCK[match[3]], int(match[2])
    if theirs in ENCODER:
        return "encoder." + ENCODER[theirs], None
    return (DECODER | HEAD)[theirs], None


def our_value(theirs: str, value: np.ndarray) -> np.ndarray:
    """Lay out one tensor as here: linear weights (in, out), the patch filter flattened."""
    if theirs == "patch_embed.proj.weight":  # [D, C, h, w] -> [(h, w, C), D]
        return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    return value.T if value.ndim == 2 else value


def to_ours(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Translate a whole state dict to {our path: array}, the layers stacked along a leading axis."""
    whole: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for theirs, value in weights.items():
        name, layer = our_name(theirs)
        if layer is None:
            whole[name] = our_value(theirs, value)
        else:
            stacks.setdefault(name, {})[layer] = our_value(theirs, value)
    return whole | {name: np.stack([layers[i] for i in range(len(layers))]) for name, layers in stacks.items()}
