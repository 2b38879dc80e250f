"""Statements in a file of weights or in FILE.json: facts that no tensor tells, such as heads, target, normalisation."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from maejax.errors import WeightsError
from maejax.models.description import MAE, Classifier, Network, change_encoder
from maejax.models.stored import from_json
from maejax.storage.atomic import write_whole
from maejax.version import __version__
from maejax.weights.weights import Facts, Weights

KEY = "maejax.model"  # in the metadata of .safetensors, and beside "model" in the authors' .pth


OF_ENCODER = ("heads", "image_size", "gelu", "norm_eps", "mean", "std")  # facts
SHAPES = (  # fields of an encoder that its tensors tell, with the facts
    *("dim", "layers", "heads", "patch_size", "channels", "image_size"),
    *("hidden", "gated", "qkv_bias", "qk_norm", "cls_token", "registers", "pre_norm"),
)


class Statement(NamedTuple):
    """The description of a model and the names of its classes, as they stand in or beside a file."""

    model: Network
    classes: tuple[str, ...]


def statement_of(weights: Weights) -> str:
    """Write the description of a model, and the names of its classes, as JSON; `read_statement` reads it."""
    return json.dumps({"maejax": __version__, "model": weights.config.to_json(), "classes": weights.classes})


def beside(path: Path) -> Path:
    """Return the path of the statement for a file that has no room for it: FILE.json."""
    return path.with_name(f"{path.name}.json")


def write_beside(path: Path, statement: str) -> str:
    """Write the statement of a file that has no room for it; returns a sentence that a reader must know."""
    write_whole(beside(path), statement + "\n")
    return f"{beside(path).name} holds what the file cannot (heads, sizes, normalisation): keep it beside the file"


def read_beside(path: Path) -> Statement | None:
    """Read the statement beside a file, None if there is none."""
    return read_statement(beside(path).read_text(), str(beside(path))) if beside(path).is_file() else None


def read_statement(text: str | None, what: str) -> Statement | None:
    """Read a statement, None if there is none; raises WeightsError if it is damaged."""
    if text is None:
        return None
    try:
        found = json.loads(text)
        return Statement(from_json(found["model"]), tuple(found["classes"]))
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{what} describes its model in a way that is not known here: {error}") from None


def known_facts(stated: Statement | None, given: Facts) -> Facts:
    """Return the facts by which a description is inferred: those stated, else those given."""
    return facts_of(stated.model, given) if stated else given


def facts_of(model: Network, others: Facts | None = None) -> Facts:
    """Return the facts that a description holds, and `others` where it holds none."""
    encoder = model.encoder
    facts = replace(others or Facts(), **{name: getattr(encoder, name) for name in OF_ENCODER})
    if isinstance(model, MAE):
        share = model.decoder.predict_share if model.decoder.attention == "cross" else None
        told = {"norm_pix_loss": model.norm_pix_loss, "mask_ratio": model.mask_ratio, "predict_share": share}
        return replace(facts, dec_heads=model.decoder.heads, **told)
    return replace(facts, pooling=model.pooling) if isinstance(model, Classifier) else facts


def with_statement(weights: Weights, stated: Statement | None, what: str) -> Weights:
    """Add to weights what no shape tells: activation, normalisation of images, mask ratio, names of classes.

    Raises WeightsError if the statement is of another model.
    """
    if stated is None:
        return weights
    own, theirs = weights.config.encoder, stated.model.encoder
    if wrong := [name for name in SHAPES if getattr(own, name) != getattr(theirs, name)]:
        raise WeightsError(
            f"{what} is not the model that {beside(Path(what)).name} or its metadata names: {', '.join(wrong)} differ"
        )
    untold = ("gelu", "norm_eps", "mean", "std", "image_type", "bands", "no_data")
    config = change_encoder(weights.config, **{name: getattr(theirs, name) for name in untold})
    if isinstance(config, MAE) and isinstance(stated.model, MAE):
        decoder = replace(config.decoder, gelu=stated.model.decoder.gelu)
        config = replace(config, decoder=decoder, mask_ratio=stated.model.mask_ratio)
    named = isinstance(config, Classifier) and config.labels == len(stated.classes)
    return replace(weights, config=config, classes=stated.classes if named else ())
