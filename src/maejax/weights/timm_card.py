"""timm's config.json beside a file of weights: facts that no tensor tells."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from maejax.errors import WeightsError
from maejax.models.description import Classifier, change_encoder
from maejax.weights.weights import Weights

POOLINGS = {"token": "cls", "avg": "avg"}  # with a norm of its own (fc_norm) "avg" is "gap" here


class TimmCard(NamedTuple):
    """Facts in config.json: arguments of `torch_names.from_state`, normalisation of images, names of classes."""

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
        facts: dict[str, Any] = {"pooling": POOLINGS.get(images.get("global_pool", "token"))}
        if "input_size" in images:
            facts["image_size"] = tuple(images["input_size"][1:])
        if "num_heads" in meta.get("model_args", {}):
            facts["heads"] = int(meta["model_args"]["num_heads"])
        normalisation = {name: tuple(map(float, images[name])) for name in ("mean", "std") if name in images}
        return TimmCard(facts, normalisation, tuple(map(str, images.get("label_names") or ())))
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} cannot be read: {error}") from None


def with_card(weights: Weights, card: TimmCard) -> Weights:
    """Add normalisation and names of classes to weights that were read by the facts of a card."""
    config = change_encoder(weights.config, **card.normalisation)
    named = isinstance(config, Classifier) and config.labels == len(card.classes)
    return replace(weights, config=config, classes=card.classes if named else ())
