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
from maejax.models.description import MAE, Classifier, Network, Stack, ViT, change_encoder
from maejax.weights.containers import State, hint
from maejax.weights.statement import Statement, known_facts, with_statement
from maejax.weights.timm_card import read_card, with_card
from maejax.weights.weights import (
    PIXELS_ASSUMED,
    PROBE_FOLDED,
    Weights,
    anchor,
    blank_arrays,
    check,
    depth,
    fold_head_norm,
    head_count,
    image_size_of,
    posemb_of,
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
ENCODER = {
    "cls_token": "encoder.cls_token",
    "pos_embed": "encoder.positions",
    "patch_embed.proj.weight": "encoder.embed.kernel",
    "patch_embed.proj.bias": "encoder.embed.bias",
    "norm.weight": "encoder.norm.scale",
    "norm.bias": "encoder.norm.bias",
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
    """Translate a tensor's name to (our name, layer), the layer None outside a stack; raises KeyError if unknown."""
    if match := re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)", theirs):
        blocks = "decoder.blocks." if match[1] else "encoder.transformer.blocks."
        return blocks + (BLOCK | TIMM_BLOCK)[match[3]], int(match[2])
    return (ENCODER | DECODER | HEAD | PROBE)[theirs], None


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
    single = {ours: theirs for theirs, ours in (ENCODER | DECODER | head).items()}
    block = {ours: theirs for theirs, ours in (BLOCK | TIMM_BLOCK).items()}
    state = {}
    for (ours, layer), array in unstack(arrays).items():
        part = ours.partition("blocks.")[2]
        if layer is not None and part in block:
            name = f"{'decoder_' if ours.startswith('decoder.') else ''}blocks.{layer}.{block[part]}"
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


def stack_of(state: Mapping[str, np.ndarray], prefix: str, pos_embed: np.ndarray, grid: tuple[int, int], heads: int):
    """Infer the fields of a `Stack` from the tensors of its blocks and their positions."""
    return {
        "dim": pos_embed.shape[-1],
        "layers": depth(state, prefix),
        "heads": heads,
        "posemb": posemb_of(pos_embed, grid),
        "layerscale": f"{prefix}0.ls1.gamma" in state,
        "qk_norm": f"{prefix}0.attn.q_norm.weight" in state,
    }


def config_of(
    state: Mapping[str, np.ndarray],
    what: str,
    *,
    heads: int | None = None,
    dec_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    norm_pix_loss: bool | None = None,
    pooling: str | None = None,
) -> tuple[Network, list[str]]:
    """Infer a model's description from a state dict, and sentences on facts that are not in it.

    Raises WeightsError if a tensor from which sizes are read is missing, or if a number must be given.
    """
    if "pos_embed" not in state:
        what += hint(state)
    pos_embed = anchor(state, "pos_embed", what)
    dim, channels, patch, wide = anchor(state, "patch_embed.proj.weight", what).shape
    if patch != wide:
        raise WeightsError(f"{what} has patches of {patch} x {wide} pixels; only square ones are known here")
    size, said_size = image_size_of(pos_embed, patch, image_size)
    grid = (size[0] // patch, size[1] // patch)
    if (of_head := state.get("blocks.0.attn.q_norm.weight")) is not None:
        heads = dim // len(of_head)
    heads, said_heads = head_count(dim, heads)
    notices = [said for said in (said_size, said_heads) if said]
    blocks = stack_of(state, "blocks.", pos_embed, grid, heads)
    encoder = ViT(image_size=size, patch_size=patch, channels=channels, **blocks)
    if "mask_token" in state or "decoder_embed.weight" in state:
        pos_embed = anchor(state, "decoder_pos_embed", what)
        decoder = Stack(**stack_of(state, "decoder_blocks.", pos_embed, grid, dec_heads or 16))
        if norm_pix_loss is None:
            notices.append(PIXELS_ASSUMED)
        if not dec_heads:
            notices.append("the decoder's number of heads is not in the file; 16 assumed (--dec-heads)")
        return MAE(encoder=encoder, decoder=decoder, norm_pix_loss=bool(norm_pix_loss)), notices
    if (head := state.get("head.weight", state.get("head.1.weight"))) is not None:
        kind: Any = "gap" if "fc_norm.weight" in state else pooling or "cls"
        if kind == "cls" and not pooling and "head.weight" in state:
            notices.append("the pooling before its head is not in the file; the cls token assumed (--pooling)")
        eps = PROBE_EPS if "head.0.running_mean" in state else 0.0
        return Classifier(encoder=encoder, labels=head.shape[0], pooling=kind, head_norm=eps), notices
    return encoder, notices


def read(state: State, path: Path, layout: str, stated: Statement | None, **known: Any) -> Weights:
    """Read the state dict of a file as `from_state`, by what is stated, or by timm's config.json beside the file."""
    card = None if stated or layout != "timm" else read_card(path.parent)
    weights = from_state(state.arrays, str(path), layout, stated, **known | (card.facts if card else {}))
    weights = replace(weights, notices=(*state.notices, *weights.notices))
    return with_card(weights, card) if card else weights


def from_state(
    state: Mapping[str, np.ndarray], what: str, layout: str, stated: Statement | None = None, **known: Any
) -> Weights:
    """Read a state dict of the authors' code ("fair") or of timm; `known` as in `config_of`, if not `stated`.

    Raises WeightsError, with all of them, if a tensor is missing, extra or misshapen.
    """
    config, notices = config_of(state, what, **known_facts(stated, **known))
    blank: dict[str, np.ndarray] = blank_arrays(config)
    if isinstance(config, Classifier) and config.head_norm:
        blank["head_norm.batches"] = np.zeros(())
    check(to_theirs(blank, config.encoder), state, what)
    weights = Weights(to_ours(state), config, layout, "the authors' PyTorch code", tuple(notices))
    if layout == "timm":
        weights = without_identity(replace(weights, writer="timm"))
    return with_statement(weights, stated, what)


def without_identity(weights: Weights) -> Weights:
    """Leave out the identities that `to_timm` may have written, with a notice each."""
    arrays, config, notices = dict(weights.arrays), weights.config, list(weights.notices)
    scales = [name for name in arrays if name.endswith((".scale1", ".scale2"))]
    if scales and all((arrays[name] == 1).all() for name in scales):
        arrays = {name: array for name, array in arrays.items() if name not in scales}
        config = change_encoder(config, layerscale=False)
        notices.append("its LayerScale is 1 everywhere and left out: it does nothing")
    plain = isinstance(config, Classifier) and config.pooling == "cls"
    if plain and not arrays["head.kernel"].any() and not arrays["head.bias"].any():
        arrays = {name: array for name, array in arrays.items() if not name.startswith("head.")}
        config = config.encoder
        notices.append("its head is all zeros and left out")
    return replace(weights, arrays=arrays, config=config, notices=tuple(notices))


def to_fair(weights: Weights) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return a state dict of the authors' code, and sentences that a reader must know.

    Raises WeightsError if that code cannot express the model.
    """
    if added := [name for name in weights.arrays if name.rpartition("blocks.")[2] in TIMM_BLOCK.values()]:
        what = "query-key normalisation" if "_norm" in added[0] else "LayerScale"
        raise WeightsError(f"the authors' code has no {what}: no place for {added[0]}; convert to timm or maejax")
    arrays, config = dict(weights.arrays), weights.config
    if isinstance(config, Classifier) and config.pooling == "avg":
        raise WeightsError("the authors' code has no avg pooling, a mean after the norm; convert to timm or maejax")
    if "head_norm.mean" in arrays:
        arrays.setdefault("head_norm.batches", np.array(0))
    return to_theirs(arrays, weights.config.encoder), gelu_notice(weights)


def to_timm(weights: Weights, *, identity: bool = False) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return a state dict of a timm `vit_*`, and sentences that a reader must know; timm has no decoder.

    With `identity` it fits `create_model(..., init_values=...)` with 1,000 classes. Values that the model lacks are
    then written as the identity: LayerScale 1 and a head of zeros. Raises WeightsError if timm has no place for a
    tensor.
    """
    notices, config, encoder = gelu_notice(weights), weights.config, weights.config.encoder
    arrays = {n: a for n, a in weights.arrays.items() if n.startswith(("encoder.", "norm.", "head"))}
    if isinstance(config, MAE):
        notices.append("timm has no decoder: only the encoder is written")
    if isinstance(config, Classifier) and config.head_norm:
        notices.append(PROBE_FOLDED)
        arrays, _ = fold_head_norm(arrays, config)
    state = to_theirs(arrays, encoder)
    if identity and not encoder.layerscale:
        for layer in range(encoder.layers):
            for i in (1, 2):
                state[f"blocks.{layer}.ls{i}.gamma"] = np.ones(encoder.dim, np.float32)
        notices.append("LayerScale is written as 1: the model has none")
    if identity and "head.weight" not in state:
        state["head.weight"] = np.zeros((1000, encoder.dim), np.float32)
        state["head.bias"] = np.zeros(1000, np.float32)
        notices.append("the head is written as zeros: the model has none")
    return state, notices


def timm_options(config: Network) -> dict[str, Any]:
    """List the arguments of `timm.create_model` for a model, after which it fits the state dict of `to_timm`."""
    encoder = config.encoder
    options: dict[str, Any] = {
        "num_classes": config.labels if isinstance(config, Classifier) else 0,
        "img_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "in_chans": encoder.channels,
        "embed_dim": encoder.dim,
        "depth": encoder.layers,
        "num_heads": encoder.heads,
    }
    if encoder.layerscale:
        options["init_values"] = 1e-4
    if encoder.qk_norm:
        options["qk_norm"] = True
    if isinstance(config, Classifier) and config.pooling == "gap":
        options["global_pool"] = "avg"
    if isinstance(config, Classifier) and config.pooling == "avg":
        options |= {"global_pool": "avg", "fc_norm": False}
    if encoder.gelu == "tanh":
        options["act_layer"] = "gelu_tanh"
    return options


def gelu_notice(weights: Weights) -> list[str]:
    """Warn of weights with another activation than these codes compute by default."""
    if weights.config.encoder.gelu == "erf":
        return []
    return ["these weights were trained with the tanh GELU: with timm, give create_model act_layer='gelu_tanh'"]
