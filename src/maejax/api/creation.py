"""Models made in Python and written to files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

import jax

from maejax.api.flags import NetworkFlags, config_of
from maejax.config import with_flags
from maejax.errors import InputError
from maejax.models.build import initial_model
from maejax.models.classifier import ImageClassifier
from maejax.models.mae import MaskedAutoencoder
from maejax.models.vit import VisionTransformer
from maejax.tasks.pretrain import model_config
from maejax.tasks.settings import named
from maejax.weights import files
from maejax.weights.weights import weights_of

Model = MaskedAutoencoder | ImageClassifier | VisionTransformer
Layout = Literal["maejax", "original", "fair", "timm", "hf"]


def create(
    size: str = "",
    *,
    decoder: str | Callable[..., Any] = "self",
    target: Literal["pixels"] | Callable[..., Any] = "pixels",
    **flags: Unpack[NetworkFlags],
) -> MaskedAutoencoder:
    """Create a masked autoencoder with fresh float32 weights.

    `size` names sizes, as `maejax train --model` does: n12, ti8, s16, b16, l16, h14. The keyword arguments are flags of
    `maejax train`, and those that are given stay. `decoder` may be code: a class or function, built as
    `decoder(config, rngs)` and called as `decoder(latent, order, key, predicted)`; see `CustomAutoencoder`. `target`
    may be a function of images [B, H, W, C], normalised, to values [B, N, P] of their patches.
    Raises InputError if a value is wrong, or if the sizes do not fit together.
    """
    given = {**flags, "decoder": decoder, "target": target}
    if not callable(target) and target != "pixels":
        raise InputError(f"target={target!r} is computed from images or weights: give it to train, or a function here")
    config = config_of("pretrain", given)
    if size:
        side = min(config.image_shape) if "image_size" in flags else 224
        config = with_flags(config, **{name: value for name, value in named(size, side).items() if name not in flags})
    build = partial(initial_model, model_config(config), seed=config.seeds.init_seed)
    return jax.jit(build)()  # one by one, the hundred arrays take longer


def save(model: Model, path: str | Path, to: Layout = "maejax") -> list[str]:
    """Write a model as `maejax convert` does, in the layout of another code or our own; `load` reads it.

    `path` is a .safetensors file for maejax, .msgpack for original, .pth for fair, .pth or .safetensors for timm, and a
    directory for hf. Returns sentences that a reader must know. Raises InputError if the layout cannot hold the model.
    """
    if not hasattr(model, "config"):
        raise InputError(f"save writes a model of maejax, not {type(model).__name__}")
    if to == "maejax" and Path(path).suffix != ".safetensors":
        raise InputError(f"{path}: name a .safetensors file, or give to= for another layout")
    return files.write(weights_of(model), path, to)
