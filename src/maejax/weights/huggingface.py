"""Hugging Face directories of ViTMAE and ViT: config.json and model.safetensors, by the names of transformers 4 and 5.

Names are brought to those of transformers 4, which are the hub's and which both versions load; these files are written.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maejax.errors import WeightsError
from maejax.weights import fair, native
from maejax.weights.run_directory import fold_head_norm, model_shapes
from maejax.weights.weights import Weights, anchor, check_shapes, decoder_arguments, encoder_arguments, table_kind

# the authors' name: Hugging Face's
BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
WHOLE = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "vit.layernorm.weight",
    "norm.bias": "vit.layernorm.bias",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "head.weight": "classifier.weight",
    "head.bias": "classifier.bias",
}
NEW_NAMES = [  # of transformers 5, in memory and in files, to those of 4
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
GELU = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
WRITTEN_GELU = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}


def is_directory(path: Path) -> bool:
    """Tell whether a directory is one of Hugging Face's, by its config.json."""
    config = path / "config.json"
    return config.exists() and "model_type" in json.loads(config.read_text())


def knows(names: Iterable[str]) -> bool:
    """Tell whether tensors' names are Hugging Face's."""
    return any("embeddings.patch_embeddings" in name for name in names)


def old_name(name: str) -> str:
    """Bring a name of transformers 5, or of a bare ViTModel, to that of transformers 4 under a task's model."""
    if not name.startswith(("vit.", "decoder.", "classifier.")):
        name = "vit." + name
    for pattern, old in NEW_NAMES:
        name = re.sub(pattern, old, name)
    return name


def to_hf(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename a state dict of the authors' code, its packed projections split in three.

    Raises:
        WeightsError: Hugging Face's models have no place for a tensor.

    """
    theirs = {}
    for name, array in state.items():
        match = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if match:
            prefix = ("decoder.decoder_layers." if match[1] else "vit.encoder.layer.") + match[2]
            if match[3] == "attn.qkv":
                for which, piece in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                    theirs[f"{prefix}.attention.attention.{which}.{match[4]}"] = piece
            else:
                theirs[f"{prefix}.{BLOCK[match[3]]}.{match[4]}"] = array
        elif name in WHOLE:
            theirs[WHOLE[name]] = array
        elif name.startswith("decoder_"):
            theirs["decoder." + name] = array
        else:
            raise WeightsError(
                f"Hugging Face's ViT has no place for {name} (it has no LayerScale, mean pooling or BatchNorm); "
                "convert to timm or maejax"
            )
    return theirs


def from_hf(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename a state dict of Hugging Face's, in the names of transformers 4; the inverse of `to_hf`."""
    block = {theirs: name for name, theirs in BLOCK.items()}
    whole = {theirs: name for name, theirs in WHOLE.items()}
    ours = {}
    for name, array in state.items():
        match = re.fullmatch(r"(vit\.encoder\.layer|decoder\.decoder_layers)\.(\d+)\.(.+)\.(weight|bias)", name)
        if not match:
            ours[whole.get(name, name.removeprefix("decoder."))] = array
            continue
        prefix = ("decoder_blocks." if match[1].startswith("decoder") else "blocks.") + match[2]
        if match[3] in block:
            ours[f"{prefix}.{block[match[3]]}.{match[4]}"] = array
        elif match[3].endswith("query"):
            pieces = [state[name.replace("query", which)] for which in ("query", "key", "value")]
            ours[f"{prefix}.attn.qkv.{match[4]}"] = np.concatenate(pieces)
    return ours


def geometry(config: Mapping[str, Any], state: Mapping[str, np.ndarray], what: str) -> dict[str, Any]:
    """Read a model's arguments from config.json.

    Raises:
        WeightsError: it is another kind of model, or one that cannot be expressed here.

    """
    if config.get("model_type") not in ("vit_mae", "vit"):
        raise WeightsError(f"{what} is a {config.get('model_type')} model; only vit_mae and vit are known here")
    size = config.get("image_size", 224)
    size, patch = ([size, size] if isinstance(size, int) else list(size)), config.get("patch_size", 16)
    grid = (size[0] // patch, size[1] // patch)
    if config.get("hidden_act", "gelu") not in GELU or not config.get("qkv_bias", True):
        raise WeightsError(f"{what} has another activation or no bias on queries: it cannot be expressed here")
    dim = config.get("hidden_size", 768)
    if config.get("intermediate_size", 3072) != 4 * dim:
        raise WeightsError(f"{what} has an MLP of width {config.get('intermediate_size', 3072)}, not 4 x {dim}")

    def kind(name):
        return "learnable" if table_kind(anchor(state, name, what), grid) == "learned" else "sincos2d"

    arguments = encoder_arguments(
        image_size=size,
        patch_size=patch,
        channels=config.get("num_channels", 3),
        dim=dim,
        layers=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 12),
        posemb=kind(WHOLE["pos_embed"]),
        layerscale=False,
        gelu=GELU[config.get("hidden_act", "gelu")],
    )
    if any(name.startswith("decoder.") for name in state):
        arguments |= decoder_arguments(
            dim=config.get("decoder_hidden_size", 512),
            layers=config.get("decoder_num_hidden_layers", 8),
            heads=config.get("decoder_num_attention_heads", 16),
            posemb=kind(WHOLE["decoder_pos_embed"]),
            norm_pix_loss=config.get("norm_pix_loss", False),
            mask_ratio=config.get("mask_ratio", 0.75),
        )
    elif "classifier.weight" in state:
        arguments |= {"labels": len(state["classifier.weight"]), "pooling": "cls"}
    return arguments


def read(path: Path) -> Weights:
    """Read a directory with config.json and model.safetensors.

    Raises:
        WeightsError: it is of another model, or not whole; the message lists every wrong tensor.

    """
    file = path / "model.safetensors"
    if not file.exists():
        raise WeightsError(f"{path} has no model.safetensors; save the model with safe_serialization and in one file")
    config = json.loads((path / "config.json").read_text())
    state, _ = native.read_safetensors(file)
    state = {old_name(name): array for name, array in state.items()}
    pooler = [name for name in state if name.startswith("vit.pooler.")]
    for name in pooler:
        state.pop(name)
    arguments = geometry(config, state, str(path))
    blank = {name: np.broadcast_to(np.float32(0), shape) for name, shape in model_shapes(arguments).items()}
    wanted = {name: array.shape for name, array in to_hf(fair.to_theirs(blank, arguments)).items()}
    check_shapes(state, wanted, str(path))
    notices = []
    if pooler:
        notices.append("its pooler (a layer after the cls token) is not part of these models and is left out")
    if (eps := config.get("layer_norm_eps", 1e-12)) != 1e-6:
        notices.append(f"its config says LayerNorm eps {eps:g}; here it is 1e-6, with which MAE models were trained")
    writer = f"Hugging Face transformers {config.get('transformers_version', '')}".rstrip()
    return Weights(fair.to_ours(from_hf(state)), arguments, "hf", writer, tuple(notices))


def write(weights: Weights, path: Path) -> list[str]:
    """Write a directory that `from_pretrained` of ViTMAEForPreTraining, ViTForImageClassification or ViTModel loads.

    Raises:
        WeightsError: those models have no place for a tensor.

    """
    arguments, arrays, notices = dict(weights.arguments), weights.arrays, []
    if "head_norm" in arguments:
        notices.append("the probe's BatchNorm is folded into its linear layer")
        arrays = fold_head_norm(arrays, arguments.pop("head_norm"))
    state = to_hf(fair.to_theirs(arrays, arguments))
    size = arguments["image_size"]
    config: dict[str, Any] = {
        "model_type": "vit_mae" if weights.kind == "mae" else "vit",
        "image_size": size[0] if size[0] == size[1] else list(size),
        "patch_size": arguments["patch_size"],
        "num_channels": arguments["channels"],
        "hidden_size": arguments["dim"],
        "num_hidden_layers": arguments["layers"],
        "num_attention_heads": arguments["heads"],
        "intermediate_size": 4 * arguments["dim"],
        "hidden_act": WRITTEN_GELU[arguments.get("gelu", "erf")],
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if weights.kind == "mae":
        config |= {
            "architectures": ["ViTMAEForPreTraining"],
            "decoder_hidden_size": arguments["dec_dim"],
            "decoder_num_hidden_layers": arguments["dec_layers"],
            "decoder_num_attention_heads": arguments["dec_heads"],
            "decoder_intermediate_size": 4 * arguments["dec_dim"],
            "mask_ratio": arguments["mask_ratio"],
            "norm_pix_loss": arguments["norm_pix_loss"],
        }
    elif weights.kind == "classifier":
        names = {str(i): f"LABEL_{i}" for i in range(arguments["labels"])}
        config |= {
            "architectures": ["ViTForImageClassification"],
            "id2label": names,
            "label2id": {name: int(i) for i, name in names.items()},
        }
    else:
        config |= {"architectures": ["ViTModel"]}
        state = {name.removeprefix("vit."): array for name, array in state.items()}
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": size[0], "width": size[1]},
        "resample": 3,
        "image_mean": list(arguments["mean"]),
        "image_std": list(arguments["std"]),
    }
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    native.write_safetensors(state, path / "model.safetensors", {"format": "pt"})
    if weights.kind == "encoder":
        notices.append("the model is written without the pooler of ViTModel: give add_pooling_layer=False")
    return notices
