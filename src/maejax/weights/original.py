"""The layout of the original MaskedAutoencoder-Jax: nested parameters in one .msgpack file.

Its model differs from the authors': a tanh GELU, a sine-cosine table of its own, cls token without position.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization

from maejax.errors import WeightsError
from maejax.weights.weights import (
    Weights,
    anchor,
    check_shapes,
    decoder_arguments,
    depth,
    encoder_arguments,
    grid_of,
    original_table,
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
WHOLE = {
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
PROBE_EPS = 1e-5
UNSAID = {"encoder.positions", "dec_positions", "head_norm.batches"}  # told otherwise there, or not at all


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Name the tensors of nested parameters `model/layer_0/attn/wq/kernel`."""
    flat = {}
    for key, value in tree.items():
        name = prefix + key
        flat |= flatten(value, name + "/") if isinstance(value, Mapping) else {name: np.asarray(value)}
    return flat


def nest(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Undo `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def geometry(
    state: Mapping[str, np.ndarray], what: str, image_size: tuple[int, int] | None, norm_pix_loss: bool | None
) -> tuple[dict[str, Any], list[str]]:
    """Infer a model's arguments from the tensors' shapes, and what could not be known.

    Raises:
        WeightsError: a tensor from which the geometry is read is missing, or the image size must be given.

    """
    patch, _, channels, dim = anchor(state, "model/embed/wte/kernel", what).shape
    heads = anchor(state, "model/layer_0/attn/wq/kernel", what).shape[1]
    learned, notices = state.get("model/embed/wpe"), []
    if learned is not None:
        size = [learned.shape[0] * patch, learned.shape[1] * patch]
    elif image_size:
        size = list(image_size)
    else:
        size = [224, 224] if 224 % patch == 0 else [14 * patch, 14 * patch]
        notices.append(f"the image size is not in the file; {size[0]} assumed (--image-size)")
    arguments = encoder_arguments(
        image_size=size,
        patch_size=patch,
        channels=channels,
        dim=dim,
        layers=depth(state, r"model/layer_(\d+)/"),
        heads=heads,
        posemb="sincos2d" if learned is None else "learnable",
        gelu="tanh",
        layerscale="model/layer_0/scale1" in state,
    )
    if "decoder_proj/kernel" in state or "image_mask_embedding" in state:
        wide, dec_heads = anchor(state, "decoder_model/dec_layer_0/attn/wq/kernel", what).shape[:2]
        arguments |= decoder_arguments(
            dim=wide,
            layers=depth(state, r"decoder_model/dec_layer_(\d+)/"),
            heads=dec_heads,
            posemb="sincos2d",
            norm_pix_loss=bool(norm_pix_loss),
            layerscale="decoder_model/dec_layer_0/scale1" in state,
        )
        if norm_pix_loss is None:
            notices.append("whether its targets were normalised is not in the file; pixels assumed (--norm-pix-loss)")
    elif "model/head/Dense_0/kernel" in state:
        arguments |= {"labels": state["model/head/Dense_0/kernel"].shape[1], "pooling": "cls"}
        if "model/head/BatchNorm_0/scale" in state:
            arguments |= {"head_norm": PROBE_EPS}
            if "batch_stats/BatchNorm_0/mean" not in state:
                notices.append("the original did not save its BatchNorm statistics: the encoder is whole, the head not")
    return arguments, notices


def to_ours(state: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Translate tensors by their names to {our path: array}; the fixed tables, which no file holds, are computed."""
    single: dict[tuple[str, int | None], np.ndarray] = {}
    for ours, theirs in WHOLE.items():
        if theirs in state and not ours.startswith("norm."):
            single[ours, None] = state[theirs]
    stacks = [("encoder.transformer.blocks.", "model/layer_", arguments["layers"])]
    if "dec_dim" in arguments:
        stacks.append(("decoder.blocks.", "decoder_model/dec_layer_", arguments["dec_layers"]))
    for prefix, theirs, layers in stacks:
        for i in range(layers):
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
    arrays = stack(single)
    filter = state["model/embed/wte/kernel"]
    arrays["encoder.embed.kernel"] = filter.reshape(-1, filter.shape[-1])
    dim, grid = arguments["dim"], grid_of(arguments)
    if "model/embed/wpe" in state:
        table = state["model/embed/wpe"].reshape(-1, dim)
        arrays["encoder.positions"] = np.concatenate([np.zeros((1, dim), table.dtype), table])[None]
    else:
        arrays["encoder.positions"] = original_table(grid, dim)[None]
    if "dec_dim" in arguments:
        arrays["dec_positions"] = original_table(grid, arguments["dec_dim"])[None]
    return arrays


def to_theirs(arrays: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Translate {our path: array} to tensors by their names; the inverse of `to_ours`.

    A table that is not the original's own becomes a learned one, and its cls row goes into the cls token.

    Raises:
        WeightsError: the original's model cannot express this one.

    """
    patch, channels, grid = arguments["patch_size"], arguments["channels"], grid_of(arguments)
    state: dict[str, np.ndarray] = {}
    for (ours, layer), array in unstack(arrays).items():
        if layer is None:
            if ours in WHOLE:
                state[WHOLE[ours]] = array
            elif ours == "encoder.embed.kernel":
                state["model/embed/wte/kernel"] = array.reshape(patch, patch, channels, -1)
            elif ours not in UNSAID:
                raise WeightsError(f"the original has no place for {ours}; convert to maejax or fair")
            continue
        encoder = ours.startswith("encoder.")
        part = ours.partition("blocks.")[2]
        prefix = f"model/layer_{layer}/" if encoder else f"decoder_model/dec_layer_{layer}/"
        heads = arguments["heads" if encoder else "dec_heads"]
        if part in BLOCK:
            state[prefix + BLOCK[part]] = array.reshape(-1) if part.startswith("scale") else array
        elif part == "attention.proj.kernel":
            state[prefix + "attn/wo/kernel"] = array.reshape(heads, -1, array.shape[-1])
        else:
            kind = part.rpartition(".")[2]
            for which, piece in zip("qkv", np.split(array, 3, axis=-1), strict=True):
                shape = (heads, -1) if kind == "bias" else (piece.shape[0], heads, piece.shape[1] // heads)
                state[f"{prefix}attn/w{which}/{kind}"] = piece.reshape(shape)
    if "head_norm" in arguments:  # affine there: the identity, if it is not here
        state.setdefault(WHOLE["head_norm.scale"], np.ones(arguments["dim"], np.float32))
        state.setdefault(WHOLE["head_norm.bias"], np.zeros(arguments["dim"], np.float32))
    table = arrays["encoder.positions"]
    # Only its own fixed table may be left out: the model computes that one again.
    if arguments["posemb"] == "learnable" or not np.array_equal(table[0], original_table(grid, table.shape[-1])):
        state["model/embed/wpe"] = table[0, 1:].reshape(*grid, -1)
        if table[0, 0].any():
            state["model/embed/cls_token"] = state["model/embed/cls_token"] + table[:, :1]
    return state


def losses(weights: Weights) -> list[str]:
    """List in what the original will compute something else from these weights than this package."""
    found = []
    if weights.arguments.get("gelu", "erf") != "tanh":
        found.append("the original computes a tanh GELU, these weights were trained with the exact one (4.7e-4 apart)")
    if weights.kind == "mae":
        table = weights.arrays["dec_positions"]
        if not np.array_equal(table[0], original_table(grid_of(weights.arguments), table.shape[-1])):
            found.append("the original computes another table of decoder positions and has no place for this one")
    if weights.arguments.get("pooling") == "gap":
        found.append("the original averages after the norm and without a cls token: other logits")
    if weights.arguments.get("head_norm") not in (None, PROBE_EPS):
        found.append("the original's BatchNorm has eps 1e-5 and affine parameters")
    return found


def read(path: Path, *, image_size: tuple[int, int] | None = None, norm_pix_loss: bool | None = None) -> Weights:
    """Read a .msgpack file.

    Raises:
        WeightsError: it is not one, or not whole; every wrong tensor is listed.

    """
    try:
        tree: Any = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises a dozen kinds of its own
        raise WeightsError(f"{path} is no msgpack file of weights ({type(error).__name__})") from None
    if not isinstance(tree, Mapping):
        raise WeightsError(f"{path} holds no named weights")
    state = flatten(tree)
    arguments, notices = geometry(state, str(path), image_size, norm_pix_loss)
    check_shapes(state, wanted_shapes(state, arguments), str(path))
    return Weights(to_ours(state, arguments), arguments, "original", "MaskedAutoencoder-Jax", tuple(notices))


def wanted_shapes(state: Mapping[str, np.ndarray], arguments: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Give the shapes of all tensors that a file of such a model holds."""
    from maejax.weights.run_directory import model_shapes

    wanted = {
        name: a.shape
        for name, a in to_theirs(
            {n: np.broadcast_to(np.float32(0), s) for n, s in model_shapes(arguments).items()}, arguments
        ).items()
    }
    if "model/embed/wpe" not in state and arguments["posemb"] != "learnable":
        wanted.pop("model/embed/wpe")
    if "batch_stats/BatchNorm_0/mean" not in state:
        for name in ("mean", "var"):
            wanted.pop(f"batch_stats/BatchNorm_0/{name}", None)
    return wanted


def write(weights: Weights, path: Path) -> list[str]:
    """Write a .msgpack file as the original's; return what a reader must know."""
    path.write_bytes(serialization.to_bytes(nest(to_theirs(weights.arrays, weights.arguments))))
    return losses(weights)
