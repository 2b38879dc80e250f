"""Descriptions of networks as they are stored: in config.json and in files of weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from maejax.models.description import MAE, Classifier, Compute, Decoder, Network, ViT


def from_json(fields: Mapping[str, Any]) -> Network:
    """Read what a `to_json` returned, or the flat arguments of earlier versions; raises ValueError if unknown."""
    fields = dict(fields) if "encoder" in fields else _nested(fields)
    try:
        if "encoder" not in fields:
            return ViT(**fields)
        encoder = ViT(**fields.pop("encoder"))
        if "decoder" not in fields:
            return Classifier(encoder=encoder, **fields)
        if fields.get("teacher"):
            fields["teacher"] = ViT(**fields["teacher"])
        return MAE(encoder=encoder, decoder=Decoder(**fields.pop("decoder")), **fields)
    except TypeError as error:
        raise ValueError(f"this version knows no such model: {error}") from None


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Sort flat arguments, which also held how a run was computed, into those of encoder, decoder and model."""
    computed = {field.name for field in dataclasses.fields(Compute)}
    fields = {name: value for name, value in flat.items() if name not in computed}
    outside = ("mask_ratio", "norm_pix_loss", "labels", "pooling", "head_norm")
    model = {name: fields.pop(name) for name in outside if name in fields}
    decoder = {name.removeprefix("dec_"): fields.pop(name) for name in list(fields) if name.startswith("dec_")}
    if decoder:
        model["decoder"] = decoder | {"gelu": fields.get("gelu", "erf")}
    return {"encoder": fields, **model} if model else fields
