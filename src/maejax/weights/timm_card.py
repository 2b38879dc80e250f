"""timm's config.json beside a file of weights: facts that no tensor tells."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from maejax.errors import WeightsError
from maejax.models.description import Classifier, change_encoder
from maejax.weights.weights import Weights

POOLINGS = {"token": "cls", "avg": "avg", "map": "map"}  # with a norm of its own (fc_norm) "avg" is "gap" here
GELUS = {  # which timm computes, by a part of an architecture's name
    r"quickgelu": "quick",
    r"patch32_siglip|giantopt_.*siglip|so400m_patch16_siglip|large_patch16_siglip(_gap)?_512": "tanh",
    r"clip": "erf",  # siglip too
}


class TimmCard(NamedTuple):
    """Facts in config.json: those of `Facts`, normalisation of images, names of classes."""

    facts: dict[str, Any]
    normalisation: dict[str, tuple[float, ...]]
    classes: tuple[str, ...]


def read_card(folder: Path) -> TimmCard | None:
    """Read timm's config.json in a folder, None without one; raises WeightsError if it cannot be read."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        meta = json.loads(file.read_text())
        if "architecture" not in meta or "model_type" in meta:
            return None
        images = meta | meta.get("pretrained_cfg", {})  # on one level up to timm .6
        if "rope" in (architecture := meta["architecture"]):
            raise WeightsError(f"{file}: {architecture} has rotary positions of another kind than DINOv3's")
        facts: dict[str, Any] = {"pooling": POOLINGS.get(images.get("global_pool", "token"))}
        if kind := next((kind for kind in GELUS if re.search(kind, architecture)), None):
            facts["gelu"] = GELUS[kind]
        if "input_size" in images:
            facts["image_size"] = tuple(images["input_size"][1:])
        if "num_heads" in meta.get("model_args", {}):
            facts["heads"] = int(meta["model_args"]["num_heads"])
        normalisation = {name: tuple(map(float, images[name])) for name in ("mean", "std") if name in images}
        return TimmCard(facts, normalisation, tuple(map(str, images.get("label_names") or ())))
    except WeightsError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} cannot be read: {error}") from None


def with_card(weights: Weights, card: TimmCard) -> Weights:
    """Add normalisation and names of classes to weights that were read by the facts of a card."""
    config = change_encoder(weights.config, **card.normalisation)
    named = isinstance(config, Classifier) and config.labels == len(card.classes)
    return replace(weights, config=config, classes=card.classes if named else ())


def without_identity(weights: Weights) -> Weights:
    """Leave out the identities that `to_timm` may have written, with a notice each."""
    arrays, config, notices = dict(weights.arrays), weights.config, list(weights.notices)
    scales = [name for name in arrays if name.endswith((".scale1", ".scale2"))]
    if scales and all((arrays[name] == 1).all() for name in scales):
        arrays = {name: array for name, array in arrays.items() if name not in scales}
        config = change_encoder(config, layerscale=False)
        notices.append("its LayerScale is 1 everywhere and left out: it does nothing")
    plain = isinstance(config, Classifier) and config.pooling == "cls"
    if plain and not arrays["head.kernel"].any() and not arrays["head.bias"].any():
        arrays = {name: array for name, array in arrays.items() if not name.startswith("head.")}
        config = config.encoder
        notices.append("its head is all zeros and left out")
    return replace(weights, arrays=arrays, config=config, notices=tuple(notices))
