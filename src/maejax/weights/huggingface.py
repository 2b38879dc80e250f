"""Hugging Face directories of ViTMAE and ViT: config.json and model.safetensors, in the names of transformers 4 and 5.

Names are brought to those of transformers 4, which are the hub's and which both versions load; these files are written.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maejax.errors import WeightsError
from maejax.models.description import MAE, Classifier, Network, Stack, ViT, change_encoder
from maejax.storage.atomic import write_whole
from maejax.weights import containers, native, torch_names
from maejax.weights.weights import PROBE_FOLDED, Weights, anchor, blank_arrays, check, fold_head_norm, posemb_of

# the authors' name: Hugging Face's
BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
SINGLE = {
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
GELU: dict[str, Any] = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
WRITTEN_GELU = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}
# Fields of a `Stack` and a `ViT`, and their names and defaults in config.json.
STACK = {"dim": ("hidden_size", 768), "layers": ("num_hidden_layers", 12), "heads": ("num_attention_heads", 12)}
DECODER = {name: (f"decoder_{key}", {"dim": 512, "layers": 8, "heads": 16}[name]) for name, (key, _) in STACK.items()}
IMAGES = {"patch_size": ("patch_size", 16), "channels": ("num_channels", 3)}
MASKING = {"mask_ratio": ("mask_ratio", 0.75), "norm_pix_loss": ("norm_pix_loss", False)}


def is_directory(path: Path) -> bool:
    """Recognise a directory of Hugging Face by its config.json."""
    config = path / "config.json"
    return config.exists() and "model_type" in json.loads(config.read_text())


def knows(names: Iterable[str]) -> bool:
    """Recognise Hugging Face's names of tensors."""
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

    Raises WeightsError if Hugging Face's models have no place for a tensor.
    """
    theirs = {}
    for name, array in state.items():
        match = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        prefix = match and ("decoder.decoder_layers." if match[1] else "vit.encoder.layer.") + match[2]
        if match and match[3] == "attn.qkv":
            for which, piece in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                theirs[f"{prefix}.attention.attention.{which}.{match[4]}"] = piece
        elif match and match[3] in BLOCK:
            theirs[f"{prefix}.{BLOCK[match[3]]}.{match[4]}"] = array
        elif name in SINGLE:
            theirs[SINGLE[name]] = array
        elif name.startswith("decoder_") and not match:
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
    single = {theirs: name for name, theirs in SINGLE.items()}
    ours = {}
    for name, array in state.items():
        match = re.fullmatch(r"(vit\.encoder\.layer|decoder\.decoder_layers)\.(\d+)\.(.+)\.(weight|bias)", name)
        if not match:
            ours[single.get(name, name.removeprefix("decoder."))] = array
            continue
        prefix = ("decoder_blocks." if match[1].startswith("decoder") else "blocks.") + match[2]
        if match[3] in block:
            ours[f"{prefix}.{block[match[3]]}.{match[4]}"] = array
        elif match[3].endswith("query"):
            pieces = [state[name.replace("query", which)] for which in ("query", "key", "value")]
            ours[f"{prefix}.attn.qkv.{match[4]}"] = np.concatenate(pieces)
    return ours


def config_of(meta: Mapping[str, Any], state: Mapping[str, np.ndarray], what: str) -> Network:
    """Read a model's description from config.json; raises WeightsError if it cannot be expressed here."""
    if meta.get("model_type") not in ("vit_mae", "vit"):
        raise WeightsError(f"{what} is a {meta.get('model_type')} model; only vit_mae and vit are known here")
    gelu = GELU.get(meta.get("hidden_act", "gelu"))
    if gelu is None or not meta.get("qkv_bias", True):
        raise WeightsError(f"{what} has another activation or no bias on queries: it cannot be expressed here")

    def fields(names):
        return {field: meta.get(key, default) for field, (key, default) in names.items()}

    size = meta.get("image_size", 224)
    size = (size, size) if isinstance(size, int) else tuple(size)
    blocks, images = fields(STACK), fields(IMAGES)
    grid = (size[0] // images["patch_size"], size[1] // images["patch_size"])
    if (width := meta.get("intermediate_size", 3072)) != 4 * blocks["dim"]:
        raise WeightsError(f"{what} has an MLP of width {width}, not 4 x {blocks['dim']}")

    def posemb(name):
        return posemb_of(anchor(state, SINGLE[name], what), grid)

    encoder = ViT(image_size=size, posemb=posemb("pos_embed"), gelu=gelu, **blocks, **images)
    if any(name.startswith("decoder.") for name in state):
        decoder = Stack(posemb=posemb("decoder_pos_embed"), gelu=gelu, **fields(DECODER))
        return MAE(encoder=encoder, decoder=decoder, **fields(MASKING))
    if "classifier.weight" in state:
        return Classifier(encoder=encoder, labels=len(state["classifier.weight"]))
    return encoder


def read(path: Path, prefix: str = "") -> Weights:
    """Read a directory with config.json and weights in one file or in parts; `prefix` as in `containers.read`.

    Raises WeightsError, with every wrong tensor, if it is of another model or incomplete.
    """
    meta, found = json.loads((path / "config.json").read_text()), containers.read(containers.file_in(path), prefix)
    named = {old_name(name): array for name, array in found.arrays.items()}
    state = {name: array for name, array in named.items() if not name.startswith("vit.pooler.")}
    config = config_of(meta, state, str(path))
    config = change_encoder(config, **normalisation_of(path, config.encoder.channels))
    check(to_hf(torch_names.to_theirs(blank_arrays(config), config.encoder)), state, str(path))
    notices = list(found.notices)
    if len(state) < len(named):
        notices.append("its pooler (a layer after the cls token) is not part of these models and is left out")
    if (eps := meta.get("layer_norm_eps", 1e-12)) != 1e-6:
        notices.append(f"its config says LayerNorm eps {eps:g}; here it is 1e-6, with which MAE models were trained")
    writer = f"Hugging Face transformers {meta.get('transformers_version', '')}".rstrip()
    return Weights(torch_names.to_ours(from_hf(state)), config, "hf", writer, tuple(notices), classes_of(meta, config))


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


def state_of(weights: Weights) -> dict[str, np.ndarray]:
    """Return a state dict of transformers 4; raises WeightsError if its models cannot express this one."""
    arrays, config = weights.arrays, weights.config
    if isinstance(config, Classifier):
        arrays, config = fold_head_norm(arrays, config)
    if isinstance(config, MAE) and config.decoder.gelu != config.encoder.gelu:
        raise WeightsError("Hugging Face's ViT has one activation for encoder and decoder; convert to maejax")
    if isinstance(config, Classifier) and config.pooling == "avg":
        raise WeightsError("Hugging Face's ViT has no mean pooling before its head; convert to timm or maejax")
    if isinstance(config, MAE) and len(set(config.encoder.image_size)) > 1:
        raise WeightsError("Hugging Face's ViTMAE is for square images alone; convert to timm or maejax")
    return to_hf(torch_names.to_theirs(arrays, config.encoder))


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
    """Write a directory that `from_pretrained` of ViTMAEForPreTraining, ViTForImageClassification or ViTModel loads.

    Returns sentences that a reader must know. Raises WeightsError if those models have no place for a tensor.
    """
    state, config, encoder = state_of(weights), weights.config, weights.config.encoder
    notices = [PROBE_FOLDED] if isinstance(config, Classifier) and config.head_norm else []

    def keys(names, values):
        return {key: getattr(values, field) for field, (key, _) in names.items()}

    size = encoder.image_size
    if size[0] != size[1]:
        notices.append(
            "preprocessor_config.json squeezes images to HxW: transformers knows no other way; crop them before"
        )
    meta: dict[str, Any] = {
        "model_type": "vit_mae" if config.kind == "mae" else "vit",
        "image_size": size[0] if size[0] == size[1] else list(size),
        **keys(IMAGES, encoder),
        **keys(STACK, encoder),
        "intermediate_size": 4 * encoder.dim,
        "hidden_act": WRITTEN_GELU[encoder.gelu],
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if isinstance(config, MAE):
        meta |= {"architectures": ["ViTMAEForPreTraining"], **keys(DECODER, config.decoder), **keys(MASKING, config)}
        meta["decoder_intermediate_size"] = 4 * config.decoder.dim
    elif isinstance(config, Classifier):
        classes = weights.classes or [f"LABEL_{i}" for i in range(config.labels)]
        names = {str(i): name for i, name in enumerate(classes)}
        meta |= {"architectures": ["ViTForImageClassification"], "id2label": names}
        meta["label2id"] = {name: int(i) for i, name in names.items()}
    else:
        meta |= {"architectures": ["ViTModel"]}
        state = {name.removeprefix("vit."): array for name, array in state.items()}
        notices.append("the model is written without the pooler of ViTModel: give add_pooling_layer=False")
    path.mkdir(parents=True, exist_ok=True)
    write_whole(path / "config.json", json.dumps(meta, indent=2) + "\n")
    write_whole(path / "preprocessor_config.json", json.dumps(preprocessor(weights), indent=2) + "\n")
    native.write_safetensors(state, path / "model.safetensors", {"format": "pt"})
    return notices
