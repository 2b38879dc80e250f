"""Hugging Face directories of vision transformers: config.json and model.safetensors, of transformers 4 and 5.

Names are brought to those of transformers 4, which are the hub's and which both versions load; these files are written.
On the way they have timm's names.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maejax.errors import WeightsError
from maejax.models.description import MAE, Classifier, Network, change_encoder
from maejax.storage.atomic import write_whole
from maejax.weights import containers, native, torch_names
from maejax.weights.families import FAMILIES, Family, facts_of_config, family_of, gated
from maejax.weights.weights import (
    PROBE_FOLDED,
    Facts,
    Weights,
    blank_arrays,
    check,
    fold_head_norm,
    normalisation_assumed,
)

MAE_SINGLE = {"mask_token": "decoder.mask_token", "decoder_pos_embed": "decoder.decoder_pos_embed"}
HEAD = {"head.weight": "classifier.weight", "head.bias": "classifier.bias"}
NEW_NAMES = {  # of transformers 5, in memory: those of 4
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
GELU = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "quick_gelu": "quick"}
WRITTEN_GELU = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
# What a config.json may leave out since it is the default of its kind.
MISSING = {
    "clip_vision_model": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32},
    "siglip_vision_model": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    "dinov2": {"layer_norm_eps": 1e-6},
    "dinov2_with_registers": {"layer_norm_eps": 1e-6},
    "dinov3_vit": {"layer_norm_eps": 1e-5},
}
LEFT_OUT = {  # parts of a file that these models do not have: what a notice says
    r"pooler\.": "its pooler (a layer after the cls token)",
    r"(embeddings\.mask_token|embeddings\.position_ids)$": "",
    r"(text_model\.|text_projection|logit_|visual_projection)": "its text tower or its projection to texts",
    r"(cls|distillation)_classifier\.": "its two heads, of the cls and of the distillation token,",
}


def is_directory(path: Path) -> bool:
    """Recognise a directory of Hugging Face by its config.json."""
    config = path / "config.json"
    return config.exists() and "model_type" in json.loads(config.read_text())


def knows(names: Iterable[str]) -> bool:
    """Recognise Hugging Face's names of tensors."""
    return any("embeddings.patch_embedding" in name for name in names)


def old_name(name: str, family: Family = FAMILIES["vit_mae"]) -> str:
    """Bring a name of transformers 5, or of a model without a head, to that of transformers 4 under a task's model."""
    base = family.base
    if not name.startswith((base, "decoder.", "classifier.")):
        name = base + name
    name = re.sub(rf"^{re.escape(base)}(layers|model\.layer)\.", base + family.layer, name)
    name = re.sub(r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers.", name)
    known = {part.rpartition(".")[0] for parts in family.block.values() for part in parts}
    for new, old in NEW_NAMES.items():
        name = name.replace(new, old) if old.strip(".") in known else name
    return name


def to_hf(state: Mapping[str, np.ndarray], family: Family = FAMILIES["vit_mae"]) -> dict[str, np.ndarray]:
    """Rename a state dict in timm's names; raises WeightsError if a family of models has no place for a tensor."""
    state, theirs = dict(state), {}
    if "attn_pool.q.weight" in state:
        for kind in ("weight", "bias"):
            pair = [state.pop(f"attn_pool.{part}.{kind}") for part in ("q", "kv")]
            state[f"attn_pool.qkv.{kind}"] = np.concatenate(pair)
    for name, array in state.items():
        match = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)", name)
        if match and match[3] in family.block:
            prefix = f"decoder.decoder_layers.{match[2]}." if match[1] else f"{family.base}{family.layer}{match[2]}."
            parts = family.block[match[3]]
            theirs |= dict(zip((prefix + part for part in parts), np.split(array, len(parts)), strict=True))
        elif name in family.single:
            theirs[family.base + family.single[name][0]] = array
        elif name in MAE_SINGLE | HEAD:
            theirs[(MAE_SINGLE | HEAD)[name]] = array
        elif name.startswith("decoder_") and not match:
            theirs["decoder." + name] = array
        else:
            raise WeightsError(f"transformers' {family.kind} has no place for {name}; convert to timm or maejax")
    for name in theirs:
        if name.endswith("class_embedding"):
            theirs[name] = theirs[name].reshape(-1)
        elif name.endswith("position_embedding.weight"):
            theirs[name] = theirs[name][0]
    return theirs


def from_hf(state: Mapping[str, np.ndarray], family: Family = FAMILIES["vit_mae"]) -> dict[str, np.ndarray]:
    """Rename a state dict in a family's names to timm's; the inverse of `to_hf`. Names that are not known stay."""
    block = {part: (name, i) for name, parts in family.block.items() for i, part in enumerate(parts)}
    single = {family.base + theirs[0]: name for name, theirs in family.single.items()}
    single |= {theirs: name for name, theirs in (MAE_SINGLE | HEAD).items()}
    ours: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for name, array in state.items():
        layers = rf"({re.escape(family.base + family.layer)}|decoder\.decoder_layers\.)(\d+)\.(.+)"
        match = re.fullmatch(layers, name)
        if match and match[3] in block:
            (part, i), prefix = block[match[3]], "decoder_" if match[1].startswith("decoder.") else ""
            parts.setdefault(f"{prefix}blocks.{match[2]}.{part}", {})[i] = array
        elif name in single and name.endswith("embedding.weight") and array.ndim == 2:
            ours[single[name]] = array[None]
        elif name in single:
            ours[single[name]] = array.reshape(1, 1, -1) if name.endswith("class_embedding") else array
        else:
            ours[name.removeprefix("decoder.")] = array
    for name, found in parts.items():
        count = len(family.block[name.partition("blocks.")[2].partition(".")[2]])
        blank = np.zeros_like(next(iter(found.values())))  # of keys without a bias
        ours[name] = np.concatenate([found.get(i, blank) for i in range(count)])
    for kind in ("weight", "bias"):
        if (packed := ours.pop(f"attn_pool.qkv.{kind}", None)) is not None:
            q, k, v = np.split(packed, 3)
            ours |= {f"attn_pool.q.{kind}": q, f"attn_pool.kv.{kind}": np.concatenate([k, v])}
    if family.kind == "deit" and "reg_token" in ours:  # its position goes into the token
        pos_embed = ours["pos_embed"]
        ours["reg_token"] = ours["reg_token"] + pos_embed[:, 1:2]
        ours["pos_embed"] = np.concatenate([pos_embed[:, :1], pos_embed[:, 2:]], axis=1)
    return ours


def facts_in(meta: Mapping[str, Any], what: str) -> Facts:
    """Read from config.json what no tensor tells; raises WeightsError if it cannot be expressed here."""
    known = {"silu": "erf"} if meta.get("use_gated_mlp") else GELU  # of SwiGLU
    gelu = known.get(meta.get("hidden_act", "gelu"))
    if gelu is None:
        raise WeightsError(f"{what} has the activation {meta.get('hidden_act')}; known are {', '.join(known)}")
    if (theta := meta.get("rope_theta", 100.0)) != 100.0:
        raise WeightsError(f"{what} has rotary positions of base {theta}; only DINOv3's 100 is known here")
    size = meta.get("image_size", 224)
    return Facts(
        heads=meta.get("num_attention_heads", 12),
        dec_heads=meta.get("decoder_num_attention_heads", 16),
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        norm_pix_loss=meta.get("norm_pix_loss", False),
        gelu=gelu,
        norm_eps=meta.get("layer_norm_eps", 1e-12),
    )


def read(path: Path, prefix: str, given: Facts) -> Weights:
    """Read a directory with config.json and weights in one file or in parts; `prefix` as in `containers.read`.

    Without preprocessor_config.json images are normalised as `given`. Raises WeightsError, with every wrong tensor, if
    it is of another model or incomplete.
    """
    meta, found = json.loads((path / "config.json").read_text()), containers.read(containers.file_in(path), prefix)
    named, config, notices = from_state(found.arrays, meta, str(path))
    known = given.normalisation | normalisation_of(path, config.encoder.channels)
    config = change_encoder(config, **known)
    writer = f"Hugging Face transformers {meta.get('transformers_version', '')}".rstrip()
    said = (*found.notices, *notices, *normalisation_assumed(config, known))
    return Weights(torch_names.to_ours(named), config, "hf", writer, said, classes_of(meta, config))


def from_state(
    state: Mapping[str, np.ndarray], meta: Mapping[str, Any], what: str
) -> tuple[dict[str, np.ndarray], Network, list[str]]:
    """Bring a state dict to timm's names by what config.json says; returns it, its description, and sentences on it.

    Raises WeightsError, with every wrong tensor, if it is of another model or incomplete.
    """
    if "vision_config" in meta:  # of images and texts
        meta = {"model_type": f"{meta['model_type']}_vision_model", **meta["vision_config"]}
    if (family := FAMILIES.get(meta["model_type"])) is None:
        kinds = ", ".join(FAMILIES)
        raise WeightsError(f"{what} is a {meta['model_type']} model; known here are {kinds}, clip and siglip")
    if any(("weights_in" in name or "gate_proj" in name) for name in state):
        family = gated(family)
    state, notices = dict(state), []
    for pattern, said in LEFT_OUT.items():
        if dropped := [name for name in state if re.match(rf"({re.escape(family.base)})?{pattern}", name)]:
            state = {name: array for name, array in state.items() if name not in dropped}
            notices += [f"{said} is not part of these models and is left out"] * bool(said)
    if not state.get("embeddings.register_tokens", np.ones(1)).size:
        del state["embeddings.register_tokens"]
    state = {old_name(name, family): array for name, array in state.items()}
    named, left_out = torch_names.canonical(from_hf(state, family))
    facts = facts_in(MISSING.get(family.kind, {}) | dict(meta), what)
    config, _ = torch_names.config_of(named, what, replace(facts, pooling=family.pooling))
    if isinstance(config, MAE):
        config = replace(config, mask_ratio=meta.get("mask_ratio", 0.75))
    check(torch_names.to_theirs(blank_arrays(config), config.encoder), named, what)
    return named, config, [*notices, *left_out]


def classes_of(meta: Mapping[str, Any], config: Network) -> tuple[str, ...]:
    """Read the names of the classes from config.json; empty where they are the library's own LABEL_0, LABEL_1."""
    names = {int(number): str(name) for number, name in meta.get("id2label", {}).items()}
    if not isinstance(config, Classifier) or sorted(names) != list(range(config.labels)):
        return ()
    classes = tuple(names[i] for i in range(config.labels))
    return () if all(name == f"LABEL_{i}" for i, name in enumerate(classes)) else classes


def normalisation_of(path: Path, channels: int) -> dict[str, tuple[float, ...]]:
    """Read mean and deviation of each channel from preprocessor_config.json; empty without that file.

    Raises WeightsError if they are not numbers for each channel.
    """
    file = path / "preprocessor_config.json"
    if not file.is_file():
        return {}
    try:
        meta = json.loads(file.read_text())
        if not meta.get("do_normalize", True):
            return {"mean": (0.0,) * channels, "std": (1.0,) * channels}
        found = {name: tuple(map(float, meta[f"image_{name}"])) for name in ("mean", "std") if f"image_{name}" in meta}
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{file} cannot be read: {error}") from None
    if any(len(values) != channels for values in found.values()):
        raise WeightsError(f"{file} has not one mean and deviation for each of {channels} channels")
    return found


def state_of(weights: Weights) -> tuple[dict[str, np.ndarray], Family]:
    """Return a state dict of transformers 4 and its family; raises WeightsError if no family can express this one."""
    arrays, config, encoder = dict(weights.arrays), weights.config, weights.config.encoder
    if isinstance(config, Classifier):
        arrays, config = fold_head_norm(arrays, config)
    if isinstance(config, MAE) and config.decoder.gelu != config.encoder.gelu:
        raise WeightsError("Hugging Face's ViT has one activation for encoder and decoder; convert to maejax")
    family = family_of(config)
    state = torch_names.to_theirs(arrays, encoder)
    blank = np.zeros((1, 1, encoder.dim), np.float32)
    if "pos_embed" in state and encoder.cls_token:
        first = [] if encoder.cls_position else [blank]
        rows = np.concatenate([*first, state["pos_embed"]], axis=1)
        tokens = [blank] * (family.kind == "deit")
        state["pos_embed"] = np.concatenate([rows[:, :1], *tokens, rows[:, 1:]], axis=1)
    state = to_hf(state, family)
    if family.kind == "dinov2_with_registers":
        state[f"{family.base}embeddings.mask_token"] = blank[0]  # of its own pre-training
    if family.kind == "dinov3_vit":
        state["embeddings.mask_token"] = blank
        state.setdefault("embeddings.register_tokens", blank[:, :0])
        for name in [name for name in state if name.endswith("attention.k_proj.bias")]:
            if state.pop(name).any():
                raise WeightsError("transformers' dinov3_vit is written without a bias on keys; convert to maejax")
    return state, family


def preprocessor(weights: Weights) -> dict[str, Any]:
    """Describe the transform of validation: the short side resized to image size / `crop_ratio`, the centre cropped.

    No processor of transformers does this for images that are not square: there it only resizes.
    """
    encoder = weights.config.encoder
    height, width = encoder.image_size
    size: dict[str, Any] = {"size": {"height": height, "width": width}, "image_processor_type": "ViTImageProcessor"}
    if height == width:
        size = {
            "size": {"shortest_edge": int(height / weights.crop_ratio)},
            "image_processor_type": "CLIPImageProcessor",
        }
        size |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": encoder.channels == 3}
    return {**size, **steps, "resample": 3, "image_mean": list(encoder.mean), "image_std": list(encoder.std)}


def write(weights: Weights, path: Path) -> list[str]:
    """Write a directory that `from_pretrained` of the family's class loads.

    Returns sentences that a reader must know. Raises WeightsError if those models have no place for a tensor.
    """
    (state, family), config, encoder = state_of(weights), weights.config, weights.config.encoder
    notices = [PROBE_FOLDED] if isinstance(config, Classifier) and config.head_norm else []
    size = encoder.image_size
    if size[0] != size[1]:
        notices.append(
            "preprocessor_config.json squeezes images to HxW: transformers knows no other way; crop them before"
        )
    meta: dict[str, Any] = {
        "model_type": family.kind,
        "image_size": size[0] if size[0] == size[1] else list(size),
        "hidden_act": WRITTEN_GELU[encoder.gelu],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "architectures": [family.classes[config.kind]],
        **facts_of_config(encoder, family),  # may change the activation
    }
    if isinstance(config, MAE):
        decoder = config.decoder
        meta |= {"decoder_hidden_size": decoder.dim, "decoder_num_hidden_layers": decoder.layers}
        meta |= {"decoder_num_attention_heads": decoder.heads, "decoder_intermediate_size": 4 * decoder.dim}
        meta |= {"mask_ratio": config.mask_ratio, "norm_pix_loss": config.norm_pix_loss}
    elif isinstance(config, Classifier):
        classes = weights.classes or [f"LABEL_{i}" for i in range(config.labels)]
        names = {str(i): name for i, name in enumerate(classes)}
        meta |= {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    elif family.base != "vision_model.":
        state = {name.removeprefix(family.base): array for name, array in state.items()}
    if config.kind == "encoder" and family.extra:
        notices.append(
            f"the model is written without the pooler of {family.classes['encoder']}: give add_pooling_layer=False"
        )
    path.mkdir(parents=True, exist_ok=True)
    write_whole(path / "config.json", json.dumps(meta, indent=2) + "\n")
    write_whole(path / "preprocessor_config.json", json.dumps(preprocessor(weights), indent=2) + "\n")
    native.write_safetensors(state, path / "model.safetensors", {"format": "pt"})
    return notices
