"""State dicts of PyTorch, the authors' and timm's: names, transposes, sizes, read and written.

Names there are `blocks.3.attn.qkv.weight`; here the blocks are one stack whose arrays have a leading depth axis.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maejax.errors import WeightsError
from maejax.models.description import MAE, Classifier, Decoder, Network, ViT
from maejax.weights.containers import State, hint
from maejax.weights.statement import Statement, known_facts, with_statement
from maejax.weights.timm_card import read_card, with_card, without_identity
from maejax.weights.weights import (
    DINOV3_HEADS,
    SIGLIP_HEADS,
    WIDER_HEADS,
    Facts,
    Weights,
    anchor,
    blank_arrays,
    check,
    depth,
    head_count,
    image_size_of,
    is_square,
    normalisation_assumed,
    posemb_of,
    rotary_size,
    stack,
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
}
TIMM_BLOCK = {  # what timm adds to the authors' blocks
    "ls1.gamma": "scale1",
    "ls2.gamma": "scale2",
    "attn.q_norm.weight": "attention.q_norm.scale",
    "attn.q_norm.bias": "attention.q_norm.bias",
    "attn.k_norm.weight": "attention.k_norm.scale",
    "attn.k_norm.bias": "attention.k_norm.bias",
}
CROSS_BLOCK = {  # of CrossMAE's decoder
    f"cross_attn.{part}.{kind}": f"attention.{part}.{'bias' if kind == 'bias' else 'kernel'}"
    for part in ("q", "kv", "proj")
    for kind in ("weight", "bias")
}
EVA_BLOCK = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}  # in timm's Eva, which DINOv3's encoders are
ENCODER = {
    "cls_token": "encoder.cls_token",
    "pos_embed": "encoder.positions",
    "patch_embed.proj.weight": "encoder.embed.kernel",
    "patch_embed.proj.bias": "encoder.embed.bias",
    "norm.weight": "encoder.norm.scale",
    "norm.bias": "encoder.norm.bias",
}
TIMM_ENCODER = {  # what timm adds to the authors' encoder
    "reg_token": "encoder.registers",
    "norm_pre.weight": "encoder.pre_norm.scale",
    "norm_pre.bias": "encoder.pre_norm.bias",
    "attn_pool.latent": "encoder.attention_pool.query_token",
} | {
    f"attn_pool.{theirs}.{kind}": f"encoder.attention_pool.{ours}.{'bias' if kind == 'bias' else weight}"
    for theirs, ours, weight in [
        ("q", "q", "kernel"),
        ("kv", "kv", "kernel"),
        ("proj", "proj", "kernel"),
        ("norm", "norm", "scale"),
        ("mlp.fc1", "fc1", "kernel"),
        ("mlp.fc2", "fc2", "kernel"),
    ]
    for kind in ("weight", "bias")
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
    "wfm.linear.weight": "dec_mix",
}
UNTRAINED_NORM = {"weight": 1, "bias": 0}
SOURCE_NORM = {"weight": "decoder.blocks.source_norm.scale", "bias": "decoder.blocks.source_norm.bias"}
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
    """Translate a tensor's name to (our name, layer), the layer None outside a stack; raises KeyError if unknown."""
    if match := re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)", theirs):
        blocks = "decoder.blocks." if match[1] else "encoder.transformer.blocks."
        return blocks + (BLOCK | TIMM_BLOCK | CROSS_BLOCK)[match[3]], int(match[2])
    if match := re.fullmatch(r"dec_norms\.(\d+)\.(.+)", theirs):
        return SOURCE_NORM[match[2]], int(match[1])
    return (ENCODER | TIMM_ENCODER | DECODER | HEAD | PROBE)[theirs], None


def our_value(theirs: str, value: np.ndarray) -> np.ndarray:
    """Lay out one tensor as here: linear weights (in, out), the patch filter flattened."""
    if theirs == "patch_embed.proj.weight":  # [D, C, h, w] -> [(h, w, C), D]
        return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    if theirs.endswith(".gamma"):
        return value.reshape(1, 1, -1)
    return value.T if value.ndim == 2 else value


def to_ours(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Translate a state dict to {our name: array}, the layers stacked along a leading axis."""
    return stack({our_name(theirs): our_value(theirs, value) for theirs, value in state.items()})


def to_theirs(arrays: Mapping[str, np.ndarray], encoder: ViT) -> dict[str, np.ndarray]:
    """Translate {our name: array} to a state dict of theirs; the inverse of `to_ours`.

    Raises WeightsError if a tensor has no place there, such as the affine parameters of a probe's BatchNorm.
    """
    head = PROBE if "head_norm.mean" in arrays else HEAD
    single = {ours: theirs for theirs, ours in (ENCODER | TIMM_ENCODER | DECODER | head).items()}
    block = {ours: theirs for theirs, ours in (BLOCK | TIMM_BLOCK).items()}
    crossed = block | {ours: theirs for theirs, ours in CROSS_BLOCK.items()}
    norms = {ours: theirs for theirs, ours in SOURCE_NORM.items()}
    crosses = "decoder.blocks.attention.kv.kernel" in arrays
    state = {}
    for (ours, layer), array in unstack(arrays).items():
        part, of_decoder = ours.partition("blocks.")[2], ours.startswith("decoder.")
        names = crossed if of_decoder and crosses else block
        if ours in norms:
            name = f"dec_norms.{layer}.{norms[ours]}"
        elif layer is not None and part in names:
            name = f"{'decoder_' if of_decoder else ''}blocks.{layer}.{names[part]}"
        elif layer is None and ours in single:
            name = single[ours]
        else:
            raise WeightsError(f"this layout has no place for {ours}; convert to maejax or original")
        if name.endswith(".gamma"):
            array = array.reshape(-1)
        elif name == "patch_embed.proj.weight":
            shape = (encoder.patch_size, encoder.patch_size, encoder.channels, -1)
            array = array.reshape(shape).transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
        state[name] = array
    return state


def canonical(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Bring the tensors of timm's other classes to the names of its `VisionTransformer`, and return sentences on it.

    Those of Eva are renamed. DeiT's distillation token becomes a register: its position is added to it. So are the
    positions of registers that have some. CrossMAE has no final norm where its decoder mixes: an identity is added.
    """
    new, notices = dict(state), []
    if "wfm.linear.weight" in state and "cls_token" in state:
        new |= {f"norm.{n}": np.full(state["cls_token"].shape[-1], v, np.float32) for n, v in UNTRAINED_NORM.items()}
    for name in state:
        block, _, part = name.rpartition("." if name.endswith(tuple(EVA_BLOCK)) else ".attn.q_")
        if part in EVA_BLOCK:
            new[f"{block}.{EVA_BLOCK[part]}"] = new.pop(name)
        elif name.endswith(".attn.q_bias"):
            q, v = new.pop(name), new.pop(f"{block}.attn.v_bias")
            new[f"{block}.attn.qkv.bias"] = np.concatenate([q, new.pop(f"{block}.attn.k_bias", np.zeros_like(q)), v])
        elif (found := re.fullmatch(r"(.+\.mlp\.fc1)_g(\.weight|\.bias)", name)) and f"{found[1]}_x{found[2]}" in new:
            new[found[1] + found[2]] = np.concatenate([new.pop(name), new.pop(f"{found[1]}_x{found[2]}")])
    if "dist_token" in new:
        new["reg_token"] = new.pop("dist_token")
        if heads := [name for name in new if name.startswith(("head.", "head_dist."))]:
            new = {name: array for name, array in new.items() if name not in heads}
            notices.append("its two heads, of the cls and of the distillation token, are left out")
    if "reg_token" in new and "pos_embed" in new and "cls_token" in new:
        count, pos_embed = new["reg_token"].shape[1], new["pos_embed"]
        if is_square(pos_embed.shape[1] - 1 - count) and not is_square(pos_embed.shape[1]):
            new["reg_token"] = new["reg_token"] + pos_embed[:, 1 : 1 + count]
            new["pos_embed"] = np.concatenate([pos_embed[:, :1], pos_embed[:, 1 + count :]], axis=1)
    return new, notices


def stack_of(state: Mapping[str, np.ndarray], prefix: str, dim: int) -> dict[str, Any]:
    """Infer the fields of a `Stack` from the tensors of its blocks; raises WeightsError if the MLP has another form."""
    layers = depth(state, prefix)
    fc1, fc2 = (state.get(f"{prefix}0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    hidden = 4 * dim if fc2 is None else fc2.shape[1]
    return {
        "dim": dim,
        "layers": layers,
        "layerscale": f"{prefix}0.ls1.gamma" in state,
        "qk_norm": f"{prefix}0.attn.q_norm.weight" in state,
        "qkv_bias": f"{prefix}0.attn.qkv.bias" in state,
        "hidden": 0 if hidden == 4 * dim else hidden,
        "gated": fc1 is not None and fc1.shape[0] == 2 * hidden,
    }


def config_of(state: Mapping[str, np.ndarray], what: str, facts: Facts) -> tuple[Network, list[str]]:
    """Infer a model's description from a state dict, and sentences on facts that are not in it.

    Raises WeightsError if a tensor from which sizes are read is missing, or if a number must be given.
    """
    if "patch_embed.proj.weight" not in state:
        what += hint(state)
    dim, channels, patch, wide = anchor(state, "patch_embed.proj.weight", what).shape
    if patch != wide:
        raise WeightsError(f"{what} has patches of {patch} x {wide} pixels; only square ones are known here")
    cls, registers = "cls_token" in state, state["reg_token"].shape[1] if "reg_token" in state else 0
    tokens: dict[str, Any] = {"cls_token": cls, "registers": registers, "pre_norm": "norm_pre.weight" in state}
    if "pos_embed" in state:
        first = (0, 1) if cls and registers else (0,)
        if cls and not registers:  # of published models without a position for cls, all have LayerScale
            first = (1, 0) if "blocks.0.ls1.gamma" in state else (1,)
        size, row, said_size = image_size_of(state["pos_embed"], patch, facts.image_size, first)
        posemb = posemb_of(state["pos_embed"], (size[0] // patch, size[1] // patch), cls=bool(row))
        tokens |= {"cls_position": bool(row), "posemb": posemb}
    else:
        size, said_size = rotary_size(facts.image_size, patch)
        tokens["posemb"] = "rotary"
    heads = facts.heads
    if (of_head := state.get("blocks.0.attn.q_norm.weight")) is not None:
        heads = dim // len(of_head)
    wider = SIGLIP_HEADS if not cls else WIDER_HEADS if "pos_embed" in state else DINOV3_HEADS
    heads, said_heads = head_count(dim, heads, wider)
    computed, said_computed = computed_as(state, facts)
    notices = [said for said in (said_size, said_heads, *said_computed) if said]
    blocks: dict[str, Any] = stack_of(state, "blocks.", dim) | tokens | computed
    blocks |= {"attention_pool": "attn_pool.latent" in state, **facts.normalisation}
    encoder = ViT(image_size=size, patch_size=patch, channels=channels, heads=heads, **blocks)
    if "mask_token" in state or "decoder_embed.weight" in state:
        pos_embed = anchor(state, "decoder_pos_embed", what)
        posemb = posemb_of(pos_embed, encoder.grid, cls=cls)
        blocks = stack_of(state, "decoder_blocks.", pos_embed.shape[-1]) | {"posemb": posemb} | computed
        blocks |= cross_of(state, facts, encoder.layers)
        decoder = Decoder(heads=facts.dec_heads or 16, **blocks)
        notices += facts.assumed_of_decoder(crosses=decoder.attention == "cross")
        masking = {"norm_pix_loss": bool(facts.norm_pix_loss), "mask_ratio": facts.mask_ratio or 0.75}
        return MAE(encoder=encoder, decoder=decoder, **masking), notices
    if (head := state.get("head.weight", state.get("head.1.weight"))) is not None:
        kind: Any = "gap" if "fc_norm.weight" in state else facts.pooling or pooling_of(encoder, head.shape[1])
        if kind == "cls" and not facts.pooling and "head.weight" in state:
            notices.append("the pooling before its head is not in the file; the cls token assumed (--pooling)")
        eps = PROBE_EPS if "head.0.running_mean" in state else 0.0
        return Classifier(encoder=encoder, labels=head.shape[0], pooling=kind, head_norm=eps), notices
    return encoder, notices


def cross_of(state: Mapping[str, np.ndarray], facts: Facts, layers: int) -> dict[str, Any]:
    """Infer the fields of a `Decoder` that only one of cross-attention has; empty for another."""
    if not any(".cross_attn." in name for name in state):
        return {}
    inputs = "last"
    if "wfm.linear.weight" in state:
        inputs = "all" if state["wfm.linear.weight"].shape[1] > layers else "blocks"
    bias = "decoder_blocks.0.cross_attn.q.bias" in state
    return {"attention": "cross", "inputs": inputs, "qkv_bias": bias, "predict_share": facts.predict_share or 1.0}


def pooling_of(encoder: ViT, features: int) -> str:
    """Infer the pooling before a head that reads so many features."""
    if encoder.attention_pool:
        return "map"
    if not encoder.cls_token:
        return "avg"
    return "cls+avg" if features == 2 * encoder.dim else "cls"


def computed_as(state: Mapping[str, np.ndarray], facts: Facts) -> tuple[dict[str, Any], list[str]]:
    """Return activation and eps, as the facts say or as the published models of this kind have them.

    Also returns sentences on what is assumed.
    """
    clip, siglip, notices = "norm_pre.weight" in state, "attn_pool.latent" in state, []
    if facts.gelu is None and (clip or siglip):
        others = "quick, as OpenAI's CLIP" if clip else "tanh, as SigLIP outside of timm"
        notices.append(
            f"its activation is not in the file; the exact GELU assumed (some have {others}: maejax convert --gelu)"
        )
    eps = facts.norm_eps or (1e-5 if clip or "pos_embed" not in state else 1e-6)
    return {"gelu": facts.gelu or "erf", "norm_eps": eps}, notices


def read(state: State, path: Path, layout: str, stated: Statement | None, facts: Facts) -> Weights:
    """Read the state dict of a file as `from_state`, by what is stated, or by timm's config.json beside the file."""
    card = None if stated or layout != "timm" else read_card(path.parent)
    facts = replace(facts, **card.facts) if card else facts
    weights = from_state(state.arrays, str(path), layout, stated, facts)
    weights = replace(weights, notices=(*state.notices, *weights.notices))
    if card:
        weights = with_card(weights, card)
    if stated or layout != "timm":
        return weights
    known = facts.normalisation | (card.normalisation if card else {})
    return replace(weights, notices=(*weights.notices, *normalisation_assumed(weights.config, known)))


def from_state(
    state: Mapping[str, np.ndarray], what: str, layout: str, stated: Statement | None, facts: Facts
) -> Weights:
    """Read a state dict of the authors' code ("fair") or of timm, by the `facts` if not by what is `stated`.

    Raises WeightsError, with all of them, if a tensor is missing, extra or misshapen.
    """
    state, left_out = canonical(state)
    config, notices = config_of(state, what, known_facts(stated, facts))
    blank: dict[str, np.ndarray] = blank_arrays(config)
    if isinstance(config, Classifier) and config.head_norm:
        blank["head_norm.batches"] = np.zeros(())
    check(to_theirs(blank, config.encoder), state, what)
    weights = Weights(to_ours(state), config, layout, "the authors' PyTorch code", (*left_out, *notices))
    if layout == "timm":
        weights = without_identity(replace(weights, writer="timm"))
    return with_statement(weights, stated, what)
