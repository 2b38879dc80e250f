"""The layout of the original MaskedAutoencoder-Jax: nested parameters in one .msgpack file.

Its model differs from the authors': a tanh GELU, other sine-cosine positions, a cls token without position.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization, traverse_util

from maejax.errors import WeightsError
from maejax.models.description import MAE, Classifier, Decoder, Network, ViT
from maejax.storage.atomic import write_whole
from maejax.weights.statement import Statement, known_facts, with_statement
from maejax.weights.weights import (
    PIXELS_ASSUMED,
    Facts,
    Weights,
    anchor,
    beyond_the_paper,
    blank_arrays,
    check,
    depth,
    original_positions,
    stack,
    unstack,
)

BLOCK = {
    "norm1.scale": "norm1/scale",
    "norm1.bias": "norm1/bias",
    "norm2.scale": "norm2/scale",
    "norm2.bias": "norm2/bias",
    "fc1.kernel": "ff/w1/kernel",
    "fc1.bias": "ff/w1/bias",
    "fc2.kernel": "ff/w2/kernel",
    "fc2.bias": "ff/w2/bias",
    "attention.proj.bias": "attn/wo/bias",
    "scale1": "scale1",
    "scale2": "scale2",
}
SINGLE = {
    "encoder.cls_token": "model/embed/cls_token",
    "encoder.embed.bias": "model/embed/wte/bias",
    "encoder.norm.scale": "model/norm/scale",
    "encoder.norm.bias": "model/norm/bias",
    "norm.scale": "model/norm/scale",
    "norm.bias": "model/norm/bias",
    "head.kernel": "model/head/Dense_0/kernel",
    "head.bias": "model/head/Dense_0/bias",
    "head_norm.scale": "model/head/BatchNorm_0/scale",
    "head_norm.bias": "model/head/BatchNorm_0/bias",
    "head_norm.mean": "batch_stats/BatchNorm_0/mean",
    "head_norm.var": "batch_stats/BatchNorm_0/var",
    "mask_token": "image_mask_embedding",
    "dec_embed.kernel": "decoder_proj/kernel",
    "dec_embed.bias": "decoder_proj/bias",
    "dec_norm.scale": "decoder_model/dec_norm/scale",
    "dec_norm.bias": "decoder_model/dec_norm/bias",
    "predict.kernel": "decoder_image_output/kernel",
    "predict.bias": "decoder_image_output/bias",
}
STACKS = {"encoder.transformer.blocks.": "model/layer_", "decoder.blocks.": "decoder_model/dec_layer_"}
FILTER, POSITIONS = "model/embed/wte/kernel", "model/embed/wpe"
PROBE_EPS = 1e-5
UNWRITTEN = {"encoder.positions", "dec_positions", "head_norm.batches"}  # written in another form there, or not at all


def flatten(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """Name the tensors of nested parameters `model/layer_0/attn/wq/kernel`."""
    return {name: np.asarray(value) for name, value in traverse_util.flatten_dict(tree, sep="/").items()}


def config_of(
    state: Mapping[str, np.ndarray], what: str, image_size: tuple[int, int] | None, norm_pix_loss: bool | None
) -> tuple[Network, list[str]]:
    """Infer a model's description from the tensors' shapes, and sentences on facts that are not in the file.

    Raises WeightsError if a tensor from which sizes are read is missing.
    """
    patch, _, channels, dim = anchor(state, FILTER, what).shape
    learned, notices = state.get(POSITIONS), []
    if learned is not None:
        image_size = (learned.shape[0] * patch, learned.shape[1] * patch)
    elif not image_size:
        side = 224 if 224 % patch == 0 else 14 * patch
        image_size = (side, side)
        notices.append(f"the image size is not in the file; {side} assumed (--image-size)")

    def blocks(prefix, dim):
        heads = anchor(state, f"{prefix}0/attn/wq/kernel", what).shape[1]
        scaled = f"{prefix}0/scale1" in state
        return {"dim": dim, "layers": depth(state, prefix), "heads": heads, "layerscale": scaled, "gelu": "tanh"}

    encoder = ViT(
        image_size=image_size,
        patch_size=patch,
        channels=channels,
        posemb="sincos2d" if learned is None else "learnable",
        **blocks("model/layer_", dim),
    )
    if "decoder_proj/kernel" in state or "image_mask_embedding" in state:
        width = anchor(state, "decoder_model/dec_layer_0/attn/wq/kernel", what).shape[0]
        if norm_pix_loss is None:
            notices.append(PIXELS_ASSUMED)
        decoder = Decoder(**blocks("decoder_model/dec_layer_", width))
        return MAE(encoder=encoder, decoder=decoder, norm_pix_loss=bool(norm_pix_loss)), notices
    if "model/head/Dense_0/kernel" not in state:
        return encoder, notices
    probe = "model/head/BatchNorm_0/scale" in state
    if probe and "batch_stats/BatchNorm_0/mean" not in state:
        notices.append("the original did not save its BatchNorm statistics: the encoder is whole, the head not")
    labels = state["model/head/Dense_0/kernel"].shape[1]
    return Classifier(encoder=encoder, labels=labels, head_norm=PROBE_EPS if probe else 0.0), notices


def to_ours(state: Mapping[str, np.ndarray], config: Network) -> dict[str, np.ndarray]:
    """Translate tensors by their names to {our name: array}; fixed positions, which no file holds, are computed."""
    single: dict[tuple[str, int | None], np.ndarray] = {}
    for ours, theirs in SINGLE.items():
        if theirs in state and not ours.startswith("norm."):
            single[ours, None] = state[theirs]
    for prefix, theirs in STACKS.items():
        for i in range(depth(state, theirs)):
            layer = {n.removeprefix(f"{theirs}{i}/"): a for n, a in state.items() if n.startswith(f"{theirs}{i}/")}
            for part, name in BLOCK.items():
                if name in layer:
                    scale = part.startswith("scale")
                    single[prefix + part, i] = layer[name].reshape(1, 1, -1) if scale else layer[name]
            dim = layer["attn/wo/kernel"].shape[-1]
            for part, shape in (("kernel", (dim, dim)), ("bias", (dim,))):
                packed = [layer[f"attn/w{which}/{part}"].reshape(shape) for which in "qkv"]
                single[f"{prefix}attention.qkv.{part}", i] = np.concatenate(packed, axis=-1)
            single[f"{prefix}attention.proj.kernel", i] = layer["attn/wo/kernel"].reshape(dim, dim)
    arrays, encoder = stack(single), config.encoder
    arrays["encoder.embed.kernel"] = state[FILTER].reshape(-1, encoder.dim)
    arrays["encoder.positions"] = original_positions(encoder.grid, encoder.dim)[None]
    if POSITIONS in state:
        learned = state[POSITIONS].reshape(-1, encoder.dim)
        arrays["encoder.positions"] = np.concatenate([np.zeros((1, encoder.dim), learned.dtype), learned])[None]
    if isinstance(config, MAE):
        arrays["dec_positions"] = original_positions(encoder.grid, config.decoder.dim)[None]
    return arrays


def to_theirs(arrays: Mapping[str, np.ndarray], config: Network) -> dict[str, np.ndarray]:
    """Translate {our name: array} to tensors by their names; the inverse of `to_ours`.

    Positions that are not the original's own become learned ones, and their cls row goes into the cls token. Raises
    WeightsError if the original's model cannot express this one.
    """
    encoder, state = config.encoder, {}
    for (ours, layer), array in unstack(arrays).items():
        part = ours.partition("blocks.")[2]
        if layer is None:
            prefix, heads = "", 0
        elif isinstance(config, MAE) and ours.startswith("decoder."):
            prefix, heads = f"decoder_model/dec_layer_{layer}/", config.decoder.heads
        else:
            prefix, heads = f"model/layer_{layer}/", encoder.heads
        if layer is None and ours in SINGLE:
            state[SINGLE[ours]] = array
        elif ours == "encoder.embed.kernel":
            state[FILTER] = array.reshape(encoder.patch_size, encoder.patch_size, encoder.channels, -1)
        elif part in BLOCK:
            state[prefix + BLOCK[part]] = array.reshape(-1) if part.startswith("scale") else array
        elif part == "attention.proj.kernel":
            state[prefix + "attn/wo/kernel"] = array.reshape(heads, -1, array.shape[-1])
        elif part.startswith("attention.qkv."):
            kind = part.rpartition(".")[2]
            for which, piece in zip("qkv", np.split(array, 3, axis=-1), strict=True):
                shape = (heads, -1) if kind == "bias" else (piece.shape[0], heads, piece.shape[1] // heads)
                state[f"{prefix}attn/w{which}/{kind}"] = piece.reshape(shape)
        elif ours not in UNWRITTEN:
            raise WeightsError(f"the original has no place for {ours}; convert to maejax or timm")
    if isinstance(config, Classifier) and config.head_norm:  # affine there: the identity, if it is not here
        state.setdefault(SINGLE["head_norm.scale"], np.ones(encoder.dim, np.float32))
        state.setdefault(SINGLE["head_norm.bias"], np.zeros(encoder.dim, np.float32))
    pos_embed = arrays["encoder.positions"]
    # Only its own fixed positions may be left out: the model computes those again.
    own = np.array_equal(pos_embed[0], original_positions(encoder.grid, encoder.dim))
    if encoder.posemb == "learnable" or not own:
        state[POSITIONS] = pos_embed[0, 1:].reshape(*encoder.grid, -1)
        if pos_embed[0, 0].any():
            token = "model/embed/cls_token"
            state[token] = state[token] + pos_embed[:, :1]
    return state


def losses(weights: Weights) -> list[str]:
    """List in what the original will compute something else from these weights than this package."""
    found, config = [], weights.config
    if config.encoder.gelu != "tanh":
        found.append("the original computes a tanh GELU, these weights were trained with the exact one (4.7e-4 apart)")
    if isinstance(config, MAE):
        own = original_positions(config.encoder.grid, config.decoder.dim)
        if not np.array_equal(weights.arrays["dec_positions"][0], own):
            found.append("the original computes another table of decoder positions and has no place for this one")
    if isinstance(config, Classifier) and config.pooling != "cls":
        found.append("the original averages after the norm and without a cls token: other logits")
    if isinstance(config, Classifier) and config.head_norm not in (0.0, PROBE_EPS):
        found.append("the original's BatchNorm has eps 1e-5 and affine parameters")
    return found


def read(path: Path, stated: Statement | None, facts: Facts) -> Weights:
    """Read a .msgpack file; raises WeightsError, with every wrong tensor, if it is not one or incomplete."""
    try:
        tree: Any = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises a dozen kinds of its own
        raise WeightsError(f"{path} is no msgpack file of weights ({type(error).__name__})") from None
    if not isinstance(tree, dict):
        raise WeightsError(f"{path} holds no named weights")
    state = flatten(tree)
    facts = known_facts(stated, facts)
    config, notices = config_of(state, str(path), facts.image_size, facts.norm_pix_loss)
    wanted = to_theirs(blank_arrays(config), config)
    optional = ["batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var"]
    if config.encoder.posemb == "sincos2d":
        optional.append(POSITIONS)
    check({n: a for n, a in wanted.items() if n in state or n not in optional}, state, str(path))
    weights = Weights(to_ours(state, config), config, "original", "MaskedAutoencoder-Jax", tuple(notices))
    return with_statement(weights, stated, str(path))


def check_parts(config: Network) -> None:
    """Check that the original's model has all parts of this one; raises WeightsError that names one if not."""
    if added := [part for part in beyond_the_paper(config) if part != "LayerScale"]:
        raise WeightsError(f"the original has no {added[0]}; convert to timm or maejax")


def write(weights: Weights, path: Path) -> list[str]:
    """Write a .msgpack file as the original does; return sentences that a reader must know.

    Raises WeightsError if its model has no place for a part of this one.
    """
    check_parts(weights.config)
    state = to_theirs(weights.arrays, weights.config)
    write_whole(path, serialization.to_bytes(traverse_util.unflatten_dict(state, sep="/")))
    return losses(weights)
