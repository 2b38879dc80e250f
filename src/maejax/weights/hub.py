"""A folder for the Hugging Face hub: weights for transformers and for timm, and a card that says what they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maejax.weights import huggingface, native, torch_names
from maejax.weights.weights import Weights

TIMM_FILE = "timm.safetensors"
TIMM_NAMES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}  # by width


def write_folder(weights: Weights, path: Path, card: str) -> list[str]:
    """Write config.json, model.safetensors, preprocessor_config.json, timm.safetensors and README.md.

    Args:
        weights: what to write; the file for timm lacks a decoder.
        path: of the folder; made where it is missing.
        card: the text of README.md, such as `describe` makes.

    Returns:
        What a reader must know.

    """
    path.mkdir(parents=True, exist_ok=True)
    if for_transformers(weights):
        notices = huggingface.write(weights, path)
    else:
        notices = ["transformers' ViT has neither mean pooling nor LayerScale: the folder is for timm alone"]
    state, _ = torch_names.to_timm(weights)
    native.write_safetensors(state, path / TIMM_FILE)
    (path / "README.md").write_text(card, encoding="utf-8")
    return notices


def for_transformers(weights: Weights) -> bool:
    """Tell whether transformers' models can hold weights."""
    told = weights.arguments
    return not (told["layerscale"] or told.get("dec_layerscale") or told.get("pooling") == "gap")


def describe(
    weights: Weights, name: str, *, data: Mapping[str, Any], recipe: Mapping[str, Any], numbers: Mapping[str, Any]
) -> str:
    """Write a model card: the model, its data, recipe and numbers, and the commands that load it.

    Args:
        weights: the model.
        name: of the folder on the hub.
        data, recipe, numbers: rows of the card's tables, as text; an empty one is said to be unknown.

    """
    told = weights.arguments
    size = "x".join(map(str, told["image_size"]))
    what = {
        "mae": "masked autoencoder (encoder and decoder)",
        "encoder": "vision transformer (encoder alone)",
        "classifier": f"vision transformer with a head of {told.get('labels')} classes",
    }[weights.kind]
    facts = {
        "model": what,
        "images": f"{size}, {told['channels']} channels, mean {rounded(told['mean'])}, "
        f"deviation {rounded(told['std'])} on the 0..1 scale",
        "encoder": f"{told['layers']} layers, width {told['dim']}, {told['heads']} heads, patches of "
        f"{told['patch_size']} pixels",
        "parameters": f"{sum(a.size for a in weights.arrays.values()):,}",
        "written by": weights.writer,
    }
    if weights.kind == "mae":
        facts["decoder"] = f"{told['dec_layers']} layers, width {told['dec_dim']}, {told['dec_heads']} heads"
        facts["target"] = "pixels normalised per patch" if told["norm_pix_loss"] else "pixels"
    library = "transformers" if for_transformers(weights) else "timm"
    task = "image-classification" if weights.kind == "classifier" else "image-feature-extraction"
    parts = [
        f"---\nlibrary_name: {library}\npipeline_tag: {task}\ntags:\n- masked-autoencoder\n- vision-transformer\n"
        f"- timm\n- maejax\n---\n\n# {name}\n",
        "Pre-trained as a masked autoencoder ([He et al. 2022](https://arxiv.org/abs/2111.06377)).\n",
        table(facts),
        "## Data\n",
        table(data) if data else "Not recorded in the weights' file.\n",
        "## Recipe\n",
        table(recipe) if recipe else "Not recorded in the weights' file.\n",
        "## Numbers\n",
        table(numbers) if numbers else "None were measured.\n",
        "## Use\n",
        *(f"```python\n{code}```\n" for code in loading(weights, name)),
    ]
    return "\n".join(parts)


def loading(weights: Weights, name: str) -> list[str]:
    """Write the code that loads a folder in transformers, and in timm."""
    told = weights.arguments
    model, extra = {
        "mae": ("ViTMAEForPreTraining", ""),
        "encoder": ("ViTModel", ", add_pooling_layer=False"),
        "classifier": ("ViTForImageClassification", ""),
    }[weights.kind]
    transformers = f'from transformers import {model}\n\nmodel = {model}.from_pretrained("{name}"{extra})\n'
    if weights.kind == "mae":
        transformers += (
            "\n# The encoder alone, without masks:\nfrom transformers import ViTModel\n\n"
            f'encoder = ViTModel.from_pretrained("{name}", add_pooling_layer=False)\n'
        )
    standard = TIMM_NAMES.get(told["dim"], "base")
    options = {
        "num_classes": told.get("labels", 0),
        "img_size": tuple(told["image_size"]),
        "patch_size": told["patch_size"],
        "in_chans": told["channels"],
        "embed_dim": told["dim"],
        "depth": told["layers"],
        "num_heads": told["heads"],
    }
    if told["layerscale"]:
        options["init_values"] = 1e-4
    if told.get("pooling") == "gap":
        options["global_pool"] = "avg"
    if told.get("gelu", "erf") == "tanh":
        options["act_layer"] = "gelu_tanh"
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    timm = (
        "import timm\nfrom huggingface_hub import hf_hub_download\nfrom safetensors.torch import load_file\n\n"
        f'model = timm.create_model("vit_{standard}_patch16_224", {given})\n'
        f'model.load_state_dict(load_file(hf_hub_download("{name}", "{TIMM_FILE}")))\n'
    )
    return [transformers, timm] if for_transformers(weights) else [timm]


def rounded(values: Any) -> str:
    """Write numbers with three digits."""
    return ", ".join(f"{value:.3g}" for value in values)


def table(rows: Mapping[str, Any]) -> str:
    """Write rows of two columns as Markdown."""
    lines = [f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines, ""])
