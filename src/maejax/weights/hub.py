"""A folder for the Hugging Face hub: weights for transformers and for timm, and a model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maejax.errors import WeightsError
from maejax.models.description import MAE, Classifier
from maejax.storage.atomic import write_whole
from maejax.weights import huggingface, native
from maejax.weights.containers import TIMM_FILE
from maejax.weights.families import family_of
from maejax.weights.statement import KEY, statement_of
from maejax.weights.torch_export import timm_model, to_timm
from maejax.weights.weights import Weights

ONNX_FILE = "onnx/model.onnx"


def write_folder(weights: Weights, path: Path, card: str) -> list[str]:
    """Write config.json, model.safetensors, preprocessor_config.json, timm.safetensors and README.md, the `card`.

    The file for timm lacks a decoder. Returns sentences that a reader must know.
    """
    path.mkdir(parents=True, exist_ok=True)
    try:
        notices = huggingface.write(weights, path)
    except WeightsError as error:
        notices = [f"the folder is for timm alone: {error}"]
    state, _ = to_timm(weights)
    native.write_safetensors(state, path / TIMM_FILE, {KEY: statement_of(weights)})
    write_whole(path / "README.md", card)
    return notices


def for_transformers(weights: Weights) -> bool:
    """Check whether the models of transformers have a place for all weights."""
    try:
        huggingface.state_of(weights)
    except WeightsError:
        return False
    return True


def describe(
    weights: Weights,
    name: str,
    *,
    data: Mapping[str, Any],
    recipe: Mapping[str, Any],
    numbers: Mapping[str, Any],
    onnx: Sequence[str] = (),
    licence: str = "",
) -> str:
    """Write a model card: the model, its data, recipe and numbers, and the code that loads it from folder `name`.

    `data`, `recipe` and `numbers` are rows of the card's tables, as text; the card says so if one is empty. `onnx` has
    the names of the files that an ONNX model is in, if the folder holds one; `licence` is the hub's word for one.
    """
    config, encoder = weights.config, weights.config.encoder
    kind = "masked autoencoder (encoder and decoder)" if isinstance(config, MAE) else "vision transformer"
    if isinstance(config, Classifier):
        kind += f" with a head of {config.labels} classes"
    facts = {
        "model": kind + (" (encoder alone)" if config is encoder else ""),
        "images": f"{'x'.join(map(str, encoder.image_size))}, {encoder.channels} channels, "
        f"mean {rounded(encoder.mean)}, deviation {rounded(encoder.std)} on the 0..1 scale",
        "encoder": f"{encoder.layers} layers, width {encoder.dim}, {encoder.heads} heads, patches of "
        f"{encoder.patch_size} pixels",
        "parameters": f"{sum(a.size for a in weights.arrays.values()):,}",
        "written by": weights.writer,
    }
    facts["pictures"] = pictures(weights)
    if isinstance(config, MAE):
        decoder = config.decoder
        facts["decoder"] = f"{decoder.layers} layers, width {decoder.dim}, {decoder.heads} heads"
        facts["target"] = "pixels normalised per patch" if config.norm_pix_loss else config.target
    library = "transformers" if for_transformers(weights) else "timm"
    task = "image-classification" if isinstance(config, Classifier) else "image-feature-extraction"
    parts = [
        f"---\nlibrary_name: {library}\npipeline_tag: {task}\ntags:\n- masked-autoencoder\n- vision-transformer\n"
        f"- timm\n- maejax\n{f'license: {licence}{chr(10)}' * bool(licence)}---\n\n# {name}\n",
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
    if onnx:
        fetched = ", ".join(f'hf_hub_download("{name}", "onnx/{file}")' for file in onnx)
        code = running_onnx(weights, fetched if len(onnx) == 1 else f"({fetched})[-1]")
        parts.append(f"```python\nfrom huggingface_hub import hf_hub_download\n{code}```\n")
    return "\n".join(parts)


def pictures(weights: Weights) -> str:
    """Write in a sentence what pictures a model takes, and how validation prepared them."""
    encoder, ratio = weights.config.encoder, weights.crop_ratio
    kinds = {1: "grey", 3: "RGB", 4: "RGB with alpha"}
    kind = kinds.get(encoder.channels, f"arrays of {encoder.channels} channels")
    height, width = (int(side / ratio) for side in encoder.image_size)
    return f"{kind}, 8 bits, turned upright, resized (bicubic) to cover {height}x{width}, then cropped at the centre"


def opening(weights: Weights) -> str:
    """Write the code that opens a photo as a model takes it, "" for channels that no photo has."""
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(weights.config.encoder.channels)
    if mode is None:
        return ""
    return (
        "from PIL import Image, ImageOps\n\n"
        f'photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")\n'
    )


def loading(weights: Weights, name: str) -> list[str]:
    """Write the code that loads a folder and prepares a photo, in transformers, and in timm."""
    (timm_name, options), encoder, photo = timm_model(weights.config), weights.config.encoder, opening(weights)
    timm = (
        f"{'import functools' + chr(10) if 'norm_layer' in options else ''}"
        f"import timm\n{'import torch' + chr(10) if 'norm_layer' in options else ''}"
        "from huggingface_hub import hf_hub_download\nfrom safetensors.torch import load_file\n\n"
        f'model = timm.create_model("{timm_name}", '
        f"{', '.join(f'{key}={value!r}' for key, value in options.items())})\n"
        f'model.load_state_dict(load_file(hf_hub_download("{name}", "{TIMM_FILE}")))\n'
    )
    if photo:
        timm += (
            f"\n{photo}transform = timm.data.create_transform({(encoder.channels, *encoder.image_size)}, "
            f'interpolation="bicubic", mean={encoder.mean}, std={encoder.std}, crop_pct={weights.crop_ratio})\n'
            "out = model.eval()(transform(photo)[None])\n"
        )
    if not for_transformers(weights):
        return [timm]
    family, kind = family_of(weights.config), weights.config.kind
    model, extra = family.classes[kind], family.extra if kind == "encoder" else ""
    transformers = f'from transformers import {model}\n\nmodel = {model}.from_pretrained("{name}"{extra})\n'
    if isinstance(weights.config, MAE):
        transformers += (
            "\n# The encoder alone, without masks:\nfrom transformers import ViTModel\n\n"
            f'encoder = ViTModel.from_pretrained("{name}", add_pooling_layer=False)\n'
        )
    if photo and encoder.image_size[0] == encoder.image_size[1]:
        transformers += (
            f"\nfrom transformers import AutoImageProcessor\n{photo}"
            f'processor = AutoImageProcessor.from_pretrained("{name}")  # may crop one pixel further up or left\n'
            'out = model(processor(photo, return_tensors="pt")["pixel_values"])\n'
        )
    return [transformers, timm]


def running_onnx(weights: Weights, path: str) -> str:
    """Write the code that runs an ONNX file on a photo; `path` is code for its path."""
    (height, width), channels = weights.config.encoder.image_size, weights.config.encoder.channels
    photo = opening(weights)
    images = f"numpy.asarray(photo).reshape(1, {height}, {width}, {channels})"
    if photo:
        wide, high = (int(side / weights.crop_ratio) for side in (width, height))
        photo += (
            f"size = max({wide}, {high} * photo.width // photo.height), "
            f"max({high}, {wide} * photo.height // photo.width)\n"
            f"left, top = round((size[0] - {width}) / 2), round((size[1] - {height}) / 2)\n"
            "photo = photo.resize(size, Image.Resampling.BICUBIC)"
            f".crop((left, top, left + {width}, top + {height}))\n"
        )
    else:
        images = 'numpy.load("images.npy")'
    return (
        f"import numpy\nimport onnxruntime\n{photo}"
        f"session = onnxruntime.InferenceSession({path})\n"
        f'(out,) = session.run(None, {{"images": {images}}})\n'
    )


def rounded(values: Any) -> str:
    """Write numbers with three digits."""
    return ", ".join(f"{value:.3g}" for value in values)


def table(rows: Mapping[str, Any]) -> str:
    """Write rows of two columns as Markdown."""
    lines = [f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines, ""])
