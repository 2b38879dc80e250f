"""The target of a pre-training run: what `--target` asks to predict, and the arrays that it needs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maejax.config import Config
from maejax.data.arrays import read_pixels
from maejax.data.augment import build_eval
from maejax.data.sources import Source
from maejax.data.stream import Stream
from maejax.distributed.processes import arrays_of_0
from maejax.errors import InputError, UnreadableImage
from maejax.models.build import initial_model
from maejax.models.code import name_code
from maejax.models.description import MAE, Compute, ViT
from maejax.models.stored import from_json

NAMES = {"pixels": "pixels", "pca": "components", "ema": "features"}
PARTS = ("teacher.", "components.")  # of a model, which only its target needs
SEEN = 512  # images whose patches give the principal components


def own_target(config: Config) -> str:
    """Return the kind of target as `MAE.target` names it; weights are those of a teacher of features."""
    return "custom" if callable(config.mae.target) else NAMES.get(config.mae.target, "features")


def target_of_flags(config: Config, encoder: Any, saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the fields of `MAE` that `--target` decides but for a teacher that must be read.

    The running average has the description of the encoder; a frozen teacher that of `saved`, the run's config.json.
    """
    fields: dict[str, Any] = {"target": own_target(config), "loss_on": config.mae.loss_on}
    fields["mask_tokens"] = "encoder" if config.mae.encoder_mask_tokens else "decoder"
    code: Any = config.mae.target
    if callable(code):
        return fields | {"custom_target": code, "custom_values": count_values(code, encoder)}
    if config.mae.target == "ema":
        half = -(-encoder.layers // 2)
        return fields | {"teacher": replace(encoder, attention_pool=False), "teacher_blocks": half}
    if fields["target"] == "features":
        model = from_json(saved["model"]) if saved else None
        teacher = model.teacher if isinstance(model, MAE) else None
        return fields | {"teacher": teacher or encoder}
    return fields


def count_values(code: Callable[..., Any], encoder: ViT) -> int:
    """Count the values that the user's target has for a patch. Raises InputError if it fails, or returns no [B, N, P].

    Nothing is computed.
    """
    shape = (1, *encoder.image_size, encoder.channels)
    try:
        found = jax.eval_shape(code, jax.ShapeDtypeStruct(shape, jnp.float32))
    except Exception as error:  # whatever the user's code raises
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise InputError(f"target {name_code(code)} fails on images float32 {list(shape)}: {why}") from error
    if len(getattr(found, "shape", ())) != 3 or found.shape[:2] != (1, encoder.patches):
        got = list(found.shape) if hasattr(found, "shape") else type(found).__name__
        raise InputError(
            f"target {name_code(code)}: return [B, {encoder.patches}, P], values of each patch, for images [B, "
            f"{', '.join(map(str, shape[1:]))}]; with B = 1 it returns {got}"
        )
    return found.shape[2]


def read_teacher(config: Config, model: MAE) -> tuple[MAE, dict[str, np.ndarray]]:
    """Read the weights that `--target` names: the model with this teacher, and its arrays by name.

    Their positions are interpolated to the grid of the model. Raises InputError if they cannot be read, or do not fit.
    """
    from maejax.weights.addresses import local
    from maejax.weights.files import read
    from maejax.weights.pretrained import with_image_size

    path, encoder = config.mae.target, model.encoder
    here, _ = local(path, config.data.cache_dir)
    weights = read(here)
    found = weights.config.encoder
    if (found.channels, found.image_type) != (encoder.channels, encoder.image_type):
        images = f"{found.image_type} images of {found.channels} channels"
        raise InputError(
            f"--target {path} takes {images}, and these are {encoder.image_type} of {encoder.channels}: name another"
        )
    rows, columns = encoder.grid
    weights = with_image_size(weights, (rows * found.patch_size, columns * found.patch_size))
    teacher = replace(weights.config.encoder, attention_pool=False)
    own = ("encoder.attention_pool.",)
    arrays = {
        "teacher." + name.removeprefix("encoder."): array
        for name, array in weights.arrays.items()
        if name.startswith("encoder.") and not name.startswith(own)
    }
    return replace(model, teacher=teacher), arrays


def principal_components(model: MAE, source: Source | Stream) -> dict[str, np.ndarray]:
    """Compute the principal components of the patches of some images of a source: arrays by name, in all processes.

    The images are spread over the source. Patches with missing pixels are left out. Raises InputError for a stream,
    which cannot be read twice, and for too few patches.
    """
    if isinstance(source, Stream):
        raise InputError("--target pca looks at images before training, and these are streamed: `maejax pack` them")
    encoder = model.encoder
    crop = build_eval(encoder.image_size, 1.0, source.form.no_data)
    cut = jax.jit(initial_model(encoder).cut, static_argnames="missing")
    count, total, products = 0, np.zeros(encoder.pixels), np.zeros((encoder.pixels, encoder.pixels))
    for i in np.unique(np.linspace(0, len(source) - 1, SEEN).astype(int)):
        try:
            image = crop(read_pixels(source.read(int(i)), source.form), np.random.default_rng(0))
        except (UnreadableImage, OSError):
            continue
        patches = np.asarray(cut(image[None], missing=jnp.nan), np.float64).reshape(-1, encoder.pixels)
        patches = patches[np.isfinite(patches).all(axis=1)]
        count, total, products = count + len(patches), total + patches.sum(axis=0), products + patches.T @ patches
    if count < model.values:
        raise InputError(f"--target pca: {count} whole patches are too few for {model.values} components; add images")
    mean = total / count
    _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    basis = vectors[:, ::-1][:, : model.values]
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), range(basis.shape[1])])
    found = {"components.mean": mean.astype(np.float32), "components.basis": basis.astype(np.float32)}
    return arrays_of_0(found)  # sums differ in the last bits from machine to machine


def initial_with_teacher(model: MAE, compute: Compute, seed: int, ema: bool) -> Any:
    """Build a model with fresh weights; with `ema` its teacher begins as its encoder."""
    built = initial_model(model, compute, seed)
    if ema:
        built.teacher = jax.tree.map(jnp.copy, built.encoder)
    return built


def follow(model: Any, batch: Any, decay: float | None) -> Any:
    """Move a teacher towards the encoder: decay * teacher + (1 - decay) * encoder. Without a decay it stays."""
    if decay is None:
        return model
    moved = jax.tree.map(lambda array: array, model)
    moved.teacher = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), model.teacher, model.encoder)
    return moved
