"""The layout of the authors' PyTorch code, and timm's, which adds LayerScale: names, transposes, geometry.

Names there are `blocks.3.attn.qkv.weight`; here the blocks are one stack whose arrays carry a leading depth axis.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from maejax.errors import WeightsError
from maejax.weights.weights import (
    anchor,
    decoder_arguments,
    depth,
    encoder_arguments,
    head_count,
    image_size_of,
    stack,
    table_kind,
    unstack,
)

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
    "ls1.gamma": "scale1",
    "ls2.gamma": "scale2",
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
PROBE = {  # the head is a sequence there: BatchNorm without affine parameters, then the linear layer
    "head.0.running_mean": "head_norm.mean",
    "head.0.running_var": "head_norm.var",
    "head.0.num_batches_tracked": "head_norm.batches",
    "head.1.weight": "head.kernel",
    "head.1.bias": "head.bias",
}
PROBE_EPS = 1e-6


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
    return (DECODER | HEAD | PROBE)[theirs], None


def our_value(theirs: str, value: np.ndarray) -> np.ndarray:
    """Lay out one tensor as here: linear weights (in, out), the patch filter flattened."""
    if theirs == "patch_embed.proj.weight":  # [D, C, h, w] -> [(h, w, C), D]
        return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    return value.T if value.ndim == 2 else value


def to_ours(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Translate a whole state dict to {our path: array}, the layers stacked along a leading axis."""
    single = {}
    for theirs, value in weights.items():
        array = our_value(theirs, value)
        single[our_name(theirs)] = array.reshape(1, 1, -1) if theirs.endswith(".gamma") else array
    return stack(single)


def to_theirs(arrays: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Translate {our path: array} to a state dict of theirs; the inverse of `to_ours`.

    Raises:
        WeightsError: there is no place for a tensor: the affine parameters of a probe's BatchNorm.

    """
    patch, channels = arguments["patch_size"], arguments["channels"]
    probe = "head_norm.mean" in arrays
    whole = {ours: theirs for theirs, ours in (DECODER | (PROBE if probe else HEAD)).items()}
    whole |= {"encoder." + ours: theirs for theirs, ours in ENCODER.items()}
    block = {ours: theirs for theirs, ours in BLOCK.items()}
    state = {}
    for (ours, layer), array in unstack(arrays).items():
        if layer is not None:
            prefix = "decoder_blocks" if ours.startswith("decoder.") else "blocks"
            name = f"{prefix}.{layer}.{block[ours.partition('blocks.')[2]]}"
        elif ours in whole:
            name = whole[ours]
        else:
            raise WeightsError(f"this layout has no place for {ours}; convert to maejax or original")
        if name.endswith(".gamma"):
            array = array.reshape(-1)
        elif name == "patch_embed.proj.weight":
            array = array.reshape(patch, patch, channels, -1).transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
        state[name] = array
    return state


def geometry(
    state: Mapping[str, np.ndarray],
    what: str,
    *,
    heads: int | None = None,
    dec_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    norm_pix_loss: bool | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Infer a model's arguments from a state dict, and what could not be known.

    Raises:
        WeightsError: a tensor from which the geometry is read is missing, or a number must be given.

    """
    table = anchor(state, "pos_embed", what)
    dim, channels, patch, wide = anchor(state, "patch_embed.proj.weight", what).shape
    if patch != wide:
        raise WeightsError(f"{what} has patches of {patch} x {wide} pixels; only square ones are known here")
    size = image_size_of(table.shape[1] - 1, patch, image_size)
    grid = (size[0] // patch, size[1] // patch)
    arguments = encoder_arguments(
        image_size=size,
        patch_size=patch,
        channels=channels,
        dim=dim,
        layers=depth(state, r"blocks\.(\d+)\."),
        heads=head_count(dim, heads, "give --heads"),
        layerscale=any(".ls1." in name for name in state),
        posemb="learnable" if table_kind(table, grid) == "learned" else "sincos2d",
    )
    notices = []
    if "mask_token" in state or "decoder_embed.weight" in state:
        table = anchor(state, "decoder_pos_embed", what)
        arguments |= decoder_arguments(
            dim=table.shape[-1],
            layers=depth(state, r"decoder_blocks\.(\d+)\."),
            heads=dec_heads or 16,
            posemb="learnable" if table_kind(table, grid) == "learned" else "sincos2d",
            norm_pix_loss=bool(norm_pix_loss),
        )
        if norm_pix_loss is None:
            notices.append("whether its targets were normalised is not in the file; pixels assumed (--norm-pix-loss)")
        if not dec_heads:
            notices.append("the decoder's number of heads is not in the file; 16 assumed (--dec-heads)")
    elif "head.weight" in state or "head.1.weight" in state:
        head = state.get("head.weight", state.get("head.1.weight"))
        assert head is not None
        arguments |= {"labels": head.shape[0], "pooling": "gap" if "fc_norm.weight" in state else "cls"}
        if "head.0.running_mean" in state:
            arguments |= {"head_norm": PROBE_EPS}
    return arguments, notices
