"""State dicts of PyTorch, the authors' and timm's, written, and the timm models that they are for."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from maejax.errors import WeightsError
from maejax.models.description import MAE, Classifier, Network, ViT
from maejax.weights.torch_names import to_theirs
from maejax.weights.weights import CROSS, PROBE_FOLDED, Weights, beyond_the_paper, fold_head_norm

TIMM_NAMES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}  # by width
EVA_NAMES = {384: "small", 768: "base", 1024: "large"}


def to_fair(weights: Weights) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return a state dict of the authors' code, and sentences that a reader must know.

    Raises WeightsError if that code cannot express the model.
    """
    if added := [part for part in beyond_the_paper(weights.config) if part != CROSS]:
        raise WeightsError(f"the authors' code has no {added[0]}; convert to timm or maejax")
    arrays, config = dict(weights.arrays), weights.config
    if isinstance(config, Classifier) and config.pooling not in ("cls", "gap"):
        raise WeightsError(f"the authors' code has no {config.pooling} pooling; convert to timm or maejax")
    if "head_norm.mean" in arrays:
        arrays.setdefault("head_norm.batches", np.array(0))
    state = to_theirs(arrays, config.encoder)
    if isinstance(config, MAE) and config.decoder.mixes:  # CrossMAE has none then
        state = {name: array for name, array in state.items() if not name.startswith("norm.")}
    return state, [*gelu_notice(weights), *eps_notice(config.encoder)]


def to_timm(weights: Weights, *, identity: bool = False) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return a state dict of a timm `vit_*`, and sentences that a reader must know; timm has no decoder.

    With `identity` it fits `create_model(..., init_values=...)` with 1,000 classes. Values that the model lacks are
    then written as the identity: LayerScale 1 and a head of zeros. Raises WeightsError if timm has no place for a
    tensor.
    """
    notices, config, encoder = gelu_notice(weights), weights.config, weights.config.encoder
    arrays = {n: a for n, a in weights.arrays.items() if n.startswith(("encoder.", "norm.", "head"))}
    if isinstance(config, Classifier) and config.pooling == "cls+avg":
        raise WeightsError("timm has no head on cls and mean together; convert to hf or maejax")
    if encoder.registers and encoder.cls_position:  # timm has positions for all tokens before the patches, or for none
        pos_embed = arrays["encoder.positions"]
        arrays["encoder.cls_token"] = arrays["encoder.cls_token"] + pos_embed[:, :1]
        arrays["encoder.positions"] = pos_embed[:, 1:]
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
    return to_eva(state) if encoder.posemb == "rotary" else state, notices


def to_eva(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename a state dict of timm's `VisionTransformer` to one of its `Eva`; raises WeightsError for biases on keys."""
    new: dict[str, np.ndarray] = {}
    for name, array in state.items():
        block, _, part = name.partition(".mlp.fc1.")
        if name.endswith(".attn.qkv.bias"):
            q, k, v = np.split(array, 3)
            if k.any():
                raise WeightsError("timm's rotary encoder has no bias on keys; convert to hf or maejax")
            new |= {name.replace("qkv.bias", "q_bias"): q, name.replace("qkv.bias", "v_bias"): v}
        elif part and array.shape[0] == 2 * state[f"{block}.mlp.fc2.weight"].shape[1]:
            new |= dict(zip((f"{block}.mlp.fc1_{which}.{part}" for which in "gx"), np.split(array, 2), strict=True))
        else:
            new[re.sub(r"ls([12])\.gamma$", r"gamma_\1", name)] = array
    return new


class Code(str):
    """A piece of Python, which stands for itself in code that is written."""

    def __repr__(self) -> str:
        return str(self)


def timm_model(config: Network) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of `timm.create_model` after which a model fits the state dict of `to_timm`."""
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
    if encoder.hidden or encoder.gated:
        options["mlp_ratio"] = encoder.mlp_dim / encoder.dim
    if encoder.norm_eps != 1e-6:
        options["norm_layer"] = Code(f"functools.partial(torch.nn.LayerNorm, eps={encoder.norm_eps!r})")
    if not encoder.qkv_bias:
        options["qkv_bias"] = False
    if not encoder.cls_token:
        options |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    if encoder.posemb == "rotary":
        options |= {"num_reg_tokens": encoder.registers, "init_values": 1e-4 if encoder.layerscale else None}
        if encoder.gated:
            options |= {"swiglu_mlp": True, "swiglu_align_to": 1}  # gate and value are two tensors then
        options |= {"qkv_bias": encoder.qkv_bias, "qk_norm": encoder.qk_norm}
        if encoder.cls_token:
            options["global_pool"] = "token"
        return f"vit_{EVA_NAMES.get(encoder.dim, 'small')}_patch16_dinov3", options
    if encoder.layerscale:
        options["init_values"] = 1e-4
    if encoder.qk_norm:
        options["qk_norm"] = True
    if encoder.registers or (encoder.cls_token and not encoder.cls_position):
        options |= {"reg_tokens": encoder.registers, "no_embed_class": True}
    if encoder.pre_norm:
        options["pre_norm"] = True
    if encoder.gated:
        options |= {"mlp_layer": Code("timm.layers.SwiGLUPacked"), "mlp_ratio": encoder.fc1_dim / encoder.dim}
        options["act_layer"] = "silu"
    if encoder.attention_pool:
        options |= {"global_pool": "map"}
    if isinstance(config, Classifier) and config.pooling in ("gap", "avg"):
        options |= {"global_pool": "avg", "fc_norm": config.pooling == "gap"}
    if not encoder.gated and encoder.gelu != "erf":
        options["act_layer"] = {"tanh": "gelu_tanh", "quick": "quick_gelu"}[encoder.gelu]
    return f"vit_{TIMM_NAMES.get(encoder.dim, 'base')}_patch16_224", options


def gelu_notice(weights: Weights) -> list[str]:
    """Warn of weights with another activation than these codes compute by default."""
    encoder = weights.config.encoder
    if encoder.gelu == "erf" or encoder.gated:
        return []
    name, layer = {"tanh": ("tanh", "gelu_tanh"), "quick": ("quick", "quick_gelu")}[encoder.gelu]
    return [f"these weights were trained with the {name} GELU: with timm, give create_model act_layer='{layer}'"]


def eps_notice(encoder: ViT) -> list[str]:
    """Warn of layer norms with another eps than the authors' code has."""
    if encoder.norm_eps == 1e-6:
        return []
    return [f"these weights were computed with an eps of {encoder.norm_eps:g} in layer norms; there it is 1e-6"]
