"""The vision models of transformers: the names that each kind has for timm's tensors, and for facts in config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from maejax.errors import WeightsError
from maejax.models.description import MAE, Classifier, Network, ViT
from maejax.weights.weights import CROSS

Names = Mapping[str, tuple[str, ...]]


def both(names: Mapping[str, str | tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Complete names of layers by `.weight` and `.bias`; several of theirs are one tensor of timm, cut in parts."""
    parts = {name: (theirs,) if isinstance(theirs, str) else theirs for name, theirs in names.items()}
    return {
        f"{name}.{kind}": tuple(f"{part}.{kind}" for part in theirs)
        for name, theirs in parts.items()
        for kind in ("weight", "bias")
    }


@dataclass(frozen=True)
class Family:
    """Names of one kind of model."""

    kind: str
    """Its `model_type`."""
    base: str
    """What stands before the names of the encoder in a model with a head."""
    layer: str
    """What stands before the number of a layer."""
    block: Names
    """timm's names in a block: theirs."""
    single: Names
    """timm's names outside of blocks: theirs."""
    classes: Mapping[str, str]
    """Kind of a model here: class there."""
    pooling: str = "cls"
    """Pooling before the head of its classifier, as `Classifier.pooling`."""
    extra: str = ""
    """Further arguments of `from_pretrained` for an encoder."""


_SCALES = {"ls1.gamma": ("layer_scale1.lambda1",), "ls2.gamma": ("layer_scale2.lambda1",)}
_VIT_BLOCK = both(
    {
        "norm1": "layernorm_before",
        "attn.qkv": tuple(f"attention.attention.{which}" for which in ("query", "key", "value")),
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
)
_VIT_SINGLE = {
    "cls_token": ("embeddings.cls_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    **both({"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}),
}
_DINOV2_BLOCK = _SCALES | both(
    {
        "norm1": "norm1",
        "attn.qkv": tuple(f"attention.attention.{which}" for which in ("query", "key", "value")),
        "attn.proj": "attention.output.dense",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
)
_DINOV3_BLOCK = _SCALES | both(
    {
        "norm1": "norm1",
        "attn.qkv": tuple(f"attention.{which}_proj" for which in "qkv"),
        "attn.proj": "attention.o_proj",
        "norm2": "norm2",
        "mlp.fc1": "mlp.up_proj",
        "mlp.fc2": "mlp.down_proj",
    }
)
_CLIP_BLOCK = both(
    {
        "norm1": "layer_norm1",
        "attn.qkv": tuple(f"self_attn.{which}_proj" for which in "qkv"),
        "attn.proj": "self_attn.out_proj",
        "norm2": "layer_norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
)
_CLIP_SINGLE = {
    "cls_token": ("embeddings.class_embedding",),
    "pos_embed": ("embeddings.position_embedding.weight",),
    **both({"patch_embed.proj": "embeddings.patch_embedding", "norm_pre": "pre_layrnorm", "norm": "post_layernorm"}),
}
_POOL = {  # timm's q and kv are one projection there, `attn_pool.qkv` for now
    "attn_pool.latent": ("head.probe",),
    "attn_pool.qkv.weight": ("head.attention.in_proj_weight",),
    "attn_pool.qkv.bias": ("head.attention.in_proj_bias",),
    **both(
        {
            "attn_pool.proj": "head.attention.out_proj",
            "attn_pool.norm": "head.layernorm",
            "attn_pool.mlp.fc1": "head.mlp.fc1",
            "attn_pool.mlp.fc2": "head.mlp.fc2",
        }
    ),
}
_REGISTERS = {"reg_token": ("embeddings.register_tokens",)}
_DINOV3_SINGLE = {
    "cls_token": ("embeddings.cls_token",),
    **_REGISTERS,
    **both({"patch_embed.proj": "embeddings.patch_embeddings", "norm": "norm"}),
}


def _classes(name: str, classifier: str = "") -> dict[str, str]:
    return {"encoder": f"{name}Model"} | ({"classifier": classifier} if classifier else {})


_UNPOOLED = ", add_pooling_layer=False"
_VIT = Family(
    "vit",
    "vit.",
    "encoder.layer.",
    _VIT_BLOCK,
    _VIT_SINGLE,
    _classes("ViT", "ViTForImageClassification"),
    extra=_UNPOOLED,
)
_DINOV2 = Family(
    "dinov2",
    "dinov2.",
    "encoder.layer.",
    _DINOV2_BLOCK,
    _VIT_SINGLE,
    _classes("Dinov2", "Dinov2ForImageClassification"),
    pooling="cls+avg",
)
_CLIP = Family(
    "clip_vision_model", "vision_model.", "encoder.layers.", _CLIP_BLOCK, _CLIP_SINGLE, _classes("CLIPVision")
)
FAMILIES = {
    family.kind: family
    for family in (
        _VIT,
        replace(_VIT, kind="vit_mae", classes={"mae": "ViTMAEForPreTraining", "encoder": "ViTMAEModel"}),
        replace(
            _VIT,
            kind="deit",
            base="deit.",
            single=_VIT_SINGLE | {"reg_token": ("embeddings.distillation_token",)},
            classes=_classes("DeiT", "DeiTForImageClassification"),
        ),
        replace(
            _VIT, kind="ijepa", base="ijepa.", pooling="avg", classes=_classes("IJepa", "IJepaForImageClassification")
        ),
        _DINOV2,
        replace(
            _DINOV2,
            kind="dinov2_with_registers",
            base="dinov2_with_registers.",
            single=_VIT_SINGLE | _REGISTERS,
            classes=_classes("Dinov2WithRegisters", "Dinov2WithRegistersForImageClassification"),
        ),
        Family("dinov3_vit", "", "layer.", _DINOV3_BLOCK, _DINOV3_SINGLE, _classes("DINOv3ViT")),
        _CLIP,
        replace(_CLIP, kind="siglip_vision_model", single=_CLIP_SINGLE | _POOL, classes=_classes("SiglipVision")),
    )
}
_GATES = {
    "dinov2": both({"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}),
    "dinov3_vit": both({"mlp.fc1": ("mlp.gate_proj", "mlp.up_proj")}),
}


def gated(family: Family) -> Family:
    """Return the names of a family where its MLP is SwiGLU; the same family where it never is."""
    gates = _GATES.get(family.kind.removesuffix("_with_registers"), {})
    return replace(family, block={**family.block, **gates})


def family_of(model: Network) -> Family:
    """Return the kind of model that can hold a network; raises WeightsError with the reason if none can."""
    encoder = model.encoder
    if isinstance(model, MAE):
        kind = "vit_mae"
    elif encoder.posemb == "rotary":
        kind = "dinov3_vit"
    elif encoder.pre_norm:
        kind = "clip_vision_model"
    elif encoder.attention_pool or (not encoder.cls_token and encoder.gelu == "tanh"):
        kind = "siglip_vision_model"
    elif not encoder.cls_token:
        kind = "ijepa"
    elif encoder.layerscale:
        kind = "dinov2_with_registers" if encoder.registers else "dinov2"
    else:
        kind = "deit" if encoder.registers == 1 else "vit"
    family = gated(FAMILIES[kind]) if encoder.gated else FAMILIES[kind]
    if isinstance(model, MAE) and len(set(encoder.image_size)) > 1:
        raise WeightsError("transformers' vit_mae is for square images alone; convert to timm or maejax")
    if wrong := _misfit(model, family):
        raise WeightsError(f"transformers' {kind} has no {wrong}; convert to timm or maejax")
    return family


def _misfit(model: Network, family: Family) -> str:
    """Name a part of a network that a family cannot hold; empty if it holds all."""
    encoder = model.encoder
    if isinstance(model, MAE) and model.decoder.attention == "cross":
        return CROSS
    usual = ("pixels", "decoder", None)
    if isinstance(model, MAE) and (model.target, model.mask_tokens, model.decoder.custom) != usual:
        return "such decoder"
    if isinstance(model, Classifier) and "classifier" not in family.classes:
        return "head of classes"
    if isinstance(model, Classifier) and model.pooling != family.pooling:
        return f"{'mean' if model.pooling == 'gap' else model.pooling} pooling before its head"
    if encoder.qk_norm:
        return "query-key normalisation"
    if encoder.layerscale and "ls1.gamma" not in family.block:
        return "LayerScale"
    if not encoder.layerscale and family.kind == "dinov3_vit":
        return "block without LayerScale"
    if encoder.gated and family.kind.removesuffix("_with_registers") not in _GATES:
        return "SwiGLU"
    width = (int(4 * encoder.dim * 2 / 3) + 7) // 8 * 8  # config.json of DINOv2 cannot say another
    if encoder.gated and family.kind.startswith("dinov2") and encoder.mlp_dim != width:
        return f"SwiGLU of width {encoder.mlp_dim}, only of {width}"
    if not encoder.qkv_bias and family.base == "vision_model.":
        return "attention without biases"
    if encoder.registers and "reg_token" not in family.single:
        return "registers"
    return ""


def facts_of_config(encoder: ViT, family: Family) -> dict[str, Any]:
    """List what config.json says of an encoder, but for its activation and image size."""
    facts: dict[str, Any] = {
        "patch_size": encoder.patch_size,
        "num_channels": encoder.channels,
        "hidden_size": encoder.dim,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "layer_norm_eps": encoder.norm_eps,
    }
    if family.kind.startswith("dinov2"):
        ratio = encoder.mlp_dim / encoder.dim
        facts |= {"mlp_ratio": 4 if encoder.gated else int(ratio) if ratio == int(ratio) else ratio}
        facts |= {"use_swiglu_ffn": encoder.gated, "qkv_bias": encoder.qkv_bias, "use_mask_token": False}
    else:
        facts["intermediate_size"] = encoder.mlp_dim
    if family.kind == "dinov3_vit":
        facts |= {f"{which}_bias": encoder.qkv_bias for which in ("query", "value")}
        facts |= {"key_bias": False, "use_gated_mlp": encoder.gated, "rope_theta": 100.0}
        facts |= {"hidden_act": "silu"} if encoder.gated else {}
    elif family.base != "vision_model.":
        facts["qkv_bias"] = encoder.qkv_bias
    if "register_tokens" in "".join(family.single.get("reg_token", ())):
        facts["num_register_tokens"] = encoder.registers
    if family.kind == "siglip_vision_model":
        facts["vision_use_head"] = encoder.attention_pool
    return facts
